"""A packed sequence holds each sequence whole, its tokens in order, and each shared prefix once."""

from itertools import pairwise

import numpy as np
import pytest

from modeling.encoding.packing import MIN_SHARED_PREFIX, count_added_tokens, count_shared_prefix, pack_sequences


def draw_sequences(seed: int) -> list[list[int]]:
    """Sequences with a shared prefix, two of them equal, as battles with one prompt have."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(3, size=60).tolist()
    sequences = [
        [*beginning[: rng.integers(60)], *rng.integers(3, size=rng.integers(1, 30)).tolist(), 99]
        for _ in range(rng.integers(1, 9))
    ]
    return [*sequences, sequences[0]]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_each_sequence_can_be_followed_from_its_end(seed, share):
    sequences = draw_sequences(seed)
    pack = pack_sequences(sequences, share)
    spans = [(segment.start, segment.stop) for segment in pack.segments]
    assert spans[0][0] == 0 and spans[-1][1] == len(pack.input_ids) == len(pack.positions)
    assert all(first[1] == second[0] for first, second in pairwise(spans))
    last = {segment.stop - 1: segment for segment in pack.segments}
    for sequence, end in zip(sequences, pack.ends, strict=True):
        segment = last[end]
        path = [place for span in (*segment.before, (segment.start, segment.stop)) for place in range(*span)]
        assert [pack.input_ids[place] for place in path] == sequence
        assert [pack.positions[place] for place in path] == list(range(len(sequence)))
    total = sum(map(len, sequences))
    assert (
        len(pack.input_ids) <= sum(count_added_tokens(sorted(sequences))) <= total
        if share
        else len(pack.input_ids) == total
    )


def test_equal_sequences_are_read_once_and_short_beginnings_by_themselves():
    long, other = list(range(40)), [*range(MIN_SHARED_PREFIX - 1), 99]
    pack = pack_sequences([long, other, long])
    assert len(pack.input_ids) == len(long) + len(other) and pack.ends[0] == pack.ends[2]
    assert len(pack_sequences([long, [*long[:MIN_SHARED_PREFIX], 99]]).input_ids) == len(long) + 1


def test_count_common_is_where_two_sequences_part():
    rng = np.random.default_rng(0)
    for _ in range(200):
        first, second = (rng.integers(2, size=rng.integers(1, 9)).tolist() for _ in range(2))
        parts = (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        assert count_shared_prefix(first, second) == next(parts, min(len(first), len(second)))
