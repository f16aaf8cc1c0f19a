"""Prediction-powered inference: valid intervals from few votes by people and many verdicts by a judge.

The judge's verdicts on all battles are corrected by how wrong they are on the battles that people voted on, which must
be a random sample of the battles. The intervals then hold the truth whatever the judge's errors are, if there are
enough votes to show them; the better the judge, the narrower they are. A power lambda is the weight of the judge: 0
leaves the votes alone, 1 is the original method, and the one with the smallest variance is found from the data.

Four things are added: the battles of a group, which share a prompt, are a cluster; the intervals use Student's t;
shares have Wilson's interval if all votes agree; and a judge with fewer than `LEAST_ERRORS` errors on the votes gets no
weight. Tests simulate shares from 10 votes on, and ratings with 200. Pure functions over arrays; this module must not
know judges or files.

Sources: Angelopoulos et al. 2023, "Prediction-powered inference" (Science 382); Angelopoulos, Duchi and Zrnic 2023,
"PPI++" (arXiv 2311.01453), whose sections and equations are cited below.
"""

from dataclasses import dataclass

import numpy as np
from scipy import optimize, sparse, special, stats

from modeling.evaluation.bootstrap import CONFIDENCE, LEAST_GROUPS, UNKNOWN, Estimate, bound_share
from modeling.evaluation.leaderboard import scale_strengths

# Groups. Fewer errors of the judge on the votes do not tell how wrong it is elsewhere, so it gets no weight. Otherwise,
# with 10 votes of 5,000 battles and a judge that is sure and right in 93%, 95% intervals hold the truth in 60% to 70%.
LEAST_ERRORS = 3
ROUNDING = 1e-9  # a smaller standard error is 0 but for rounding


@dataclass(frozen=True)
class Powered:
    """One quantity estimated by the votes alone, by the judge alone, and by both together.

    The interval of `judge` is not valid for people's votes: it only says what this judge would find on other battles.
    `effective_votes` is how many votes without a judge give the same width as `both`; NaN if all votes agree or there
    are too few for an interval. `votes_to_halve` is how many more votes halve that width; None if that is unknown, or
    takes more votes than there are battles.
    """

    votes: Estimate
    judge: Estimate
    both: Estimate
    power: float
    effective_votes: float
    votes_to_halve: int | None

    def to_dict(self) -> dict:
        """Returns JSON values."""
        estimates = {name: vars(self)[name].to_dict() for name in ("votes", "judge", "both")}
        effective = float(self.effective_votes) if np.isfinite(self.effective_votes) else None
        numbers = {"effective_votes": effective, "votes_to_halve": self.votes_to_halve}
        return estimates | {"power": float(self.power)} | numbers


def estimate_mean(
    labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray, power: float | None = None
) -> Powered:
    """Estimates a mean label, such as a win rate (PPI++, section 2).

    Args:
        labels: People's labels, shape (battles,); NaN for battles without a vote.
        predictions: The judge's predictions of these labels, shape (battles,).
        groups: Group number of each battle, shape (battles,); groups are independent.
        power: Lambda, from 0 to 1; None finds it.
    """
    voted, scores = ~np.isnan(labels), predictions[:, None]
    everything = np.full(len(labels), True)
    by_judge = _center(scores, everything, groups)
    judge = _bound_share(predictions.mean(), by_judge, len(np.unique(groups)), len(labels))
    if not voted.any():
        return Powered(UNKNOWN, _clip(judge), UNKNOWN, 0.0, np.nan, None)
    mean, counts = labels[voted].mean(), (len(np.unique(groups[voted])), int(voted.sum()))
    by_votes, shift = _sum_influences(labels[:, None], scores, voted, groups)
    votes = _bound_share(mean, by_votes, *counts)
    if mean in (0, 1):  # such votes do not tell how much votes vary, nor how wrong the judge is
        return Powered(votes, _clip(judge), votes, 0.0, np.nan, None)
    known = _knows_errors(labels, predictions, groups)
    used = (_tune(by_votes, shift) if known else 0.0) if power is None else power
    gap = predictions[voted].mean() - predictions[~voted].mean() if not voted.all() else 0.0
    fitted = 1 + (power is None and used > 0)
    both = _bound(mean - used * gap, by_votes - used * shift, *counts, fitted)
    worth = _count_votes(votes, both, len(labels))  # of the whole widths
    return Powered(_clip(votes), _clip(judge), _clip(both), used, *worth)


