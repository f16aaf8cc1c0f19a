"""What predict.py --dry_run says, and the memory it computes against that of loaded members."""

import re
from dataclasses import replace

import pytest
import torch

from modeling.judging import dry_run
from modeling.judging.dry_run import Needs, measure_needs, read_source
from modeling.judging.judge import Judge
from modeling.judging.loading import merge_member
from modeling.judging.member import read_member
from modeling.network.expansion import count_scales, expand_weights, list_quantised
from tests.helpers import SAMPLES, call, fail

CPU = torch.device("cpu")


@pytest.fixture
def flags(members, tmp_path) -> list:
    judge = ["--judge", *members.values(), "--battles", SAMPLES / "test.jsonl", "--output_dir", tmp_path / "out"]
    return [*judge, "--dry_run", "true"]


def test_it_says_tokens_and_memory_and_writes_nothing(flags, members, sample_battles, tmp_path, capsys, monkeypatch):
    call("predict", *flags, monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    judge = Judge.from_pretrained(list(members.values()), dtype="float32", merge="never")
    verdicts = judge.predict(sample_battles)
    assert f"2 members, {len(sample_battles)} battles: {2 * 2 * int(verdicts['tokens'].sum()):,} tokens" in said
    assert re.search(r"^GB +merged +stored$", said, re.M) and "--merge auto takes: merged" in said
    assert not (tmp_path / "out").exists()


def test_the_tokens_are_those_of_the_passes(flags, tmp_path, capsys, monkeypatch):
    (tmp_path / "none.csv").write_text("id,prompt,response_a,response_b\n")
    tokens = []
    for more in ([], ["--readings", "own"], ["--hide_prompts", "true"], ["--battles", tmp_path / "none.csv"]):
        call("predict", *flags, *more, monkeypatch=monkeypatch)
        tokens.append(int(re.search(r"battles: ([\d,]+) tokens", capsys.readouterr().out)[1].replace(",", "")))
    both, own, hidden, none = tokens
    assert both == 2 * own != hidden > none == 0  # every battle is cut, so hidden prompts make room for answers


def test_it_is_an_error_if_the_memory_is_not_there(flags, monkeypatch, caplog):
    monkeypatch.setattr(dry_run, "measure_free_memory", lambda device: 1000)
    said = fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "--dry_run: expected that much memory; found less. Take fewer --tokens_per_batch" in said


@pytest.mark.parametrize("name", ["bfloat16", "8bit", "4bit"])
def test_weights_are_counted_exactly(name, bases, make_member, tmp_path):
    for seed, orientation in enumerate(("ab", "ba")):
        make_member(tmp_path / orientation, bases[name], orientation, seed=seed)
    folders = [tmp_path / "ab", tmp_path / "ba"]
    needs = measure_needs(list_sources(folders), "float32", 64, CPU)
    model = Judge.from_pretrained(folders, dtype="float32", merge="never").members[0].model
    fresh_head = count_bytes([model.get_base_model().score.original_module])
    assert needs.bases + needs.adapters == count_bytes([model])
    before = count_bytes([model])
    expand_weights(model, torch.float32)
    assert needs.expanded == count_bytes([model]) - before and (needs.expanded > 0) == (name != "bfloat16")
    merged = Judge.from_pretrained(folders, dtype="float32", merge="always").members
    assert needs.kept + needs.merged == count_bytes([member.model for member in merged]) - fresh_head


def list_sources(folders) -> list:
    return [read_source(folder, read_member(folder)) for folder in folders]


def count_bytes(models) -> int:
    """Parameters, buffers and scales, each once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for m in models for tensor in (*m.parameters(), *m.buffers())}
    return sum(tensors.values()) + sum(count_scales(layer) for m in models for layer in list_quantised(m))


def test_a_pack_is_counted_with_all_of_its_tokens_and_for_every_pooling(bases, make_member, tmp_path):
    """128 tokens at most in a sequence: 200 tokens are one and a half."""
    packs = {}
    for pooling in ("last", "mean"):
        make_member(tmp_path / pooling, bases["8bit"], "ab", pooling=pooling)
        for tokens in (128, 200, 256):
            needs = measure_needs(list_sources([tmp_path / pooling]), "float32", tokens, CPU)
            packs[pooling, tokens] = needs.pack
    assert packs["last", 128] < packs["last", 200] < packs["last", 256]
    assert {tokens: packs["last", tokens] == packs["mean", tokens] for tokens in (128, 256)} == {128: True, 256: True}
    sources = list_sources([tmp_path / "last", tmp_path / "mean"])
    apart = measure_needs(sources, "float32", 128, CPU)
    assert apart.bases == 2 * measure_needs(sources[:1], "float32", 128, CPU).bases


def test_a_merged_member_needs_its_own_weights_alone(members, tmp_path):
    merge_member(str(members["ab"]), tmp_path / "merged", "float32")
    needs = measure_needs(list_sources([tmp_path / "merged"]), "float32", 64, CPU)
    assert (needs.adapters, needs.merged, needs.expanded, needs.products) == (0, 0, 0, 0)
    assert "expanded" not in needs.list_ways()


def test_merging_needs_the_base_and_the_copies_at_once():
    needs = Needs(bases=10, adapters=2, merged=30, kept=3, expanded=8, pack=4, products=1)
    totals = {way: plan.total for way, plan in needs.list_ways().items()}
    assert totals == {"merged": 10 + 2 + 30, "expanded": 10 + 8 + 2 + 4, "stored": 10 + 2 + 4 + 1}
    ample = {way: plan.total for way, plan in replace(needs, pack=20).list_ways().items()}
    assert ample["merged"] == 3 + 30 + 20  # reading takes more than merging did
