"""Biases of a judge: how much it favours the answer in the first slot, and how much the longer answer.

Pure functions over arrays. The passes of one member in one order are a column, named `<member>_ab` or `<member>_ba`.
Its values are p_a, the probability that a wins whichever answer came first, or NaN for battles without that pass. This
module must not know models or files.
"""

from collections.abc import Mapping

import numpy as np

from modeling.data.outcomes import halve_ties
from modeling.evaluation.bootstrap import UNKNOWN, Resampler
from modeling.evaluation.metrics import find_decided, find_hits

LENGTH_MATCHED = 1.2  # lengths match if the longer answer has at most this many times the characters of the shorter one
LENGTH_BINS = 8


def find_first(passes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns the probability that the first answer wins, shape (battles, passes): p_a for ab, 1 - p_a for ba."""
    return np.column_stack([1 - p if name.endswith("_ba") else p for name, p in passes.items()])


def estimate_position_bias(
    resampler: Resampler, passes: Mapping[str, np.ndarray], labels: np.ndarray
) -> dict[str, dict | None]:
    """Estimates how much the slot of an answer influences the judge.

    Args:
        resampler: Resampler of the battles, grouped by prompt.
        passes: {name: p_a of shape (battles,)}; may be empty.
        labels: True probabilities, shape (battles, 2).

    Returns:
        mean_p_first: Mean probability of the first answer over all passes; 1/2 means no bias if both slots win equally
            often.
        people_first: What `mean_p_first` would be if the judge predicted the labels themselves.
        first_wins: Share of passes that the first answer wins; a probability of 1/2 counts half.
        flip_share: Share of battles and members, of those with both orders, whose winner changes with the order; None
            if no member has both orders.
    """
    unknown = UNKNOWN.to_dict()
    if not passes:
        return {"mean_p_first": unknown, "first_wins": unknown, "flip_share": None, "people_first": unknown}
    first, read = find_first(passes), ~np.isnan(find_first(passes))
    wins = np.where(first == 0.5, 0.5, first > 0.5)  # NaN gives 0 here; `read` leaves it out below
    people = find_first(dict.fromkeys(passes, labels[:, 0]))
    return {
        "mean_p_first": _estimate_ratio(resampler, first, read),
        "first_wins": _estimate_ratio(resampler, wins, read, share=True),
        "flip_share": _estimate_flips(resampler, passes),
        "people_first": _estimate_ratio(resampler, people, read),
    }


def _estimate_ratio(resampler: Resampler, values: np.ndarray, read: np.ndarray, share: bool = False) -> dict:
    """Estimates the mean over all passes that were made; a battle counts once for each of its passes."""
    columns = np.column_stack([np.where(read, values, 0).sum(axis=1), read.sum(axis=1)])
    return resampler.estimate(columns, lambda sums: sums[:, 0] / sums[:, 1], read.any(axis=1), share=share).to_dict()


def estimate_consistency(resampler: Resampler, p_a: np.ndarray, passes: Mapping[str, np.ndarray]) -> dict:
    """Estimates how far a judge agrees with itself; arguments as in `estimate_position_bias`, and its p_a.

    Returns:
        position_consistency: Share of battles and members whose winner is the same in both orders, 1 - flip_share; None
            if no member has both orders.
        self_consistency: Share of passes whose winner is that of the verdict; None without passes.
    """
    flips = _estimate_flips(resampler, passes)
    kept = flips and {name: None if end is None else 1 - end for name, end in flips.items()}
    found = {
        "position_consistency": kept and kept | {"low": kept["high"], "high": kept["low"], "count": flips["count"]}
    }
    if not passes:
        return found | {"self_consistency": None}
    each = np.column_stack(list(passes.values()))
    same = (each >= 0.5) == (p_a >= 0.5)[:, None]
    return found | {"self_consistency": _estimate_ratio(resampler, same, ~np.isnan(each), share=True)}


def _estimate_flips(resampler: Resampler, passes: Mapping[str, np.ndarray]) -> dict | None:
    """Estimates the share of winners that change with the order, over members with both orders; None without any."""
    pairs = pair_orders(passes)
    if not pairs:
        return None
    read = np.column_stack([~np.isnan(ab) & ~np.isnan(ba) for ab, ba in pairs])
    flips = np.column_stack([(ab >= 0.5) != (ba >= 0.5) for ab, ba in pairs])
    return _estimate_ratio(resampler, flips, read, share=True)


def pair_orders(passes: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns p_a in the order ab and in the order ba, for each member with both orders."""
    # Two members of opposite orientations do not count as a pair: they differ by more than the order.
    members = [name.removesuffix("_ab") for name in passes if name.endswith("_ab")]
    return [(passes[f"{name}_ab"], passes[f"{name}_ba"]) for name in members if f"{name}_ba" in passes]


def estimate_length_bias(
    resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray, lengths: np.ndarray
) -> dict[str, object]:
    """Estimates how much the length of an answer influences the judge.

    Args:
        resampler: Resampler of the battles, grouped by prompt.
        probabilities: Predicted probabilities, shape (battles, labels).
        labels: True probabilities, shape (battles, labels).
        lengths: Lengths of both answers in characters, shape (battles, 2).

    Returns:
        correlation: Pearson correlation of p_a, plus half of any p_tie, with the log of the length ratio a : b.
        people_correlation: The same for the labels, because people favour longer answers too.
        accuracy_length_matched: Accuracy on battles in which neither answer is more than a fifth longer.
        bins: Mean p_a and mean label in eighths of the battles, sorted by length ratio.
    """
    # Plus 1, because an answer may be empty.
    ratio = np.log2((lengths[:, 0] + 1) / (lengths[:, 1] + 1))
    matched = find_decided(labels) & (np.abs(ratio) <= np.log2(LENGTH_MATCHED))
    hits = find_hits(probabilities, labels)
    (accuracy,) = resampler.estimate_means(hits[:, None], matched[:, None], shares=[0])
    p_a, label_a = halve_ties(probabilities)[:, 0], halve_ties(labels)[:, 0]
    return {
        "correlation": _estimate_correlation(resampler, ratio, p_a),
        "people_correlation": _estimate_correlation(resampler, ratio, label_a),
        "accuracy_length_matched": accuracy.to_dict(),
        "bins": _bin_lengths(resampler, ratio, p_a, label_a),
    }


def _estimate_correlation(resampler: Resampler, x: np.ndarray, y: np.ndarray) -> dict:
    """Estimates Pearson's correlation; unknown if x or y is constant."""
    if len(x) < 2 or np.ptp(x) < 1e-9 or np.ptp(y) < 1e-9:
        return UNKNOWN.to_dict()
    # The bootstrap needs a function of sums. Standardised values keep the differences of sums below accurate.
    x, y = ((values - values.mean()) / values.std() for values in (x, y))

    def compute(sums: np.ndarray) -> np.ndarray:
        """Computes the correlation from sums of 1, x, y, xx, yy and xy."""
        mean_x, mean_y, xx, yy, xy = (sums[:, 1:] / sums[:, :1]).T
        return (xy - mean_x * mean_y) / np.sqrt((xx - mean_x**2) * (yy - mean_y**2))

    return resampler.estimate(np.column_stack([np.ones(len(x)), x, y, x * x, y * y, x * y]), compute).to_dict()


def _bin_lengths(resampler: Resampler, ratio: np.ndarray, p_a: np.ndarray, label_a: np.ndarray) -> list[dict]:
    """Estimates the mean p_a and label in bins of equally many battles by length ratio; equal ratios share a bin."""
    if len(ratio) == 0:
        return []
    # unique(): if many battles have one length ratio, quantiles coincide and there are fewer bins.
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
