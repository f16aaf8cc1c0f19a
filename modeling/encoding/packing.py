"""Packs sequences into one unpadded row and stores each shared prefix once.

Attention is causal, so a token's hidden state depends only on the tokens before it: the two orders of a battle can
share their prompt, and battles with the same prompt can share it too, often together with the first answer. This module
lays sequences out; it must not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

# Tokens. A shorter prefix is not shared: each segment is an attention call of its own, which costs more than it saves.
MIN_SHARED_PREFIX = 16

Span = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Tokens `start` to `stop` of a packed sequence; `before` are the spans of the prefix that it continues, in order.

    A token attends to the spans in `before` and to its own segment up to itself.
    """

    start: int
    stop: int
    before: tuple[Span, ...] = ()


@dataclass(frozen=True)
class PackedSequence:
    """One model input that holds several sequences.

    input_ids: Token ids, shape (tokens,).
    positions: Position of each token in its own sequence, shape (tokens,).
    segments: They cover all tokens, in order; a segment comes after those that it continues.
    ends: Index of each sequence's last token, in the order the sequences were given.
    """

    input_ids: list[int]
    positions: list[int]
    segments: tuple[Segment, ...]
    ends: list[int]

    def list_spans(self) -> list[tuple[Span, ...]]:
        """Returns each sequence's spans in the row, in order, those of its shared prefixes first."""
        return list_spans(self.segments, self.ends)

    def to_batch(self) -> dict:
        """Keyword arguments of `PreferenceMixin.forward`; tensors of shape (1, tokens), `ends` (sequences,)."""
        ids = torch.tensor([self.input_ids])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),  # no padding; the Trainer counts tokens by it
            "position_ids": torch.tensor([self.positions]),
            "segments": self.segments,
            "ends": torch.tensor(self.ends),
        }


def list_spans(segments: Sequence[Segment], ends: Sequence[int]) -> list[tuple[Span, ...]]:
    """Returns the spans of each sequence, given the place of its last token: its prefixes', then its own."""
    # A sequence ends where its last segment does.
    last = {segment.stop - 1: segment for segment in segments}
    return [(*last[end].before, (last[end].start, last[end].stop)) for end in ends]


def pack_sequences(sequences: Sequence[Sequence[int]], share: bool = True) -> PackedSequence:
    """Packs sequences into one.

    Args:
        sequences: Token ids of each; at least one sequence.
        share: Whether to store a prefix that several sequences have in common once, if it is at least
            `MIN_SHARED_PREFIX` tokens long.

    Example: `pack_sequences([[*range(20)], [*range(18), 7]])` has 21 tokens: the shared prefix of 18 as a segment, then
    one token of the second sequence and two of the first.
    """
    builder = _Builder(sequences)
    order = list(range(len(sequences)))
    if share:
        # Sorted, sequences with a shared prefix are neighbours, and one that is a prefix of another comes before it.
        order.sort(key=lambda row: tuple(sequences[row]))
    common = [count_shared_prefix(sequences[a], sequences[b]) if share else 0 for a, b in pairwise(order)]
    builder.add(order, common, 0, ())
    return PackedSequence(builder.ids, builder.positions, tuple(builder.segments), builder.ends)


def count_shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Counts the tokens at the start that two sequences have in common.

    Example: `count_shared_prefix([1, 2, 3], [1, 2, 4, 5])` is 2.
    """
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    # Bisection: comparing slices runs in C, comparing token by token does not. Equal up to low, different before high.
    low, high = 0, shorter
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


def count_added_tokens(sequences: Sequence[Sequence[int]]) -> list[int]:
    """For sorted sequences, counts the most tokens that each adds to a pack that holds the one before it."""
    common = [0, *(count_shared_prefix(a, b) for a, b in pairwise(sequences))][: len(sequences)]
    # An upper bound: up to MIN_SHARED_PREFIX - 1 tokens that two neighbours have in common may stay unshared.
    return [
        len(sequence) - max(0, shared - MIN_SHARED_PREFIX + 1)
        for sequence, shared in zip(sequences, common, strict=True)
    ]


class _Builder:
    """Lays sequences out recursively: the shared prefix of a group, then what follows it in each."""

    def __init__(self, sequences: Sequence[Sequence[int]]):
        self.sequences = sequences
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.ends = [0] * len(sequences)

    def add(self, order: Sequence[int], common: Sequence[int], depth: int, before: tuple[Span, ...]) -> None:
        """Adds sorted sequences, which share their first `depth` tokens, from there on.

        Args:
            order: Rows of the sequences, sorted.
            common: Tokens that each has in common with the next one.
            depth: Tokens that are laid out already.
            before: Spans of those tokens.
        """
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order) and common[end - 1] - depth >= MIN_SHARED_PREFIX:
                continue
            # A group: neighbours that share enough beyond `depth` to be worth a segment.
            group, inside = order[start:end], common[start : end - 1]
            shared = min(inside, default=len(self.sequences[group[0]]))
            spans = self._add_segment(self.sequences[group[0]], depth, shared, before)
            # Sequences that end with the shared prefix sort before those that continue it.
            closed = [row for row in group if len(self.sequences[row]) == shared]
            for row in closed:
                self.ends[row] = spans[-1][1] - 1
            if rest := group[len(closed) :]:
                self.add(rest, inside[len(closed) :], shared, spans)
            start = end

    def _add_segment(self, ids: Sequence[int], start: int, stop: int, before: tuple[Span, ...]) -> tuple[Span, ...]:
        """Lays out tokens start to stop of a sequence; returns the spans of all its tokens so far."""
        span = (len(self.ids), len(self.ids) + stop - start)
        self.ids += ids[start:stop]
        self.positions += range(start, stop)
        self.segments.append(Segment(*span, before))
        return (*before, span)
