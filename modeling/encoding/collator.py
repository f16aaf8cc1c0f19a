"""Encoded battles for the Trainer: a data set of token ids and labels, and its batches as packed sequences.

It must not know models, losses or optimizers.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from datasets import Dataset

from modeling.data.battles import TEXTS, list_orders, orient_label
from modeling.encoding.encoder import CUT_COLUMNS, TOKENIZER_BATCH, BattleEncoder
from modeling.encoding.packing import pack_sequences
from modeling.runtime.logs import build_logger

logger = build_logger(__name__)

BY_SLOT = ("label", "teacher")  # columns with a number per label, which are mirrored when the answers swap places


def encode_dataset(battles: Dataset, encoder: BattleEncoder, orientation: str) -> Dataset:
    """Encodes labelled battles for training and evaluation, and logs how many tokens were cut.

    Args:
        battles: With the columns of `load_battles` and, optionally, `teacher` (like label, or null) and `weight`.
        orientation: "ab", "ba" or "both"; with "both" each battle is read in both orders (order-swap augmentation).

    Returns:
        Rows in the order of the input. Columns: `input_ids`; `swapped_ids`, the second order's ids, for "both" only;
        `length`, tokens of all passes; `cut_prompt`, `cut_response_a` and `cut_response_b`, tokens cut of each field
        (for "both" the larger number of the two orders); `cut`, whether anything was cut; `label` and `teacher` by slot
        of the first order; `weight`.
    """
    orders = list_orders(orientation)
    kept = [name for name in (*BY_SLOT, "weight") if name in battles.column_names]

    def encode_rows(columns: dict[str, list]) -> dict[str, list]:
        """Turns columns of raw battles into columns of encoded ones."""
        rows = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        by_order = encoder.encode_orders(encoder.clean_battles(rows), orders)
        passes = list(zip(*by_order.values(), strict=True))  # each battle's, one per order
        encoded = {"input_ids": [first["input_ids"] for first, *_ in passes]}
        encoded |= {name: [max(each[name] for each in battle) for battle in passes] for name in CUT_COLUMNS}
        if len(orders) == 2:
            encoded["swapped_ids"] = [second["input_ids"] for _, second in passes]
        encoded["cut"] = [any(cuts) for cuts in zip(*(encoded[name] for name in CUT_COLUMNS), strict=True)]
        encoded["length"] = [sum(each["length"] for each in battle) for battle in passes]
        for name in kept:
            by_slot = name in BY_SLOT
            encoded[name] = [orient_label(v, orders[0]) if by_slot and v is not None else v for v in columns[name]]
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


class PackedCollator:
    """Packs encoded battles into unpadded batches for training.

    A batch is a list of `parts`, each within a token budget, that the Trainer runs one after another. A part is
    `PackedSequence.to_batch()` plus `labels`, `teacher` and `weights` as `stack_targets` makes them, plus `share`, the
    part's share of the batch's passes: weighted by it, the parts' losses add up to the mean over the whole batch. The
    batch's own `input_ids` and `attention_mask` are those of all parts in a row; the Trainer only counts them.

    Example: battles of ids 5, 6, 7 and 5, 6, without a budget, give one part with `input_ids` [[5, 6, 5, 6, 7]], `ends`
    [4, 1] and `share` 1.0. With a budget of 4 tokens they give two parts with `share` 0.5.
    """

    def __init__(self, tokens_per_batch: int | None = None, gather_states: Callable | None = None):
        """
        Args:
            tokens_per_batch: Most tokens of a part, before shared prefixes are merged. A battle longer than that gets a
                part of its own. None puts the whole batch into one part.
            gather_states: `FrozenStates.gather` of the data set's passes, in the order of `list_passes`; parts then
                have `frozen_states`, and battles need a column `row`.
        """
        self.tokens_per_batch, self.gather_states = tokens_per_batch, gather_states

    def __call__(self, battles: Sequence[Mapping]) -> dict:
        groups: list[list[dict]] = []
        room = 0
        for battle in battles:
            passes = list(list_passes(battle))
            size = sum(len(each["input_ids"]) for each in passes)
            if groups and (self.tokens_per_batch is None or size <= room):
                groups[-1] += passes
                room -= size
            else:
                groups.append(passes)
                room = (self.tokens_per_batch or size) - size
        total = sum(map(len, groups))
        parts = [self._build_part(group) | {"share": len(group) / total} for group in groups]
        rows = {name: torch.cat([part[name] for part in parts], dim=1) for name in ("input_ids", "attention_mask")}
        return rows | {"parts": parts}

    def _build_part(self, passes: Sequence[Mapping]) -> dict:
        """Packs passes, with their targets and the states of their frozen layers if those are known."""
        pack = pack_sequences([each["input_ids"] for each in passes])
        part = pack.to_batch() | stack_targets(passes)
        if self.gather_states:
            part["frozen_states"] = self.gather_states(pack, [each["place"] for each in passes])
        return part


def list_passes(battle: Mapping) -> Iterator[dict]:
    """Yields an encoded battle's passes: one, or two if it has `swapped_ids`, the second with its targets mirrored.

    If the battles have a column `row`, `place` numbers the passes of all of them.
    """
    first = {name: battle[name] for name in ("input_ids", *BY_SLOT, "weight") if name in battle}
    if "teacher" in first and first["teacher"] is None:
        first["teacher"] = [math.nan] * len(battle["label"])
    both = "swapped_ids" in battle
    if "row" in battle:
        first["place"] = battle["row"] * (1 + both)
    yield first
    if both:
        second = first | {name: orient_label(first[name], "ba") for name in BY_SLOT if name in first}
        second |= {"place": first["place"] + 1} if "place" in first else {}
        yield second | {"input_ids": battle["swapped_ids"]}


def stack_targets(passes: Sequence[Mapping]) -> dict[str, torch.Tensor]:
    """Stacks the targets of passes under the names of the model's arguments, float32.

    Returns:
        Those that the passes have: `labels` and `teacher` by slot, shape (passes, labels), a teacher's row NaN where a
        battle has none; `weights`, shape (passes,).
    """
    return {
        name: torch.tensor([each[column] for each in passes], dtype=torch.float32)
        for column, name in (("label", "labels"), ("teacher", "teacher"), ("weight", "weights"))
        if column in passes[0]
    }