def rate_models(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    predictions: np.ndarray,
    groups: np.ndarray,
    power: float | None = None,
) -> list[Powered]:
    """Rates models by Bradley-Terry on the leaderboard's scale, with PPI++ for logistic regression (section 3).

    One lambda serves all models: that with the smallest sum of their variances. As in the leaderboard, each model also
    draws one battle against an invented player.

    Args:
        first, second: Numbers of each battle's models, from 0, shape (battles,). Every model has votes.
        labels: People's probability that the first wins, shape (battles,); NaN for battles without a vote.
        predictions: The judge's probability that the first wins, shape (battles,).
        groups, power: As in `estimate_mean`.
    """
    voted = ~np.isnan(labels)
    design = build_design(first, second)
    alone = fit_logistic(design, labels, predictions, groups, power=0.0, prior=1)
    centre = scale_strengths(np.eye(design.shape[1])) - scale_strengths(np.zeros(design.shape[1]))
    known = _knows_errors(labels, predictions, groups)
    used = (_tune(alone.by_votes @ centre, alone.shift @ centre) if known else 0.0) if power is None else power
    both = fit_logistic(design, labels, predictions, groups, power=used, prior=1)
    judge = fit_logistic(design, predictions, predictions, groups, power=0.0, prior=1)
    spreads = [alone.by_votes @ centre, judge.by_votes @ centre, (both.by_votes - used * both.shift) @ centre]
    values = [scale_strengths(fit.coefficients) for fit in (alone, judge, both)]
    parts, tuned = (voted, np.full(len(labels), True), voted), (0, 0, int(power is None and used > 0))
    found = []
    for model in range(design.shape[1]):
        met = (first == model) | (second == model)
        estimates = []
        for value, spread, part, spent in zip(values, spreads, parts, tuned, strict=True):
            # The interval comes from all battles, unless the model's own are too few for one.
            own, everyone = (len(np.unique(groups[rows])) for rows in (part & met, part))
            num_groups, fitted = own if own < LEAST_GROUPS else everyone, design.shape[1] - 1 + spent
            estimates.append(_bound(value[model], spread[:, model], num_groups, int((part & met).sum()), fitted))
        found.append(Powered(*estimates, used, *_count_votes(estimates[0], estimates[2], int(met.sum()))))
    return found


def build_design(first: np.ndarray, second: np.ndarray) -> sparse.csr_array:
    """Returns a row per battle with 1 for its first model and -1 for its second, shape (battles, models)."""
    rows, num_models = np.arange(len(first)), int(max(first.max(), second.max())) + 1
    cells = np.repeat([1.0, -1.0], len(rows)), (np.tile(rows, 2), np.append(first, second))
    return sparse.csr_array(cells, shape=(len(rows), num_models))


@dataclass(frozen=True)
class LogisticFit:
    """A regression's coefficients and how far each group moves them: by its votes, minus power times its shift."""

    coefficients: np.ndarray  # (columns,)
    by_votes: np.ndarray  # (groups, columns)
    shift: np.ndarray  # (groups, columns)


def fit_logistic(
    design: sparse.csr_array,
    labels: np.ndarray,
    predictions: np.ndarray,
    groups: np.ndarray,
    *,
    power: float,
    prior: float = 0,
) -> LogisticFit:
    """Fits a prediction-powered logistic regression without an intercept (PPI++, equation 3).

    The loss is the mean over the votes, plus power times the difference of the mean over the other battles, with
    predictions for labels, and the same mean over the battles with votes.

    Args:
        design: Features, shape (battles, columns).
        labels: Labels from 0 to 1, shape (battles,); NaN for battles without a vote.
        predictions: The judge's predictions of the labels, shape (battles,).
        groups: Group number of each battle, shape (battles,).
        power: Lambda, from 0 to 1.
        prior: Number of draws added to the votes for each column's feature alone, which keeps coefficients finite.
    """
    voted = ~np.isnan(labels)
    power = 0.0 if voted.all() else power  # there are no other battles for the judge to add
    shares = np.where(voted, 1 / voted.sum(), 1 / max((~voted).sum(), 1))
    labels = np.where(voted, labels, 0)
    weights = shares * np.where(voted, 1 - power, power)
    target = design.T @ (shares * np.where(voted, labels - power * predictions, power * predictions))
    loss = _LogisticLoss(design, weights, target, prior / voted.sum())
    found = optimize.minimize(
        loss.compute,
        np.zeros(design.shape[1]),
        jac=loss.compute_gradient,
        hess=loss.compute_hessian,
        method="trust-exact",
        options={"gtol": 1e-9},
    ).x
    means = special.expit(design @ found)
    scores = (design.multiply((each - means)[:, None]).tocsr() for each in (labels, predictions))
    by_votes, shift = _sum_influences(*scores, voted, groups)
    inverse = np.linalg.inv(loss.compute_hessian(found))
    return LogisticFit(found, by_votes @ inverse, shift @ inverse)


@dataclass(frozen=True)
class _LogisticLoss:
    """A weighted logistic loss by its coefficients x, but for what does not depend on them.

    `target` is the weighted sum of features times labels, shape (columns,), which may be of any size: labels less
    predictions are no probabilities. `draws` is the weight of a draw that is added for each column's feature alone.
    """

    design: sparse.csr_array
    weights: np.ndarray
    target: np.ndarray
    draws: float

    def compute(self, x: np.ndarray) -> float:
        """Computes the loss."""
        prior = self.draws * (np.logaddexp(0, x) - x / 2).sum()
        return self.weights @ np.logaddexp(0, self.design @ x) - self.target @ x + prior

    def compute_gradient(self, x: np.ndarray) -> np.ndarray:
        """Computes the first derivatives, shape (columns,)."""
        prior = self.draws * (special.expit(x) - 0.5)
        return self.design.T @ (self.weights * special.expit(self.design @ x)) - self.target + prior

    def compute_hessian(self, x: np.ndarray) -> np.ndarray:
        """Computes the second derivatives, shape (columns, columns)."""
        slopes = self.weights * special.expit(self.design @ x) * special.expit(-(self.design @ x))
        curves = (self.design.T @ self.design.multiply(slopes[:, None]).tocsr()).toarray()
        return curves + np.diag(self.draws * special.expit(x) * special.expit(-x))


