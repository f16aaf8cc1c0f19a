"""From the judge's verdicts on all pairs of answers to one prompt to the probability that each answer is chosen.

It must not know how the verdicts are made.
"""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from modeling.evaluation.leaderboard import fit_strengths

# The prior: no pair is surer than this. Else an answer that loses every pair with p = 0 would have no strength at all.
LEAST_P = 1e-9
TOLERANCE = 1e-10  # of the strengths


def list_pairs(num_answers: int) -> list[tuple[int, int]]:
    """Returns all pairs (i, j) of answers with i < j.

    Example: `list_pairs(3)` is `[(0, 1), (0, 2), (1, 2)]`.
    """
    return list(combinations(range(num_answers), 2))


def compute_choice_probabilities(num_answers: int, p_first: Sequence[float]) -> np.ndarray:
    """Computes the probability that each of n answers is chosen, from the probabilities of all pairs.

    The pairs' probabilities count as fractional wins and give strengths s (Bradley and Terry 1952, by maximum
    likelihood). Answer i is chosen with probability s_i / sum(s), as Luce's choice axiom (1959) says. For two answers
    that is the probability of their pair, unchanged.

    Args:
        num_answers: At least one.
        p_first: The probability that the first answer wins, for each pair of `list_pairs`.

    Returns:
        Shape (answers,), sums to 1.
    """
    p = np.asarray(p_first, float)
    if num_answers <= 2:
        return np.array([*p, 1 - p.sum()])
    p = p.clip(LEAST_P, 1 - LEAST_P)
    first, second = zip(*list_pairs(num_answers), strict=True)
    strengths = fit_strengths(first, second, p, 1 - p, num_answers, TOLERANCE)
    return strengths / strengths.sum()
