"""What sways a judge besides the answers' worth: which one it reads first, and which one is longer.

Pure functions over arrays. A reading is one member reading in one order, named `<member>_ab` or `<member>_ba`; its
probabilities are already turned back, p that a wins, and NaN where the member did not read.
"""

from collections.abc import Mapping

import numpy as np

from modeling.evaluation.bootstrap import UNKNOWN, Resampler
from modeling.evaluation.metrics import find_decided, find_hits

LENGTH_MATCHED = 1.2  # the longer answer has at most so many times the characters of the shorter one
LENGTH_BINS = 8


def find_first(readings: Mapping[str, np.ndarray]) -> np.ndarray:
    """Probability that the answer read first wins, shape (battles, readings): p_a for ab, 1 - p_a for ba."""
    return np.column_stack([1 - p if name.endswith("_ba") else p for name, p in readings.items()])


def estimate_position_bias(
    resampler: Resampler, readings: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict | None]:
    """How much the place of an answer decides.

    Args:
        resampler: Of the battles, grouped by prompt.
        readings: {name: p_a of shape (battles,)}; none are needed.
        labels: True probabilities, shape (battles, 2).

    Returns:
        mean_p_first: mean over all readings of the first answer's probability. 1/2 is none, if as many battles are won
        by the first as by the second answer; `people_first` says what it would be if the labels had been predicted.
        first_wins: share of the readings that the first answer wins (1/2 counts half).
        flip_share: over battles and members that read both orders, the share whose winner changes with the order; None
        where no member read both. Members of opposite orders differ by more than the place, so they do not count.
    """
    unknown = UNKNOWN.to_dict()
    if not readings:
        return {"mean_p_first": unknown, "first_wins": unknown, "flip_share": None, "people_first": unknown}
    first, read = find_first(readings), ~np.isnan(find_first(readings))
    wins = np.where(first == 0.5, 0.5, first > 0.5)
    people = find_first(dict.fromkeys(readings, labels[:, 0]))
    return {
        "mean_p_first": _estimate_ratio(resampler, first, read),
        "first_wins": _estimate_ratio(resampler, wins, read, share=True),
        "flip_share": _estimate_flips(resampler, readings),
        "people_first": _estimate_ratio(resampler, people, read),
    }


def _estimate_ratio(resampler: Resampler, values: np.ndarray, read: np.ndarray, share: bool = False) -> dict:
    """Mean over all readings, several of them of one battle."""
    columns = np.column_stack([np.where(read, values, 0).sum(axis=1), read.sum(axis=1)])
    return resampler.estimate(columns, lambda sums: sums[:, 0] / sums[:, 1], read.any(axis=1), share=share).to_dict()


def _estimate_flips(resampler: Resampler, readings: Mapping[str, np.ndarray]) -> dict | None:
    """Of the members that read both orders; None where there are none."""
    members = [name.removesuffix("_ab") for name in readings if name.endswith("_ab")]
    pairs = [(readings[f"{name}_ab"], readings[f"{name}_ba"]) for name in members if f"{name}_ba" in readings]
    if not pairs:
        return None
    read = np.column_stack([~np.isnan(ab) & ~np.isnan(ba) for ab, ba in pairs])
    flips = np.column_stack([(ab >= 0.5) != (ba >= 0.5) for ab, ba in pairs])
    return _estimate_ratio(resampler, flips, read, share=True)


def estimate_length_bias(
    resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray, lengths: np.ndarray
) -> dict[str, object]:
    """How much the length of an answer decides.

    Args:
        resampler: Of the battles, grouped by prompt.
        probabilities: Predicted, shape (battles, 2).
        labels: True probabilities, shape (battles, 2).
        lengths: Characters of both answers, shape (battles, 2).

    Returns:
        correlation: Pearson's, of p_a with the logarithm of the lengths' ratio a : b; people_correlation: the same of
        the label, because people favour longer answers too. accuracy_length_matched: where neither answer is longer by
        more than a fifth. bins: mean p_a and label by eighths of the ratio.
    """
    ratio = np.log2((lengths[:, 0] + 1) / (lengths[:, 1] + 1))
    matched = find_decided(labels) & (np.abs(ratio) <= np.log2(LENGTH_MATCHED))
    hits = find_hits(probabilities, labels)
    (accuracy,) = resampler.estimate_means(hits[:, None], matched[:, None], shares=[0])
    return {
        "correlation": _estimate_correlation(resampler, ratio, probabilities[:, 0]),
        "people_correlation": _estimate_correlation(resampler, ratio, labels[:, 0]),
        "accuracy_length_matched": accuracy.to_dict(),
        "bins": _bin_lengths(resampler, ratio, probabilities[:, 0], labels[:, 0]),
    }


def _estimate_correlation(resampler: Resampler, x: np.ndarray, y: np.ndarray) -> dict:
    """Pearson's correlation, from sums of standardised values; unknown where one of them never changes."""
    if len(x) < 2 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return UNKNOWN.to_dict()
    x, y = ((values - values.mean()) / values.std() for values in (x, y))

    def compute(sums: np.ndarray) -> np.ndarray:
        """From sums of 1, x, y, xx, yy, xy."""
        mean_x, mean_y, xx, yy, xy = (sums[:, 1:] / sums[:, :1]).T
        return (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))

    return resampler.estimate(np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y]), compute).to_dict()


def _bin_lengths(resampler: Resampler, ratio: np.ndarray, p_a: np.ndarray, label_a: np.ndarray) -> list[dict]:
    """Mean p_a and label by equal shares of the battles in order of the ratio; equal ratios stay together."""
    if len(ratio) == 0:
        return []
    ends = np.unique(np.quantile(ratio, np.arange(1, LENGTH_BINS) / LENGTH_BINS))
    bins = np.searchsorted(ends, ratio)
    numbers = np.unique(bins)
    parts = bins[:, None] == numbers
    values = np.hstack([np.tile(column[:, None], len(numbers)) for column in (p_a, label_a)])
    estimates = resampler.estimate_means(values, np.hstack([parts, parts]))
    rows = zip(parts.T, estimates[: len(numbers)], estimates[len(numbers) :], strict=True)
    return [
        {"log2_ratio": float(np.median(ratio[part])), "mean_p": mean_p.to_dict(), "people": people.to_dict()}
        for part, mean_p, people in rows
    ]
