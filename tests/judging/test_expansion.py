"""How a judge's weights are held while it reads: merged, on an expanded base, or as stored."""

import weakref

import numpy as np
import pytest
import torch

from modeling.judging import expansion
from modeling.judging.canaries import CanaryMismatch
from modeling.judging.expansion import choose_way
from modeling.judging.judge import Judge
from modeling.judging.schedule import _name_run
from modeling.network import expansion as network_expansion
from modeling.network.expansion import QUANTISED, count_scales, expand_weights, list_quantised, measure_expanded


@pytest.fixture(scope="module", params=["8bit", "4bit"])
def two_members(request, bases, make_member, tmp_path_factory) -> list:
    """Two members on one quantised base."""
    folder = tmp_path_factory.mktemp("quantised")
    for seed, orientation in enumerate(("ab", "ba")):
        make_member(folder / orientation, bases[request.param], orientation, seed=seed)
    return [folder / "ab", folder / "ba"]


def count_quantised(judge) -> int:
    return sum(isinstance(module, QUANTISED) for module in judge.members[0].model.modules())


def count_bytes(model) -> int:
    return sum(p.nbytes for p in model.parameters()) + sum(map(count_scales, list_quantised(model)))


def hold(monkeypatch, way: str) -> None:
    """Makes loading choose a way, as it would on a device with the memory for it."""
    monkeypatch.setattr(expansion, "choose_way", lambda *_: way)


def test_the_way_is_the_fastest_that_fits():
    merged, expanded = 35, 8
    for free, device, way in (
        (70, "cuda", "merged"),  # 0.6 x 70 = 42
        (50, "cuda", "expanded"),
        (12, "cuda", "expanded"),  # 8 + 2 <= 0.9 x 12
        (11, "cuda", "stored"),
        (50, "cpu", "stored"),
        (60, "cpu", "merged"),
    ):
        assert choose_way(merged, expanded, lambda: 2, free, device) == way, (free, device)
    assert choose_way(35, 0, lambda: 2, 50, "cuda") == "stored"  # nothing is quantised


def test_an_expanded_base_is_shared_and_answers_as_the_stored_one(two_members, sample_battles, monkeypatch):
    battles = sample_battles.select(range(12))
    stored = Judge.from_pretrained(two_members, dtype="float32", merge="never")
    hold(monkeypatch, "expanded")
    expanded = Judge.from_pretrained(two_members, dtype="float32")
    assert count_quantised(stored) > 0 and count_quantised(expanded) == 0
    first, second = expanded.members
    assert first.model is second.model and None not in (first.adapter, second.adapter)
    ours, theirs = (judge.predict(battles)[["p_a_ab_ab", "p_a_ba_ba"]].to_numpy() for judge in (expanded, stored))
    assert np.abs(ours - theirs).max() <= 1e-5
    assert np.abs(ours[:, 0] - ours[:, 1]).max() > 0.01  # each member with its own adapter


def test_expanding_takes_the_bytes_that_were_measured(two_members):
    (member, _) = Judge.from_pretrained(two_members, dtype="float32", merge="never").members
    before, expected = count_bytes(member.model), measure_expanded(member.model, torch.float32)
    expand_weights(member.model, torch.float32)
    assert count_bytes(member.model) - before == expected > 0
    assert measure_expanded(member.model, torch.float32) == 0


def test_no_more_than_one_layer_is_held_twice(two_members, monkeypatch):
    """A card holds either the quantised base or the plain one, but not both."""
    (member, _) = Judge.from_pretrained(two_members, dtype="float32", merge="never").members
    dequantise, expanded = network_expansion.dequantize_module_weight, []

    def watch(layer):
        assert [number for number, known in enumerate(expanded) if known() is not None] == []
        expanded.append(weakref.ref(layer))
        return dequantise(layer)

    monkeypatch.setattr(network_expansion, "dequantize_module_weight", watch)
    expand_weights(member.model, torch.float32)
    assert len(expanded) == 2 * 7


def test_room_is_left_for_a_forward_pass_on_a_full_pack(two_members):
    (member, _) = Judge.from_pretrained(two_members, dtype="float32", merge="never").members
    small, large = (expansion._count_pack(member, tokens) for tokens in (1000, 2000))
    assert 1.8 * small < large < 2.2 * small
    # At the least, an MLP's three wide rows of float32 are held at once.
    assert small > 1000 * 3 * member.model.config.intermediate_size * 4


def test_progress_of_a_stored_base_is_not_resumed_on_an_expanded_one(two_members, monkeypatch):
    names = []
    for way in ("stored", "expanded", "merged"):
        hold(monkeypatch, way)
        names.append(_name_run(Judge.from_pretrained(two_members, dtype="float32").members, ["ab"]))
    assert len(set(names)) == 3


def test_a_base_whose_expansion_changes_the_answers_is_loaded_again_as_stored(
    two_members, sample_battles, monkeypatch, caplog
):
    def damage(model, dtype):
        expand_weights(model, dtype)
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module.in_features == module.out_features:
                module.weight.data *= 2

    expected = Judge.from_pretrained(two_members, dtype="float32", merge="never").predict(sample_battles.select([0, 1]))
    hold(monkeypatch, "expanded")
    monkeypatch.setattr(expansion, "expand_weights", damage)
    judge = Judge.from_pretrained(two_members, dtype="float32")
    assert (
        count_quantised(judge) > 0 and "Weights stay as stored: on an expanded base the answers change" in caplog.text
    )
    assert list(judge.predict(sample_battles.select([0, 1]))["p_a"]) == list(expected["p_a"])


def test_a_merge_that_changes_the_answers_is_left_out_unless_it_was_asked_for(two_members, monkeypatch, caplog):
    def damage(*given, **options):
        merged = build(*given, **options)
        merged.score.out.weight = torch.nn.Parameter(torch.zeros_like(merged.score.out.weight))  # the head is shared
        return merged

    build = expansion.build_merged
    monkeypatch.setattr(expansion, "build_merged", damage)
    judge = Judge.from_pretrained(two_members, dtype="float32")
    assert count_quantised(judge) > 0 and "Adapters stay unmerged: merged into float32" in caplog.text
    with pytest.raises(CanaryMismatch):
        Judge.from_pretrained(two_members, dtype="float32", merge="always")
