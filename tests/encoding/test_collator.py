"""Laws of collator.py: labels and teachers are mirrored with the answers; both orders of a battle share a batch."""

import math

import pytest
import torch

from modeling.encoding.collator import PackedCollator, encode_dataset, list_passes, stack_targets
from modeling.encoding.encoder import BattleEncoder, build_encoding

LABELS = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]
TEACHERS = [[0.7, 0.3], None, [0.4, 0.6]]


@pytest.fixture
def encoder(tokenizer):
    return BattleEncoder(tokenizer, build_encoding(tokenizer, 128, "balanced"))


@pytest.fixture
def battles(sample_battles):
    """Three battles with soft labels, a teacher that knows two of them, and weights."""
    battles = sample_battles.select(range(3)).remove_columns("label")
    return battles.add_column("label", LABELS).add_column("teacher", TEACHERS).add_column("weight", [0.5, 1.0, 1.5])


@pytest.mark.parametrize("orientation", ["ab", "ba"])
def test_labels_and_teachers_are_by_slot(battles, encoder, orientation):
    turn = slice(None, None, 1 if orientation == "ab" else -1)
    encoded = encode_dataset(battles, encoder, orientation)
    assert encoded["label"][:] == [label[turn] for label in LABELS]
    assert encoded["teacher"][:] == [teacher and teacher[turn] for teacher in TEACHERS]
    assert encoded["weight"][:] == [0.5, 1.0, 1.5] and "swapped_ids" not in encoded.column_names


def test_both_orders_of_a_battle_share_a_batch_with_mirrored_labels(battles, encoder):
    """Pass 2i reads battle i as ab, pass 2i + 1 as ba: the ids are those of the two single orientations."""
    both, ab, ba = (encode_dataset(battles, encoder, orientation) for orientation in ("both", "ab", "ba"))
    assert both["length"][:] == [sum(lengths) for lengths in zip(ab["length"], ba["length"], strict=True)]
    (part,) = PackedCollator()(both.to_list())["parts"]
    passes = [each for battle in both.to_list() for each in list_passes(battle)]
    singles = [row for pair in zip(ab.to_list(), ba.to_list(), strict=True) for row in pair]
    assert [each["input_ids"] for each in passes] == [single["input_ids"] for single in singles]
    # Before the token at which a pass ends stands the rest of it, so its end is the eos of its own battle.
    assert part["input_ids"][0, part["ends"]].tolist() == [single["input_ids"][-1] for single in singles]
    assert part["position_ids"][0, part["ends"]].tolist() == [len(single["input_ids"]) - 1 for single in singles]
    expected = [stack_targets(list(list_passes(single))) for single in singles]
    for name in ("labels", "teacher", "weights"):
        torch.testing.assert_close(part[name], torch.cat([single[name] for single in expected]), equal_nan=True)
    assert torch.equal(part["labels"][::2], part["labels"][1::2].flip(1))
    assert part["teacher"].isnan().any(dim=1).tolist() == [False, False, True, True, False, False]


def test_cuts_of_both_orders_are_the_larger_of_the_two(sample_battles, encoder):
    both, ab, ba = (encode_dataset(sample_battles, encoder, orientation) for orientation in ("both", "ab", "ba"))
    for name in ("cut_prompt", "cut_response_a", "cut_response_b", "cut"):
        assert both[name][:] == [max(cuts) for cuts in zip(ab[name], ba[name], strict=True)]
    assert all(both["cut"])


def test_a_battle_without_a_teacher_is_nan_in_the_batch():
    rows = [{"input_ids": [2, 1], "label": [1, 0], "teacher": teacher} for teacher in ([0.5, 0.5], None)]
    teacher = PackedCollator()(rows)["parts"][0]["teacher"].tolist()
    assert teacher[0] == [0.5, 0.5] and all(math.isnan(p) for p in teacher[1])


def test_collator_packs_as_its_docstring_says():
    battles = [{"input_ids": [5, 6, 7], "label": [1.0, 0.0]}, {"input_ids": [5, 6], "label": [0.5, 0.5]}]
    (part,) = PackedCollator()(battles)["parts"]
    assert part["input_ids"].tolist() == [[5, 6, 5, 6, 7]] and part["ends"].tolist() == [4, 1]
    assert part["labels"].tolist() == [[1, 0], [0.5, 0.5]] and part["labels"].dtype == torch.float32
    assert part["share"] == 1 and [part["share"] for part in PackedCollator(4)(battles)["parts"]] == [0.5, 0.5]
