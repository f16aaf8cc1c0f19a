"""Laws of collation.py: labels and teachers turn with the answers, and both orders of a battle share a batch."""

import math

import pytest
import torch

from modeling.encoding.collator import BattleCollator, encode_dataset, encode_evaluation
from modeling.encoding.encoder import BattleEncoder, build_encoding

LABELS = [[0.9, 0.1], [0.2, 0.8], [0.5, 0.5]]
TEACHERS = [[0.7, 0.3], None, [0.4, 0.6]]


@pytest.fixture
def encoder(tokenizer):
    return BattleEncoder(tokenizer, build_encoding(tokenizer, 128, "balanced"))


@pytest.fixture
def battles(demo_battles):
    """Three battles with soft labels, a teacher that knows two of them, and weights."""
    battles = demo_battles.select(range(3)).remove_columns("label")
    return battles.add_column("label", LABELS).add_column("teacher", TEACHERS).add_column("weight", [0.5, 1.0, 1.5])


@pytest.mark.parametrize("orientation", ["ab", "ba"])
def test_labels_and_teachers_are_by_slot(battles, encoder, orientation):
    turn = slice(None, None, 1 if orientation == "ab" else -1)
    encoded = encode_dataset(battles, encoder, orientation)
    assert encoded["label"][:] == [label[turn] for label in LABELS]
    assert encoded["teacher"][:] == [teacher and teacher[turn] for teacher in TEACHERS]
    assert encoded["weight"][:] == [0.5, 1.0, 1.5] and "swapped_ids" not in encoded.column_names


def test_both_orders_of_a_battle_share_a_batch_with_mirrored_labels(battles, encoder):
    """Row 2i reads battle i as ab, row 2i + 1 as ba: the ids are those of the two single orientations."""
    both, ab, ba = (encode_dataset(battles, encoder, orientation) for orientation in ("both", "ab", "ba"))
    assert both["length"][:] == [sum(lengths) for lengths in zip(ab["length"], ba["length"], strict=True)]
    batch = BattleCollator(0)(both.to_list())
    singles = [BattleCollator(0)([row]) for pair in zip(ab.to_list(), ba.to_list(), strict=True) for row in pair]
    for row, single in enumerate(singles):
        ids = batch["input_ids"][row][batch["attention_mask"][row].bool()]
        assert torch.equal(ids, single["input_ids"][0])
    for name in ("labels", "teacher", "weights"):
        torch.testing.assert_close(batch[name], torch.cat([single[name] for single in singles]), equal_nan=True)
    assert torch.equal(batch["labels"][::2], batch["labels"][1::2].flip(1))
    assert batch["teacher"].isnan().any(dim=1).tolist() == [False, False, True, True, False, False]


def test_an_evaluation_has_a_row_per_reading_in_a_fixed_order(demo_battles, encoder):
    """The Trainer does not say which prediction is whose: the data set's order must."""
    single, both = (encode_evaluation(demo_battles, encoder, orientation) for orientation in ("ab", "both"))
    assert single["length"][:] == sorted(single["length"], reverse=True)
    assert both["input_ids"][::2] == single["input_ids"][:] and len(both) == 2 * len(single)
    assert both["label"][1::2] == [label[::-1] for label in both["label"][::2]]
    ba = {tuple(ids) for ids in encode_dataset(demo_battles, encoder, "ba")["input_ids"]}
    assert {tuple(ids) for ids in both["input_ids"][1::2]} == ba


def test_a_battle_without_a_teacher_is_nan_in_the_batch():
    rows = [{"input_ids": [2, 1], "label": [1, 0], "teacher": teacher} for teacher in ([0.5, 0.5], None)]
    teacher = BattleCollator(0)(rows)["teacher"].tolist()
    assert teacher[0] == [0.5, 0.5] and all(math.isnan(p) for p in teacher[1])
