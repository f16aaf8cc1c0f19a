"""A pack holds its readings whole, each token after those that stand before it in its reading, beginnings once."""

from itertools import pairwise

import numpy as np
import pytest

from modeling.encoding.packing import MIN_SHARED_PREFIX, count_added_tokens, count_shared_prefix, pack_sequences


def draw_readings(seed: int) -> list[list[int]]:
    """PassSchedule that begin alike for some tokens, some of them equal, as battles on one prompt do."""
    rng = np.random.default_rng(seed)
    beginning = rng.integers(3, size=60).tolist()
    readings = [
        [*beginning[: rng.integers(60)], *rng.integers(3, size=rng.integers(1, 30)).tolist(), 99]
        for _ in range(rng.integers(1, 9))
    ]
    return [*readings, readings[0]]


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("seed", range(20))
def test_each_reading_can_be_followed_from_its_end(seed, share):
    readings = draw_readings(seed)
    pack = pack_sequences(readings, share)
    spans = [(segment.start, segment.stop) for segment in pack.segments]
    assert spans[0][0] == 0 and spans[-1][1] == len(pack.input_ids) == len(pack.positions)
    assert all(first[1] == second[0] for first, second in pairwise(spans))
    last = {segment.stop - 1: segment for segment in pack.segments}
    for reading, end in zip(readings, pack.ends, strict=True):
        segment = last[end]
        path = [place for span in (*segment.before, (segment.start, segment.stop)) for place in range(*span)]
        assert [pack.input_ids[place] for place in path] == reading
        assert [pack.positions[place] for place in path] == list(range(len(reading)))
    total = sum(map(len, readings))
    assert (
        len(pack.input_ids) <= sum(count_added_tokens(sorted(readings))) <= total
        if share
        else len(pack.input_ids) == total
    )


def test_equal_readings_are_read_once_and_short_beginnings_by_themselves():
    long, other = list(range(40)), [*range(MIN_SHARED_PREFIX - 1), 99]
    pack = pack_sequences([long, other, long])
    assert len(pack.input_ids) == len(long) + len(other) and pack.ends[0] == pack.ends[2]
    assert len(pack_sequences([long, [*long[:MIN_SHARED_PREFIX], 99]]).input_ids) == len(long) + 1


def test_count_common_is_where_two_readings_part():
    rng = np.random.default_rng(0)
    for _ in range(200):
        first, second = (rng.integers(2, size=rng.integers(1, 9)).tolist() for _ in range(2))
        parts = (n for n, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        assert count_shared_prefix(first, second) == next(parts, min(len(first), len(second)))
