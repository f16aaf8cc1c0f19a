"""Agreement of annotators: percent agreement, Krippendorff's alpha, and each annotator against the others and a judge.

Pure functions over arrays. It must not know battles or files.
"""

from collections.abc import Sequence

import numpy as np

from modeling.evaluation.bootstrap import Resampler, forget_certainty

CATEGORIES = np.array([0.0, 0.5, 1.0])  # b, a tie, a


def measure_agreement(
    votes: np.ndarray, annotators: Sequence[str], resampler: Resampler, judge: np.ndarray | None = None
) -> dict:
    """Measures how far annotators agree.

    Args:
        votes: Shape (battles, annotators): 1 for a, 0 for b, 1/2 for a tie, NaN where an annotator has no vote.
        annotators: Their names.
        resampler: Draws groups of these battles.
        judge: p_a of a judge, shape (battles,).

    Returns:
        `battles` with a vote, `votes`, `shared`: the battles with two votes or more. `percent_agreement`: the share of
        pairs of votes on a battle that are equal. `alpha`: see `_compute_alpha`. `annotators`: by name, the number of
        votes, and the agreement `with_others`: how often a vote is that of most of the others, battles where they
        draw left out, and `with_judge`: how often a vote for an answer is the judge's, ties left out. Each as
        `Estimate.to_dict`; None without such votes.
    """
    given = ~np.isnan(votes)
    counts = (votes[:, :, None] == CATEGORIES).sum(axis=1)  # (battles, categories)
    shared, columns = counts.sum(axis=1) > 1, _count_pairs(counts)
    agreed: dict = {"percent_agreement": None, "alpha": None}
    if shared.any():
        agreed["percent_agreement"] = resampler.estimate(columns, _compute_percent, shared, share=True).to_dict()
        agreed["alpha"] = forget_certainty(resampler.estimate(columns, _compute_alpha, shared)).to_dict()
    return {
        "battles": int(given.any(axis=1).sum()),
        "votes": int(given.sum()),
        "shared": int(shared.sum()),
        **agreed,
        "annotators": {
            name: {"votes": int(given[:, place].sum())} | _compare_annotator(votes, place, resampler, judge)
            for place, name in enumerate(annotators)
        },
    }


def _count_pairs(counts: np.ndarray) -> np.ndarray:
    """Returns what agreement is a function of the sums of, shape (battles, 3 + categories).

    Equal pairs, all pairs, disagreement (ordered unequal pairs / (votes - 1)), and the votes of each category.
    """
    votes = counts.sum(axis=1)
    pairs, equal = votes * (votes - 1) / 2, (counts * (counts - 1) / 2).sum(axis=1)
    disagreement = 2 * (pairs - equal) / np.maximum(votes - 1, 1)
    return np.column_stack([equal, pairs, disagreement, counts])


def _compute_percent(sums: np.ndarray) -> np.ndarray:
    """Returns the share of pairs of votes that are equal, by row of sums."""
    return sums[:, 0] / sums[:, 1]


def _compute_alpha(sums: np.ndarray) -> np.ndarray:
    """Returns Krippendorff's alpha for nominal categories by row of sums: 1 is agreement, 0 what chance gives.

    Unlike Fleiss' kappa, it needs no equal number of votes on each battle. NaN if all votes are of one category: then
    agreement by chance is complete too. Source: Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability".
    """
    categories, total = sums[:, 3:], sums[:, 3:].sum(axis=1)
    by_chance = (total**2 - (categories**2).sum(axis=1)) / (total - 1)
    return 1 - sums[:, 2] / np.where(by_chance > 0, by_chance, np.nan)


def _compare_annotator(votes: np.ndarray, place: int, resampler: Resampler, judge: np.ndarray | None) -> dict:
    """Returns one annotator's agreement with the others, and with the judge where there is one."""
    own, others = votes[:, place], np.delete(votes, place, axis=1)
    counts = (others[:, :, None] == CATEGORIES).sum(axis=1)
    most = counts.max(axis=1, keepdims=True)
    decided = (most[:, 0] > 0) & ((counts == most).sum(axis=1) == 1)
    found = {"with_others": (own == CATEGORIES[counts.argmax(axis=1)], ~np.isnan(own) & decided)}
    if judge is not None:
        found["with_judge"] = ((own == 1) == (judge >= 0.5), ~np.isnan(own) & (own != 0.5))
    estimates = {}
    for name, (equal, part) in found.items():
        (estimate,) = resampler.estimate_means(equal[:, None].astype(float), part[:, None], shares=[0])
        estimates[name] = estimate.to_dict() if estimate.count else None
    return estimates
