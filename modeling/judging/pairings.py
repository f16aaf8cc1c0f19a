"""Decides which pairs of answers to one prompt are read next, from the verdicts so far. It knows no texts and no judge.

Each method but "all" begins with the bracket of a knock-out, which connects all answers with the fewest pairs. A method
asks for pairs in rounds, so that the rounds of many prompts can be read together.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from modeling.judging.ranking import Pair, compute_covariance, fit_scores, list_pairs

DIGITS = 6  # of what decides: the last bits depend on which battles were packed together


def choose_pairs(method: str, num_answers: int, p_first: Mapping[Pair, float], most_pairs: int) -> list[Pair]:
    """Chooses the pairs of the next round.

    Args:
        method: One of `RANK_METHODS`. "all": every pair, in one round. "knockout": winners meet winners until one is
            left. "swiss": then answers whose scores are nearest meet. "active": then the pairs meet whose verdicts tell
            most about the scores.
        num_answers: Number of different answers.
        p_first: For each pair (i, j), i < j, that was read, the probability that i wins.
        most_pairs: Most pairs to read in all. The bracket is completed even if it has more.

    Returns:
        Pairs (i, j), i < j, that were not read yet; none if the ranking is complete.
    """
    if method == "all":
        return [pair for pair in list_pairs(num_answers) if pair not in p_first]
    if unread := [pair for pair in play_bracket(num_answers, p_first)[-1] if pair not in p_first]:
        return unread
    rest = [pair for pair in list_pairs(num_answers) if pair not in p_first]
    left = min(most_pairs, len(p_first) + len(rest)) - len(p_first)
    if method == "knockout" or left <= 0:
        return []
    scores = fit_scores(num_answers, list(p_first), list(p_first.values()))
    first, second = np.array(rest).T
    margins = np.abs(scores[first] - scores[second])
    value = -margins if method == "swiss" else _compute_information(scores, margins, first, second, list(p_first))
    order = np.argsort(-value.round(DIGITS), kind="stable")
    return _match((rest[place] for place in order), left)


def count_pairs(method: str, num_answers: int, budget: float | None) -> int:
    """Returns the most pairs of different answers that a method reads within a share of all pairs."""
    everything, bracket = num_answers * (num_answers - 1) // 2, max(num_answers - 1, 0)
    if method == "knockout":
        return bracket
    return everything if method == "all" else max(bracket, round(budget * everything))


def play_bracket(num_answers: int, p_first: Mapping[Pair, float]) -> list[list[Pair]]:
    """Returns the pairs of each round of a knock-out, up to the first round that was not read completely.

    Neighbours meet. Of an odd number of answers the last one goes on without a pair.
    """
    alive, rounds = list(range(num_answers)), []
    while len(alive) > 1:
        pairs = list(zip(alive[::2], alive[1::2], strict=False))
        rounds.append(pairs)
        if any(pair not in p_first for pair in pairs):
            return rounds
        alive = [first if _wins(p_first[first, second]) else second for first, second in pairs] + (
            alive[-1:] if len(alive) % 2 else []
        )
    return rounds or [[]]


def count_rounds(num_answers: int, p_first: Mapping[Pair, float]) -> np.ndarray:
    """Counts the rounds of the bracket that each answer won or was let through, shape (answers,)."""
    rounds = play_bracket(num_answers, p_first)
    reached = np.full(num_answers, len(rounds))
    for number, pairs in enumerate(rounds):
        for first, second in pairs:
            reached[second if _wins(p_first[first, second]) else first] = number
    return reached


def _wins(p_first: float) -> bool:
    """Whether the first answer of a pair wins."""
    return round(p_first, DIGITS) >= 0.5


def _compute_information(
    scores: np.ndarray, margins: np.ndarray, first: np.ndarray, second: np.ndarray, pairs: Sequence[Pair]
) -> np.ndarray:
    """What a verdict adds to the log determinant of the Fisher information of the scores, but for its monotonic log.

    It is the variance of the pair's difference times p (1 - p): D-optimal design.
    """
    covariance = compute_covariance(scores, pairs)
    variance = covariance[first, first] + covariance[second, second] - 2 * covariance[first, second]
    p = 1 / (1 + np.exp(-margins))
    return variance * p * (1 - p)


def _match(pairs: Iterable[Pair], most: int) -> list[Pair]:
    """The first pairs in which each answer is at most once."""
    chosen: list[Pair] = []
    taken: set[int] = set()
    for pair in pairs:
        if len(chosen) < most and taken.isdisjoint(pair):
            chosen.append(pair)
            taken.update(pair)
    return chosen
