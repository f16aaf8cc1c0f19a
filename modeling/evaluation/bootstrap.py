"""Bootstrap intervals. The bootstrap draws whole groups of battles, because battles on one prompt are alike.

Pure functions over arrays. All metrics of one `Resampler` use the same draws, so that differences are paired. The ends
are percentiles of the draws, widened for few groups like a t interval (Hesterberg 2015, "What Teachers Should Know
About the Bootstrap", 5.3): plain percentiles are too narrow by sqrt((n - 1) / n), and by using z instead of t. This
module must not know judges, reports or files.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
Z_95 = float(stats.norm.ppf((1 + CONFIDENCE) / 2))
# A draw's mean lies between the smallest and the largest group mean. With n groups that range misses the true median
# with probability 2 / 2^n: 50% for 2 groups, 3% for 6. In simulations, intervals from 2, 4 and 6 groups hold the true
# mean in 48%, 86% and 92% of cases.
LEAST_GROUPS = 6
CELLS = 4_000_000  # draws x battles processed at once: 32 MB as float64


@dataclass(frozen=True)
class Estimate:
    """A metric's value with the ends of its 95% interval, over `count` battles."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{format_estimate(self.to_dict())} on {self.count}"

    def to_dict(self) -> dict:
        """Returns the estimate as JSON values; unknown values and infinite ends are None."""
        ends = {name: float(vars(self)[name]) for name in ("value", "low", "high")}
        return {name: end if np.isfinite(end) else None for name, end in ends.items()} | {"count": int(self.count)}


def format_estimate(estimate: Mapping | None, digits: int = 3, why: str = "") -> str:
    """Formats an estimate as `0.634 [0.584, 0.679]`, without an end that is not a number.

    Args:
        estimate: Result of `Estimate.to_dict`, possibly read back from JSON.
        digits: Decimal places.
        why: The reason if there is no value, which is then shown as `n/a (<why>)`.
    """
    if not estimate or estimate["value"] is None:
        return f"n/a ({why})" if why else "n/a"
    value, *ends = (estimate[name] for name in ("value", "low", "high"))
    if None in ends:
        return f"{value:.{digits}f} (too few for an interval)"
    return f"{value:.{digits}f} [{', '.join(f'{end:.{digits}f}' for end in ends)}]"


UNKNOWN = Estimate(np.nan, np.nan, np.nan, 0)


def bound_share(share: float, count: int) -> tuple[float, float]:
    """Returns Wilson's 95% interval (1927) of a share of `count` independent battles."""
    # Unlike share +- z * standard error, it stays inside 0 and 1 and does not shrink to nothing at their ends.
    ends = stats.binomtest(round(share * count), count).proportion_ci(CONFIDENCE, method="wilson")
    return float(ends.low), float(ends.high)


def forget_certainty(agreement: Estimate) -> Estimate:
    """Returns an agreement beyond chance without its interval if it is 1: all draws agree then, and tell nothing."""
    return replace(agreement, low=np.nan, high=np.nan) if agreement.value == 1 else agreement


def bound_draws(draws: np.ndarray, num_groups: int) -> tuple[float, float]:
    """Returns a metric's interval as widened percentiles of its draws; NaN for fewer groups than `LEAST_GROUPS`.

    Args:
        draws: Value of the metric in each draw, shape (draws,); NaN where a draw has none.
        num_groups: Number of groups that were drawn from.
    """
    draws = draws[~np.isnan(draws)]
    if num_groups < LEAST_GROUPS or len(draws) == 0:
        return np.nan, np.nan
    t = stats.t.ppf((1 + CONFIDENCE) / 2, num_groups - 1)
    tail = stats.norm.cdf(-t * np.sqrt(num_groups / (num_groups - 1)))
    low, high = np.quantile(draws, [tail, 1 - tail])
    return float(low), float(high)


