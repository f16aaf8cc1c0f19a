"""PassSchedule as one row of tokens without padding, in which a beginning that several of them share stands once.

Attention is causal, so what a model makes of a token depends on the tokens before it alone: two orders of a battle
share their prompt, battles on one prompt share that, and often the first answer with it. It must not know models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch

MIN_SHARED_PREFIX = 16  # tokens: for fewer it is not worth reading a segment after another

Span = tuple[int, int]


@dataclass(frozen=True)
class Segment:
    """Tokens start to stop of a pack; `before` are the spans that stand before them in their readings, in order."""

    start: int
    stop: int
    before: tuple[Span, ...] = ()


@dataclass(frozen=True)
class PackedSequence:
    """What a model reads at once.

    input_ids, positions: Of each token, shape (tokens,).
    segments: All tokens, in their order; each is read after those that it names.
    ends: Of each reading, in the order they were given, its last token.
    """

    input_ids: list[int]
    positions: list[int]
    segments: tuple[Segment, ...]
    ends: list[int]

    def to_batch(self) -> dict:
        """What `PreferenceMixin.forward` takes; one row, of which every token is real."""
        ids = torch.tensor([self.input_ids])
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "position_ids": torch.tensor([self.positions]),
            "segments": self.segments,
            "ends": torch.tensor(self.ends),
        }


def pack_sequences(readings: Sequence[Sequence[int]], share: bool = True) -> PackedSequence:
    """The readings as one pack.

    Args:
        readings: Token ids of each, at least one.
        share: Let beginnings of `MIN_SHARED_PREFIX` tokens and more, where readings have them in common, stand once.

    Example: `pack_sequences([[*range(20)], [*range(18), 7]])` has 21 tokens: the first 18 in a segment of their own,
    then one of the second reading and two of the first.
    """
    builder = _Builder(readings)
    order = list(range(len(readings)))
    if share:
        order.sort(key=lambda reading: tuple(readings[reading]))
    common = [count_shared_prefix(readings[a], readings[b]) if share else 0 for a, b in pairwise(order)]
    builder.add(order, common, 0, ())
    return PackedSequence(builder.ids, builder.positions, tuple(builder.segments), builder.ends)


def count_shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """How many tokens two readings begin with alike.

    Example: `count_shared_prefix([1, 2, 3], [1, 2, 4, 5])` is 2.
    """
    shorter = min(len(first), len(second))
    if first[:shorter] == second[:shorter]:
        return shorter
    low, high = 0, shorter  # alike up to low, and not up to high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if first[low:middle] == second[low:middle] else (low, middle)
    return low


def count_added_tokens(readings: Sequence[Sequence[int]]) -> list[int]:
    """Most tokens that each reading adds to a pack in which the one before it stands too, if they come sorted."""
    common = [0, *(count_shared_prefix(a, b) for a, b in pairwise(readings))][: len(readings)]
    # Of what two neighbours have in common, up to MIN_SHARED_PREFIX - 1 tokens may be left unshared.
    return [
        len(reading) - max(0, shared - MIN_SHARED_PREFIX + 1) for reading, shared in zip(readings, common, strict=True)
    ]


class _Builder:
    """Lays readings out, the shared beginning of a group before what follows it."""

    def __init__(self, readings: Sequence[Sequence[int]]):
        self.readings = readings
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.segments: list[Segment] = []
        self.ends = [0] * len(readings)

    def add(self, order: Sequence[int], common: Sequence[int], depth: int, before: tuple[Span, ...]) -> None:
        """Adds sorted readings from their token `depth` on.

        Args:
            order: The readings, sorted.
            common: Tokens that each has in common with the next.
            before: The spans of the tokens up to `depth`.
        """
        start = 0
        for end in range(1, len(order) + 1):
            if end < len(order) and common[end - 1] - depth >= MIN_SHARED_PREFIX:
                continue
            group, inside = order[start:end], common[start : end - 1]
            shared = min(inside, default=len(self.readings[group[0]]))
            spans = self._add_segment(self.readings[group[0]], depth, shared, before)
            closed = [reading for reading in group if len(self.readings[reading]) == shared]
            for reading in closed:
                self.ends[reading] = spans[-1][1] - 1
            if rest := group[len(closed) :]:  # a reading sorts before those that go on where it ends
                self.add(rest, inside[len(closed) :], shared, spans)
            start = end

    def _add_segment(self, reading: Sequence[int], start: int, stop: int, before: tuple[Span, ...]) -> tuple[Span, ...]:
        """Lays out tokens start to stop of a reading; all spans of its tokens so far."""
        span = (len(self.ids), len(self.ids) + stop - start)
        self.ids += reading[start:stop]
        self.positions += range(start, stop)
        self.segments.append(Segment(*span, before))
        return (*before, span)