# --- influences -------------------------------------------------------------------------------------------------------


def _sum_influences(by_labels, by_predictions, voted: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sums by group what each battle adds to the votes' mean score, and to the judge's there minus its elsewhere.

    Both have the shape (groups, columns), and the mean 0 but for rounding.
    """
    # A sum of squares over groups is then the variance of a mean, whether or not a group has votes on all its battles.
    of_votes = _center(by_labels, voted, groups)
    if voted.all():
        return of_votes, np.zeros_like(of_votes)
    return of_votes, _center(by_predictions, voted, groups) - _center(by_predictions, ~voted, groups)


def _center(scores, part: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Sums by group the differences of a part's scores from their mean, divided by their number."""
    place = np.flatnonzero(part)
    cells = np.full(len(place), 1 / len(place)), (groups[place], np.arange(len(place)))
    sums = sparse.csr_array(cells, shape=(int(groups.max()) + 1, len(place)))
    found = sums @ scores[place]
    found = found.toarray() if sparse.issparse(found) else found
    return found - sums.sum(axis=1)[:, None] * found.sum(axis=0)


def _knows_errors(labels: np.ndarray, predictions: np.ndarray, groups: np.ndarray) -> bool:
    """Returns whether the judge names another winner than the votes of at least `LEAST_ERRORS` groups."""
    # A label may be a share of several votes. Comparisons with NaN, of battles without a vote, are false.
    return len(np.unique(groups[(labels - 0.5) * (predictions - 0.5) < 0])) >= LEAST_ERRORS


def _tune(by_votes: np.ndarray, shift: np.ndarray) -> float:
    """Returns the power with the smallest sum of variances (PPI++, section 6), from 0 to 1."""
    # The sum of squares of by_votes - power * shift is smallest at the slope of a regression through 0.
    squares = (shift**2).sum()
    return float(np.clip((by_votes * shift).sum() / squares, 0, 1)) if squares > 0 else 0.0


def _bound_share(share: float, influences: np.ndarray, num_groups: int, count: int) -> Estimate:
    """Builds the estimate of a share from 0 to 1; if all battles agree, the interval is Wilson's over their groups."""
    if share in (0, 1):
        return Estimate(float(share), *bound_share(share, num_groups), count)
    return _bound(share, influences, num_groups, count)


def _clip(estimate: Estimate) -> Estimate:
    """Moves a share and the ends of its interval into 0 to 1."""
    return Estimate(*np.clip([estimate.value, estimate.low, estimate.high], 0, 1).tolist(), estimate.count)


def _bound(value: float, influences: np.ndarray, num_groups: int, count: int, fitted: int = 1) -> Estimate:
    """Builds an estimate with an interval of Student's t; without one if there are too few groups or all are alike.

    Args:
        value: The estimate itself.
        influences: Influence of each group, shape (groups,).
        num_groups: Number of groups that the estimate is from.
        count: Number of battles to report.
        fitted: Number of fitted parameters, of which each costs a degree of freedom; a tuned power is one.
    """
    freedom, error = num_groups - fitted, np.sqrt((influences**2).sum())
    if num_groups < LEAST_GROUPS or freedom < 1 or error < ROUNDING:
        return Estimate(float(value), np.nan, np.nan, count)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, freedom) * error * np.sqrt(num_groups / freedom)
    return Estimate(float(value), float(value - half), float(value + half), count)


def _count_votes(votes: Estimate, both: Estimate, num_battles: int) -> tuple[float, int | None]:
    """Computes `effective_votes` and `votes_to_halve` of `Powered`.

    With a judge whose predictions correlate with the labels by r, the variance after n of T battles has a vote is
    s^2 (1 - r^2) / n + s^2 r^2 / T: the smallest variance over lambda of PPI++, with T - n for its N.
    """
    num_votes, wide, narrow = votes.count, (votes.high - votes.low) ** 2, (both.high - both.low) ** 2
    if np.isnan(narrow):
        return np.nan, None
    rest = 1 - num_votes / num_battles
    explained = min((1 - narrow / wide) / rest, 1.0) if rest and narrow < wide else 0.0  # r^2
    falling, fixed = wide * num_votes * (1 - explained), wide * num_votes * explained / num_battles
    needed = falling / (narrow / 4 - fixed) if narrow / 4 > fixed else np.inf
    return num_votes * wide / narrow, int(np.ceil(needed - num_votes)) if needed <= num_battles else None
