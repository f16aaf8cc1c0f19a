"""Votes and judge together: win rates, ratings and agreement from few votes by people and verdicts on many battles.

Puts the estimates of `prediction_powered` into a part of the report. Pure functions over arrays; this module must not
know judges or files.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from modeling.evaluation.biases import estimate_consistency
from modeling.evaluation.bootstrap import Estimate, Resampler, forget_certainty
from modeling.evaluation.leaderboard import LEAST_BATTLES, find_named
from modeling.evaluation.metrics import find_decided
from modeling.evaluation.prediction_powered import estimate_mean, rate_models


def build_votes(
    resampler: Resampler,
    p_a: np.ndarray,
    label_a: np.ndarray,
    passes: Mapping[str, np.ndarray],
    models_a: Sequence | None = None,
    models_b: Sequence | None = None,
) -> dict:
    """Estimates what people prefer from their votes and the judge's verdicts, and how well the two agree.

    Args:
        resampler: Resampler of all judged battles, grouped by prompt.
        p_a: The judge's probability that a wins, shape (battles,).
        label_a: People's probability that a wins, shape (battles,); NaN for battles without a vote.
        passes: {name: p_a of shape (battles,)}, see `estimate_position_bias`.
        models_a, models_b: Names of the models, shape (battles,); None if they are not known.

    Returns:
        votes, battles: Numbers of battles with a vote, and of all.
        share_a: How often people prefer a; like all that follow, a `Powered` as JSON values.
        models: {"name", "win_rate", "rating"} of each model, best first. The rating is None for models with fewer than
            ten votes against models that are rated.
        pairs: {"first", "second", "win_rate"} of each pair with ten votes or more: how often the first wins.
        agreement, kappa: Share of decided votes that the judge agrees with, and Cohen's kappa.
        position_consistency, self_consistency: See `estimate_consistency`; on all battles.
    """
    voted, groups = ~np.isnan(label_a), resampler.groups
    found: dict = {"votes": int(voted.sum()), "battles": len(p_a)}
    found["share_a"] = estimate_mean(label_a, p_a, groups).to_dict()
    found |= {"models": [], "pairs": []}
    if models_a is not None and models_b is not None and (part := find_named(models_a, models_b)).any():
        sides = [np.array(models, object)[part].astype(str) for models in (models_a, models_b)]
        names, numbers = np.unique(np.concatenate(sides), return_inverse=True)
        rows = label_a[part], p_a[part], groups[part]
        found["models"] = _list_models(names, *numbers.reshape(2, -1), *rows)
        found["pairs"] = _list_pairs(names, *numbers.reshape(2, -1), *rows)
    found |= estimate_agreement(resampler, p_a, label_a)
    return found | estimate_consistency(resampler, p_a, passes)


def _list_models(names, first, second, label, p, groups) -> list[dict]:
    """Lists each model's win rate and rating, best first."""
    rated = _find_rated(first, second, ~np.isnan(label), len(names))
    inside = rated[first] & rated[second]
    numbers = np.cumsum(rated) - 1
    battles = (numbers[first[inside]], numbers[second[inside]], label[inside], p[inside], groups[inside])
    ratings = iter(rate_models(*battles) if inside.any() else ())
    rows = []
    for model, name in enumerate(names.tolist()):
        part = (first == model) | (second == model)
        turned = second[part] == model
        sides = (np.where(turned, 1 - each[part], each[part]) for each in (label, p))
        win_rate = estimate_mean(*sides, groups[part]).to_dict()
        rows.append({"name": name, "win_rate": win_rate, "rating": next(ratings).to_dict() if rated[model] else None})
    # Models without a rating come last, by what the judge alone says.
    return sorted(
        rows,
        key=lambda row: (-row["rating"]["both"]["value"] if row["rating"] else 0, -row["win_rate"]["judge"]["value"]),
    )


def _find_rated(first: np.ndarray, second: np.ndarray, voted: np.ndarray, num_models: int) -> np.ndarray:
    """Returns which models have enough votes against models that have enough votes, booleans of shape (models,)."""
    rated = np.full(num_models, True)
    while True:
        part = voted & rated[first] & rated[second]
        counts = np.bincount(np.append(first[part], second[part]), minlength=num_models)
        if (counts[rated] >= LEAST_BATTLES).all():
            return rated
        rated &= counts >= LEAST_BATTLES


def _list_pairs(names, first, second, label, p, groups) -> list[dict]:
    """Lists how often the first model of each pair with enough votes wins, by the names' order."""
    turned = first > second
    label, p = (np.where(turned, 1 - each, each) for each in (label, p))
    codes, pair = np.unique(np.minimum(first, second) * len(names) + np.maximum(first, second), return_inverse=True)
    often = np.bincount(pair[~np.isnan(label)], minlength=len(codes)) >= LEAST_BATTLES
    rows = []
    for number in np.flatnonzero(often):
        part, sides = pair == number, divmod(int(codes[number]), len(names))
        win_rate = estimate_mean(label[part], p[part], groups[part]).to_dict()
        rows.append({"first": names[sides[0]].item(), "second": names[sides[1]].item(), "win_rate": win_rate})
    return rows


def estimate_agreement(resampler: Resampler, p_a: np.ndarray, label_a: np.ndarray) -> dict[str, dict]:
    """Estimates the share of decided votes that a judge agrees with, and Cohen's kappa (1960), on the same votes.

    Kappa is 0 for a judge that agrees by chance alone and 1 for one that always agrees. Arguments: see `build_votes`.
    """
    label_a = np.where(np.isnan(label_a), 0.5, label_a)  # without a vote or a winner
    decided = find_decided(np.column_stack([label_a, 1 - label_a]))
    people, judge = label_a > 0.5, p_a >= 0.5
    columns = np.column_stack([np.ones(len(p_a)), people == judge, people, judge]).astype(float)

    def compute_kappa(sums: np.ndarray) -> np.ndarray:
        """Computes kappa from the numbers of battles, of agreements, and of a's wins by people and by the judge."""
        same, people, judge = (sums[:, 1:] / sums[:, :1]).T
        chance = people * judge + (1 - people) * (1 - judge)
        return (same - chance) / (1 - chance)

    agreement = resampler.estimate(columns, lambda sums: sums[:, 1] / sums[:, 0], decided, share=True)
    kappa: Estimate = forget_certainty(resampler.estimate(columns, compute_kappa, decided))
    return {"agreement": agreement.to_dict(), "kappa": kappa.to_dict()}