class Resampler:
    """Draws groups of battles with replacement and computes metrics on the draws.

    Args:
        groups: Group number of each battle, shape (battles,); numbers start at 0 and have no gaps.
        draws: Number of draws, each of as many groups as there are. They take groups x draws bytes.
        seed: Seed of the draws; the same groups and seed give the same intervals.

    Example:
        >>> Resampler([0, 0, 1, 2], draws=100).estimate_means(np.array([[1.0], [1.0], [0.0], [1.0]]))[0].value
        0.75
    """

    def __init__(self, groups: Sequence[int], draws: int = 1000, seed: int = 0):
        self.groups = np.asarray(groups, np.int64)
        self.num_draws = draws
        self.num_groups = int(self.groups.max()) + 1 if len(self.groups) else 0
        rng = np.random.default_rng(seed)
        # How often each draw has each group, shape (draws, groups). The mean is 1, so a count never reaches 256.
        self._times = np.zeros((draws, self.num_groups), np.uint8)
        for row in self._times:
            drawn = rng.integers(0, self.num_groups, self.num_groups) if self.num_groups else []
            row[:] = np.bincount(drawn, minlength=self.num_groups)

    def iterate_times(self, part: np.ndarray, draws: int) -> Iterator[np.ndarray]:
        """Yields, for each of the first draws, how often it has each battle of a part, shape (battles of the part,)."""
        groups = self.groups[part]
        for times in self._times[:draws]:
            yield times[groups].astype(float)

    def draw_sums(self, columns: np.ndarray, part: np.ndarray | None = None) -> np.ndarray:
        """Sums columns over the battles of each draw.

        Args:
            columns: Numbers to sum, shape (battles, columns).
            part: Booleans that select battles, shape (battles,); None selects all.

        Returns:
            Sums, shape (draws, columns).
        """
        part = self._read_part(part)
        present, place = np.arange(self.num_groups), self.groups[part]
        few = 2 * self.count_groups(part) < self.num_groups
        if few:
            present, place = np.unique(place, return_inverse=True)
        sums = np.zeros((len(present), columns.shape[1]))
        for column, values in enumerate(columns[part].T):
            sums[:, column] = np.bincount(place, weights=values, minlength=len(present))
        sums, blocks = sums.astype(np.float32), self._split(len(present))
        # float32 halves the time: it is exact for the counts and precise to seven digits for the sums. Selecting groups
        # copies them, which doubles the time if they are most of all groups, so only a few are selected.
        drawn = [(times[:, present] if few else times).astype(np.float32) @ sums for times in blocks]
        return np.concatenate(drawn).astype(float)

    def estimate(
        self,
        columns: np.ndarray,
        compute: Callable[[np.ndarray], np.ndarray],
        part: np.ndarray | None = None,
        *,
        share: bool = False,
    ) -> Estimate:
        """Estimates a metric that is a function of sums over battles.

        Args:
            columns: Numbers to sum, shape (battles, columns).
            compute: Function from sums, shape (n, columns), to n values of the metric; NaN where it has none.
            part: Booleans that select battles; None selects all.
            share: True for a share of yes and no; if all battles agree, the interval is Wilson's over their groups.
        """
        part = self._read_part(part)
        if not part.any():
            return UNKNOWN
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw may have no battle of a small part: 0 / 0
            value = compute(columns[part].sum(axis=0, keepdims=True))[0]
            draws = compute(self.draw_sums(columns, part))
        # If all battles agree, so does every draw, and the percentiles would claim an exact 0 or 1.
        unanimous, num_groups = share and value in (0, 1), self.count_groups(part)
        low, high = bound_share(value, num_groups) if unanimous else bound_draws(draws, num_groups)
        return Estimate(float(value), low, high, int(part.sum()))

    def estimate_means(
        self, values: np.ndarray, parts: np.ndarray | None = None, *, shares: Sequence[int] = ()
    ) -> list[Estimate]:
        """Estimates the mean of each column, in one pass over the draws.

        Args:
            values: Numbers to average, shape (battles, columns).
            parts: Booleans that select each column's battles, of the same shape or (battles, 1); None selects all.
            shares: Indices of the columns that are shares of yes and no; see `estimate`.

        Returns:
            One estimate per column; `UNKNOWN` for a column without battles.
        """
        parts = np.broadcast_to(True if parts is None else parts, values.shape)
        values = np.where(parts, values, 0)
        counts = parts.sum(axis=0)
        sums = self.draw_sums(np.hstack([values, parts]), parts.any(axis=1))
        with np.errstate(invalid="ignore"):  # a draw may have no battle of a small part
            draws = sums[:, : len(counts)] / sums[:, len(counts) :]
        estimates = [UNKNOWN] * len(counts)
        for column in np.flatnonzero(counts):
            value = values[:, column].sum() / counts[column]
            num_groups = self.count_groups(parts[:, column])
            unanimous = column in shares and value in (0, 1)
            ends = bound_share(value, num_groups) if unanimous else bound_draws(draws[:, column], num_groups)
            estimates[column] = Estimate(float(value), *ends, int(counts[column]))
        return estimates

    def estimate_weighted(
        self, values: Sequence[np.ndarray], parts: Sequence[np.ndarray], weights: Sequence[float]
    ) -> list[Estimate]:
        """Estimates a weighted sum of means, each over its own part, as the score of a benchmark is.

        Args:
            values: Numbers to average for each part, shape (battles, columns) each.
            parts: Booleans that select the battles of each part, shape (battles,) each; at least one battle.
            weights: Weight of each part.

        Returns:
            One estimate per column.
        """
        means = np.array([each[part].mean(axis=0) for each, part in zip(values, parts, strict=True)])
        draws = np.zeros((self.num_draws, means.shape[1]))
        for each, part, weight in zip(values, parts, weights, strict=True):
            sums = self.draw_sums(np.column_stack([each, np.ones(len(each))]), part)
            with np.errstate(invalid="ignore"):  # a draw may have no battle of a small part
                draws += weight * sums[:, :-1] / sums[:, -1:]
        union = np.any(parts, axis=0)
        num_groups, estimates = self.count_groups(union), []
        for of_parts, drawn in zip(means.T, draws.T, strict=True):
            # As in `estimate`: where all battles agree, so do all draws, which would claim an exact 0 or 1.
            unanimous = of_parts[0] in (0, 1) and (of_parts == of_parts[0]).all()
            ends = bound_share(of_parts[0], num_groups) if unanimous else bound_draws(drawn, num_groups)
            estimates.append(Estimate(float(np.dot(weights, of_parts)), *ends, int(union.sum())))
        return estimates

    def estimate_auc(self, scores: np.ndarray, positive: np.ndarray, part: np.ndarray | None = None) -> Estimate:
        """Estimates the AUC: how often a positive battle scores higher than a negative one, counting ties half.

        Args:
            scores: Shape (battles,).
            positive: Booleans, shape (battles,).
            part: Booleans that select battles; None selects all.

        Returns:
            `UNKNOWN` if the part does not have both positive and negative battles.
        """
        part = self._read_part(part)
        if positive[part].all() or not positive[part].any():
            return UNKNOWN
        order = np.flatnonzero(part)[np.argsort(scores[part], kind="stable")]
        scores, positive, groups = scores[order], positive[order], self.groups[order]
        value = _compute_areas(np.ones((1, len(order))), scores, positive)[0]
        # Times 4, because `_compute_areas` keeps several numbers per draw and battle.
        areas = [_compute_areas(times[:, groups], scores, positive) for times in self._split(4 * len(order))]
        return Estimate(float(value), *bound_draws(np.concatenate(areas), len(np.unique(groups))), len(order))

    def _read_part(self, part: np.ndarray | None) -> np.ndarray:
        """Returns the battles of a part as booleans, shape (battles,)."""
        return np.full(len(self.groups), True) if part is None else np.asarray(part, bool)

    def count_groups(self, part: np.ndarray) -> int:
        """Counts the groups that have a battle in a part."""
        return int(np.count_nonzero(np.bincount(self.groups[part], minlength=self.num_groups)))

    def _split(self, width: int) -> list[np.ndarray]:
        """Splits the draws into blocks, so that a block of that width has at most `CELLS` numbers."""
        rows = max(1, CELLS // max(width, 1))
        return [self._times[start : start + rows] for start in range(0, len(self._times), rows)]


def _compute_areas(times: np.ndarray, scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Computes the AUC of each draw, shape (draws,).

    Args:
        times: How often each draw has each battle, shape (draws, battles).
        scores: Scores in ascending order, shape (battles,).
        positive: Booleans, shape (battles,).
    """
    # Not scikit-learn's roc_auc_score, which would sort again for each of 1,000 draws: here all draws share one order.
    # A positive battle beats the negative ones with lower scores and half of those with its own, found by running sums.
    winners = np.flatnonzero(positive)
    below, up_to = (np.searchsorted(scores, scores[winners], side) for side in ("left", "right"))
    lost = np.zeros((len(times), len(scores) + 1))  # (draws, battles + 1)
    np.cumsum(times * ~positive, axis=1, out=lost[:, 1:])
    won = times[:, winners]
    beaten = np.einsum("ij,ij->i", won, lost[:, below] + lost[:, up_to]) / 2
    with np.errstate(invalid="ignore"):  # a draw may have only positive or only negative battles
        return beaten / (won.sum(axis=1, dtype=float) * lost[:, -1])
