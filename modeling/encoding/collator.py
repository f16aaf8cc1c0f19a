"""Encoded battles as a Trainer reads them: a data set of ids and labels, and batches, packed or padded."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence

import torch
from accelerate.logging import get_logger
from datasets import Dataset, concatenate_datasets

from modeling.data.battles import LABELS, TEXTS, list_orders, orient_label
from modeling.encoding.encoder import CUT_COLUMNS, TOKENIZER_BATCH, BattleEncoder
from modeling.encoding.packing import pack_sequences

logger = get_logger(__name__)

BY_SLOT = ("label", "teacher")  # columns with a number per label, which turn with the answers
NO_TEACHER = [math.nan] * len(LABELS)


def encode_dataset(battles: Dataset, encoder: BattleEncoder, orientation: str) -> Dataset:
    """Labelled battles as the collators read them; logs what was cut.

    Args:
        battles: With the columns of `load_battles` and, where wanted, `teacher` (as label, or null) and `weight`.
        orientation: "ab" or "ba", or "both": each battle is then read in both orders.

    Returns:
        Columns `input_ids`; `length`, the tokens of all readings; `cut`, whether any were left out, and of each field
        how many (of "both", in the first reading); `label` and `teacher` by slot; `weight`; and for "both"
        `swapped_ids`, the same battle with its answers exchanged.
    """
    orders = list_orders(orientation)
    kept = [name for name in (*BY_SLOT, "weight") if name in battles.column_names]

    def encode_rows(columns: dict[str, list]) -> dict[str, list]:
        """Columns of raw battles in, columns of encoded ones out."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        readings = encoder.encode_orders(encoder.clean_battles(rows), orders)
        first = readings[orders[0]]
        encoded = {name: [battle[name] for battle in first] for name in ("input_ids", *CUT_COLUMNS)}
        if len(orders) == 2:
            encoded["swapped_ids"] = [battle["input_ids"] for battle in readings[orders[1]]]
        encoded["cut"] = [any(battle[name] for name in CUT_COLUMNS) for battle in first]
        encoded["length"] = [sum(battle["length"] for battle in each) for each in zip(*readings.values(), strict=True)]
        for name in kept:
            turn = name in BY_SLOT
            encoded[name] = [orient_label(v, orders[0]) if turn and v is not None else v for v in columns[name]]
        return encoded

    start = time.perf_counter()
    encoded = battles.map(
        encode_rows,
        batched=True,
        batch_size=TOKENIZER_BATCH,
        remove_columns=battles.column_names,
        desc=f"Encoding {orientation}",
    )
    tokens, cut = sum(encoded["length"]), {name: sum(encoded[name]) for name in CUT_COLUMNS}
    speed = tokens / (time.perf_counter() - start)
    cuts = ", ".join(f"{count:,} of {name}" for name, count in zip(TEXTS, cut.values(), strict=True))
    logger.info(f"Encoded {len(encoded)} battles {orientation}: {tokens:,} tokens, {speed:,.0f} tokens/s; cut {cuts}")
    return encoded


def encode_evaluation(battles: Dataset, encoder: BattleEncoder, orientation: str) -> Dataset:
    """`encode_dataset` for an evaluation: a row for each reading, the two of a battle one after the other, long first.

    A fixed order, as the Trainer must not choose one: it does not say which prediction is whose; the column `row` does.
    """
    readings = [encode_dataset(battles, encoder, order) for order in list_orders(orientation)]
    lengths = readings[0]["length"][:]
    rows = sorted(range(len(battles)), key=lambda row: (-lengths[row], row))
    places = [(row, order) for row in rows for order in range(len(readings))]
    ordered = concatenate_datasets(readings).select([row + len(battles) * order for row, order in places])
    return ordered.add_column("row", [row for row, _ in places])


