"""From the judge's verdicts on pairs of answers to one prompt to a score of each answer, its interval, and the
probability that it is chosen.

The scores are Bradley-Terry's (1952): s_i - s_j is the log odds that answer i beats answer j. It must not know how the
verdicts are made, or who chose the pairs.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy import stats
from scipy.special import expit, softmax

from modeling.evaluation.bootstrap import CONFIDENCE
from modeling.evaluation.leaderboard import fit_strengths

# The prior: no pair is surer than this. Else an answer that loses every pair with p = 0 would have no strength at all.
LEAST_P = 1e-9
TOLERANCE = 1e-10  # of the strengths

Pair = tuple[int, int]


@dataclass(frozen=True)
class AnswerScores:
    """What the verdicts on pairs say about each of some answers, in their order.

    scores: Bradley-Terry scores in log odds. Their mean over the different answers is 0.
    low, high: Ends of the scores' 95% intervals, see `bound_scores`; NaN where unknown.
    p_best: Probability that the answer is chosen; sums to 1.
    """

    scores: list[float]
    low: list[float]
    high: list[float]
    p_best: list[float]


def list_pairs(num_answers: int) -> list[Pair]:
    """Returns all pairs (i, j) of answers with i < j.

    Example: `list_pairs(3)` is `[(0, 1), (0, 2), (1, 2)]`.
    """
    return list(combinations(range(num_answers), 2))


def list_texts(answers: Sequence[str]) -> list[str]:
    """Returns the different answers in an order that depends on their texts alone.

    Pairs are numbered in this order, so that neither the order of the answers nor a repeated one changes a battle.
    """
    return sorted(set(answers))


def score_answers(answers: Sequence[str], p_first: Mapping[Pair, float]) -> AnswerScores:
    """Scores answers by the probabilities of pairs. Equal answers get equal numbers, to the last digit.

    Answer i is chosen with probability s_i / sum(s) for its Bradley-Terry strength s_i, as Luce's choice axiom (1959)
    says. For two answers that is the probability of their pair, unchanged.

    Args:
        answers: At least one.
        p_first: For each pair (i, j) of `list_texts(answers)` that was read, the probability that i wins. The pairs
            must connect all different answers.
    """
    texts = list_texts(answers)
    pairs, p = list(p_first), np.array(list(p_first.values()))
    scores = fit_scores(len(texts), pairs, p)
    low, high = bound_scores(scores, pairs, p)
    # The strengths of two answers repeat the probability of their pair only as exactly as the fit is.
    chosen = np.array([*p, *(1 - p)]) if len(texts) == 2 else softmax(scores)
    p_best = _spread(chosen, answers, texts)
    total = math.fsum(p_best)  # unlike sum, the same in every order
    spread = (_spread(values, answers, texts) for values in (scores, low, high))
    return AnswerScores(*spread, [each / total for each in p_best])


def _spread(values: np.ndarray, answers: Sequence[str], texts: Sequence[str]) -> list[float]:
    """The values of the different texts, for each answer."""
    by_text = dict(zip(texts, values.tolist(), strict=True))
    return [by_text[answer] for answer in answers]


def fit_scores(num_answers: int, pairs: Sequence[Pair], p_first: Sequence[float]) -> np.ndarray:
    """Fits Bradley-Terry scores by maximum likelihood. The pairs' probabilities count as fractional wins.

    Args:
        num_answers: Number of answers.
        pairs: Numbers of the answers of each pair. They connect all answers.
        p_first: Probability that the first answer of each pair wins.

    Returns:
        Log strengths with mean 0, shape (answers,).
    """
    if num_answers == 1:
        return np.zeros(1)
    p = np.asarray(p_first, float).clip(LEAST_P, 1 - LEAST_P)
    first, second = zip(*pairs, strict=True)
    scores = np.log(fit_strengths(first, second, p, 1 - p, num_answers, TOLERANCE))
    return scores - scores.mean()


def score_all_pairs(num_answers: int, p_first: Sequence[float]) -> np.ndarray:
    """Fits the scores of answers of which all pairs were read, in the order of `list_pairs`: see `fit_scores`."""
    return fit_scores(num_answers, list_pairs(num_answers), p_first)


def compute_covariance(scores: np.ndarray, pairs: Sequence[Pair]) -> np.ndarray:
    """Computes the inverse of the Fisher information of the scores, each pair counting as one comparison.

    Args:
        scores: With mean 0, shape (answers,).
        pairs: The pairs that were read; they connect all answers.

    Returns:
        Covariance of the scores with mean 0, shape (answers, answers).
    """
    signs = _build_signs(pairs, len(scores))
    margins = signs @ scores
    # p (1 - p) of each pair, with all its digits where p is nearly 1.
    variances = expit(margins) * expit(-margins)
    # A pseudo-inverse, because a number added to all scores changes no probability.
    return np.linalg.pinv(signs.T @ (signs * variances[:, None]), rcond=1e-13, hermitian=True)


def bound_scores(scores: np.ndarray, pairs: Sequence[Pair], p_first: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Computes 95% intervals of the scores from how far the verdicts of pairs contradict them.

    A verdict is a probability and no vote, so the variance is that of the verdicts around the fit, by the sandwich
    estimator (for fractions Papke and Wooldridge 1996). It stays small where verdicts are nearly 0 or 1, whose scatter
    p (1 - p) says little about. The intervals say how much other verdicts with the same scatter would move the scores.
    They do not say whether people agree with the judge, and have width 0 if the scores explain all verdicts.

    Returns:
        The lower and the upper ends, shape (answers,). NaN if the pairs are no more than connect the answers, since
        some scores then explain any verdicts.
    """
    spare = len(pairs) - (len(scores) - 1)  # degrees of freedom
    if spare == 0:
        return np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    signs = _build_signs(pairs, len(scores))
    residuals = np.asarray(p_first) - expit(signs @ scores)
    moves = (signs * residuals[:, None]) @ compute_covariance(scores, pairs)  # of the scores, by each pair
    errors = np.sqrt((moves**2).sum(axis=0) * len(pairs) / spare)
    half = stats.t.ppf((1 + CONFIDENCE) / 2, spare) * errors
    return scores - half, scores + half


def _build_signs(pairs: Sequence[Pair], num_answers: int) -> np.ndarray:
    """A row per pair with 1 for its first answer and -1 for its second, shape (pairs, answers)."""
    first, second = np.array(pairs, int).reshape(-1, 2).T
    signs, rows = np.zeros((len(first), num_answers)), np.arange(len(first))
    signs[rows, first], signs[rows, second] = 1, -1
    return signs
