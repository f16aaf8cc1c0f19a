"""Models ranked by the battles between them: by what a judge predicts, beside what people said.

Bradley-Terry ratings (Bradley and Terry 1952) by evalica, on Elo's scale: 400 points more are ten to one, the mean is
1000. A judge's probabilities count as parts of a win, not its winners: they are what it expects, and a sure verdict
says more than a close one. A judge that is never sure rates all models alike, but ranks them no worse. A tie is half a
win each. Each model also has one drawn battle against a player that is no model, so that a model without a defeat, and
models that never met, have finite ratings.
"""

from collections.abc import Callable, Sequence

import evalica
import numpy as np
import pandas as pd
from scipy import stats

from modeling.evaluation.bootstrap import UNKNOWN, Estimate, Resampler, bound_draws

SCALE, MEAN = 400.0, 1000.0
NO_MODEL = ("", "unknown", "none", "nan")
# What is compared by rank: two models are ranked alike or not, and one of few battles stands anywhere by chance.
LEAST_MODELS, LEAST_BATTLES = 3, 10
MOST_DRAWS = 250  # one takes milliseconds where there are dozens of models


def build_leaderboard(
    resampler: Resampler, p_a: np.ndarray, label_a: np.ndarray, models_a: Sequence, models_b: Sequence
) -> dict:
    """Ratings of the models by people and by the judge, best by people first, and how alike the two rankings are.

    Args:
        resampler: Of the battles, grouped by prompt.
        p_a: The judge's probability that a wins, shape (battles,).
        label_a: People's, shape (battles,).
        models_a, models_b: Names, shape (battles,). Battles of a model with itself, or of one without a name or
            "unknown", are left out.

    Returns:
        battles, draws, models [{"name", "battles", "people", "judge"}], and spearman and kendall: how alike the two
        rankings are, over the `ranked` models with ten battles or more; unknown for fewer than three. Chance lowers a
        correlation, and drawing again lowers it further, so that the interval is rather too low; it always includes
        the value.
    """
    named = [_is_named(a) and _is_named(b) and a != b for a, b in zip(models_a, models_b, strict=True)]
    part = np.array(named, bool)
    pairs = _Pairs(np.array(models_a, object)[part], np.array(models_b, object)[part])
    chances = [pairs.orient(values[part]) for values in (label_a, p_a)]
    num_draws = min(MOST_DRAWS, resampler.num_draws)
    board: dict = {"battles": int(part.sum()), "draws": num_draws, "ranked": 0, "models": []}
    if not part.any():
        return board | {"spearman": UNKNOWN.to_dict(), "kendall": UNKNOWN.to_dict()}
    people, judge = (pairs.rate(chance, np.ones(len(chance))) for chance in chances)
    drawn = [[pairs.rate(chance, times) for chance in chances] for times in resampler.iterate_times(part, num_draws)]
    drawn = np.array(drawn).reshape(-1, 2, len(pairs.models))  # (draws, people or judge, models)
    groups = resampler.groups[part]
    for place in np.argsort(-people, kind="stable"):
        board["models"].append(_build_row(pairs, groups, place, (people, judge), drawn))
    often = np.array([pairs.includes(place).sum() >= LEAST_BATTLES for place in range(len(pairs.models))])
    board["ranked"], num_groups = int(often.sum()), len(np.unique(groups))
    for name, correlate in (("spearman", stats.spearmanr), ("kendall", stats.kendalltau)):
        board[name] = _correlate(correlate, people[often], judge[often], drawn[:, :, often], num_groups).to_dict()
    return board


def _build_row(pairs: "_Pairs", groups: np.ndarray, place: int, ratings: tuple, drawn: np.ndarray) -> dict:
    """A model's ratings by people and by the judge, with intervals from the draws."""
    met = pairs.includes(place)
    row: dict = {"name": str(pairs.models[place]), "battles": int(met.sum())}
    for number, who in enumerate(("people", "judge")):
        ends = bound_draws(drawn[:, number, place], len(np.unique(groups[met])))
        row[who] = Estimate(float(ratings[number][place]), *ends, int(met.sum())).to_dict()
    return row


def rate_models(models_a: Sequence, models_b: Sequence, chances_a: np.ndarray) -> dict[str, float]:
    """Ratings of the models of battles, from the chance (or outcome, 1, 1/2 or 0) of the first."""
    pairs = _Pairs(np.array(models_a, object), np.array(models_b, object))
    ratings = pairs.rate(pairs.orient(np.asarray(chances_a, float)), np.ones(len(models_a)))
    return dict(zip(pairs.models.tolist(), ratings.tolist(), strict=True))


class _Pairs:
    """Which two models meet in each battle: a rating needs no more than each pair's sums."""

    def __init__(self, models_a: np.ndarray, models_b: np.ndarray):
        self.models, numbers = np.unique(np.concatenate([models_a, models_b]), return_inverse=True)
        self.sides = numbers.reshape(2, -1)
        self.turned = self.sides[0] > self.sides[1]
        codes, self.pair = np.unique(
            self.sides.min(axis=0) * len(self.models) + self.sides.max(axis=0), return_inverse=True
        )
        self.first, self.second = codes // max(len(self.models), 1), codes % max(len(self.models), 1)
        player, everyone = len(self.models), list(range(len(self.models)))
        ends = self.first.tolist() + everyone, self.second.tolist() + [player] * player
        # Each pair twice, once won by its first and once by its second, by weight.
        self.left, self.right = ends[0] * 2, ends[1] * 2
        self.winners = [evalica.Winner.X] * len(ends[0]) + [evalica.Winner.Y] * len(ends[0])
        self.index = pd.RangeIndex(player + 1)

    def includes(self, model: int) -> np.ndarray:
        """Which battles a model takes part in."""
        return (self.sides == model).any(axis=0)

    def orient(self, chances_a: np.ndarray) -> np.ndarray:
        """From the chance of each battle's a to that of the pair's first model."""
        return np.where(self.turned, 1 - chances_a, chances_a)

    def rate(self, chances: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Ratings, shape (models,), when each battle counts so many times."""
        total = np.bincount(self.pair, weights=times, minlength=len(self.first))
        won = np.bincount(self.pair, weights=times * chances, minlength=len(self.first))
        drawn = np.full(len(self.models), 0.5)
        weights = np.concatenate([won, drawn, total - won, drawn]).clip(min=0)
        result = evalica.bradley_terry(
            self.left, self.right, self.winners, index=self.index, weights=weights, tolerance=1e-4, limit=10_000
        )
        points = SCALE * np.log10(result.scores.sort_index().to_numpy()[:-1])
        return points - points.mean() + MEAN


def _is_named(model: object) -> bool:
    return model is not None and str(model).strip().lower() not in NO_MODEL


def _correlate(
    correlate: Callable, people: np.ndarray, judge: np.ndarray, drawn: np.ndarray, num_groups: int
) -> Estimate:
    """A rank correlation of the two ratings with its interval; counts models."""
    if len(people) < LEAST_MODELS or np.ptp(people) == 0 or np.ptp(judge) == 0:
        return UNKNOWN
    value = float(correlate(people, judge).statistic)
    low, high = bound_draws(np.array([correlate(*draw).statistic for draw in drawn], float), num_groups)
    return Estimate(value, min(low, value), max(high, value), len(people))