class BattleCollator:
    """Pads encoded battles to the longest of the batch, for an evaluation and for models served elsewhere.

    Example: battles of 3 and 2 ids give `input_ids` [[5, 6, 7], [5, 6, 0]], `attention_mask` [[1, 1, 1], [1, 1, 0]]
    and, where the battles have a label (by slot), `labels` of shape (battles, labels), float32; likewise `teacher`,
    NaN where a battle has none, and `weights` of shape (battles,). A battle with `swapped_ids` makes two rows, one
    after the other, the second with its label and teacher mirrored: both orders share every optimizer step.
    """

    def __init__(self, pad_token_id: int, padding_side: str = "right"):
        self.pad_token_id = pad_token_id
        self.padding_side = padding_side

    def __call__(self, battles: Sequence[Mapping]) -> dict[str, torch.Tensor]:
        readings = [reading for battle in battles for reading in _list_sequences(battle)]
        longest = max(len(reading["input_ids"]) for reading in readings)
        batch = {
            "input_ids": torch.full((len(readings), longest), self.pad_token_id),
            "attention_mask": torch.zeros((len(readings), longest), dtype=torch.int64),
        }
        for row, reading in enumerate(readings):
            length = len(reading["input_ids"])
            real = slice(0, length) if self.padding_side == "right" else slice(longest - length, longest)
            batch["input_ids"][row, real] = torch.tensor(reading["input_ids"])
            batch["attention_mask"][row, real] = 1
        return batch | _stack_targets(readings)


class PackedCollator:
    """Packs encoded battles without padding, for training: `parts` of a budget of tokens each, read one after another.

    Each part is `PackedSequence.to_batch()` with labels, teacher and weights as `BattleCollator` makes them, and `share`, its
    part of the batch's readings: the loss is the mean over all of them, however they are parted. `input_ids` and
    `attention_mask` are those of all parts in a row, which the Trainer counts.
    """

    def __init__(self, tokens_per_batch: int | None = None):
        """
        Args:
            tokens_per_batch: Most tokens of a part; a battle longer than that makes one of its own. None: one part.
        """
        self.tokens_per_batch = tokens_per_batch

    def __call__(self, battles: Sequence[Mapping]) -> dict:
        groups: list[list[dict]] = []
        room = 0
        for battle in battles:
            readings = list(_list_sequences(battle))
            size = sum(len(reading["input_ids"]) for reading in readings)
            if groups and (self.tokens_per_batch is None or size <= room):
                groups[-1] += readings
                room -= size
            else:
                groups.append(readings)
                room = (self.tokens_per_batch or size) - size
        total = sum(map(len, groups))
        parts = [
            pack_sequences([reading["input_ids"] for reading in group]).to_batch()
            | _stack_targets(group)
            | {"share": len(group) / total}
            for group in groups
        ]
        rows = {name: torch.cat([part[name] for part in parts], dim=1) for name in ("input_ids", "attention_mask")}
        return rows | {"parts": parts}


def _stack_targets(readings: Sequence[Mapping]) -> dict[str, torch.Tensor]:
    """Labels, teacher and weights of readings that have them, by the names that the model knows."""
    return {
        name: torch.tensor([reading[column] for reading in readings], dtype=torch.float32)
        for column, name in (("label", "labels"), ("teacher", "teacher"), ("weight", "weights"))
        if column in readings[0]
    }


def _list_sequences(battle: Mapping) -> Iterator[dict]:
    """A battle's rows in a batch: itself and, where it is read both ways, the same with its answers exchanged."""
    reading = {name: battle[name] for name in ("input_ids", *BY_SLOT, "weight") if name in battle}
    if "teacher" in reading and reading["teacher"] is None:
        reading["teacher"] = NO_TEACHER
    yield reading
    if "swapped_ids" in battle:
        mirrored = {name: orient_label(reading[name], "ba") for name in BY_SLOT if name in reading}
        yield {**reading, **mirrored, "input_ids": battle["swapped_ids"]}
