"""Leaderboards: the models of the battles rated by the judge's predictions, beside the ratings by people's labels.

The ratings are Bradley-Terry's (1952), computed by evalica, on Elo's scale: 400 points mean odds of ten to one, and the
mean is 1000. A verdict counts by its probability, not by its winner: p_a is the expected win of a. A judge that is less
confident rates models closer together, but does not rank them worse. A tie is half a win for each. This module must not
know how predictions are made.
"""

from collections.abc import Callable, Sequence

import evalica
import numpy as np
import pandas as pd
from scipy import stats

from modeling.evaluation.bootstrap import UNKNOWN, Estimate, Resampler, bound_draws

SCALE, MEAN = 400.0, 1000.0
NO_MODEL = ("", "unknown", "none", "nan")
# Rank correlations need three models, as two can only be ranked alike or not, and ten battles each, as the rank of a
# model with fewer is mostly chance.
LEAST_MODELS, LEAST_BATTLES = 3, 10
MOST_DRAWS = 250  # each draw takes milliseconds for dozens of models


def build_leaderboard(
    resampler: Resampler, p_a: np.ndarray, label_a: np.ndarray, models_a: Sequence, models_b: Sequence
) -> dict:
    """Rates the models by people's labels and by the judge, and compares the two rankings.

    Args:
        resampler: Resampler of the battles, grouped by prompt.
        p_a: The judge's probability that a wins, shape (battles,).
        label_a: People's probability that a wins, shape (battles,).
        models_a, models_b: Names of the models, shape (battles,). Battles of a model against itself, or with a model
            that is unnamed or "unknown", are left out.

    Returns:
        battles, draws, ranked: Numbers of battles, of bootstrap draws, and of models in the rank correlations.
        models: {"name", "battles", "people", "judge"} for each model, best by people first.
        spearman, kendall: Rank correlations over the models with at least ten battles; unknown for fewer than three.
            Their intervals lie rather too low, and always include the value.
    """
    part = find_named(models_a, models_b)
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
    """Builds a model's row: its ratings by people and by the judge, with intervals from the draws."""
    met = pairs.includes(place)
    row: dict = {"name": str(pairs.models[place]), "battles": int(met.sum())}
    for number, who in enumerate(("people", "judge")):
        ends = bound_draws(drawn[:, number, place], len(np.unique(groups[met])))
        row[who] = Estimate(float(ratings[number][place]), *ends, int(met.sum())).to_dict()
    return row


def rate_models(models_a: Sequence, models_b: Sequence, chances_a: np.ndarray) -> dict[str, float]:
    """Rates the models of battles by the probability that a wins, or by outcomes (1, 1/2 or 0).

    Returns:
        {model: rating}.
    """
    pairs = _Pairs(np.array(models_a, object), np.array(models_b, object))
    ratings = pairs.rate(pairs.orient(np.asarray(chances_a, float)), np.ones(len(models_a)))
    return dict(zip(pairs.models.tolist(), ratings.tolist(), strict=True))


def fit_strengths(
    first: Sequence[int],
    second: Sequence[int],
    won: np.ndarray,
    lost: np.ndarray,
    num_players: int,
    tolerance: float,
) -> np.ndarray:
    """Fits Bradley-Terry strengths by maximum likelihood: i beats j with probability s_i / (s_i + s_j).

    Args:
        first, second: Numbers of the players of each pair, from 0.
        won, lost: Wins of the first and of the second player of each pair, whole or not, shape (pairs,).
        num_players: Number of players.
        tolerance: Iterations stop when the strengths change by less.

    Returns:
        Strengths up to a common factor, shape (players,).
    """
    # evalica takes winners, not probabilities: each pair appears twice, once won by its first player and once by its
    # second, weighted by the wins.
    winners = [evalica.Winner.X] * len(won) + [evalica.Winner.Y] * len(lost)
    result = evalica.bradley_terry(
        [*first, *first],
        [*second, *second],
        winners,
        index=pd.RangeIndex(num_players),
        weights=np.concatenate([won, lost]),
        tolerance=tolerance,
        limit=10_000,
    )
    return result.scores.sort_index().to_numpy()


class _Pairs:
    """The pair of models in each battle. Ratings need only sums over the battles of each pair, so draws are cheap."""

    def __init__(self, models_a: np.ndarray, models_b: np.ndarray):
        self.models, numbers = np.unique(np.concatenate([models_a, models_b]), return_inverse=True)
        self.sides = numbers.reshape(2, -1)
        self.turned = self.sides[0] > self.sides[1]
        codes, self.pair = np.unique(
            self.sides.min(axis=0) * len(self.models) + self.sides.max(axis=0), return_inverse=True
        )
        self.first, self.second = codes // max(len(self.models), 1), codes % max(len(self.models), 1)
        # Each model also draws one battle against an invented player. Without it, a model that never lost, and models
        # that never met, would have infinite ratings.
        player, everyone = len(self.models), list(range(len(self.models)))
        self.ends = self.first.tolist() + everyone, self.second.tolist() + [player] * player

    def includes(self, model: int) -> np.ndarray:
        """Returns which battles a model takes part in, booleans of shape (battles,)."""
        return (self.sides == model).any(axis=0)

    def orient(self, chances_a: np.ndarray) -> np.ndarray:
        """Converts the probability that a wins to the probability that the first model of the pair wins."""
        return np.where(self.turned, 1 - chances_a, chances_a)

    def rate(self, chances: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Computes ratings, shape (models,), in which each battle counts the given number of times."""
        total = np.bincount(self.pair, weights=times, minlength=len(self.first))
        won = np.bincount(self.pair, weights=times * chances, minlength=len(self.first))
        drawn = np.full(len(self.models), 0.5)
        lost = (total - won).clip(min=0)  # rounding: it may be -1e-17
        wins = np.concatenate([won, drawn]), np.concatenate([lost, drawn])
        strengths = fit_strengths(*self.ends, *wins, len(self.models) + 1, tolerance=1e-4)
        return scale_strengths(np.log(strengths[:-1]))  # without the invented player


def scale_strengths(logs: np.ndarray) -> np.ndarray:
    """Converts natural logarithms of strengths, shape (..., models), to ratings of mean `MEAN` on Elo's scale."""
    points = SCALE / np.log(10) * logs
    return points - points.mean(axis=-1, keepdims=True) + MEAN


def find_named(models_a: Sequence, models_b: Sequence) -> np.ndarray:
    """Returns which battles are between two different models with names, booleans of shape (battles,)."""
    named = [_is_named(a) and _is_named(b) and a != b for a, b in zip(models_a, models_b, strict=True)]
    return np.array(named, bool)


def _is_named(model: object) -> bool:
    """Returns whether a model has a name; data sets write "unknown", "none" or NaN for those without."""
    return model is not None and str(model).strip().lower() not in NO_MODEL


def _correlate(
    correlate: Callable, people: np.ndarray, judge: np.ndarray, drawn: np.ndarray, num_groups: int
) -> Estimate:
    """Estimates a rank correlation of the two ratings; its count is the number of models."""
    if len(people) < LEAST_MODELS or np.ptp(people) == 0 or np.ptp(judge) == 0:
        return UNKNOWN
    value = float(correlate(people, judge).statistic)
    low, high = bound_draws(np.array([correlate(*draw).statistic for draw in drawn], float), num_groups)
    # Chance lowers a correlation, and resampling lowers it further: the interval may lie below the value itself.
    return Estimate(value, min(low, value), max(high, value), len(people))
