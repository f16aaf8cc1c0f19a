"""Which pairs are read next: every method's pairs connect all answers, within its budget, none twice."""

import numpy as np
import pytest
from scipy.special import expit

from modeling.judging.pairings import choose_pairs, count_pairs, count_rounds, play_bracket
from modeling.judging.ranking import Pair, compute_covariance, fit_scores, list_pairs
from modeling.runtime.choices import BUDGETED, RANK_METHODS

SIZES = (1, 2, 3, 5, 8, 13)


def play(method: str, scores: np.ndarray, most: int) -> tuple[dict[Pair, float], list[list[Pair]]]:
    """The verdicts by a judge whose scores are known, and the rounds in which they were asked for."""
    p_first, rounds = {}, []
    while pairs := choose_pairs(method, len(scores), p_first, most):
        rounds.append(pairs)
        assert all(first < second for first, second in pairs) and p_first.keys().isdisjoint(pairs)
        p_first |= {(i, j): float(expit(scores[i] - scores[j])) for i, j in pairs}
    return p_first, rounds


def draw_scores(num_answers: int) -> np.ndarray:
    return np.random.default_rng(num_answers).normal(0, 1, num_answers)


@pytest.mark.parametrize("num_answers", SIZES)
@pytest.mark.parametrize("method", RANK_METHODS)
@pytest.mark.parametrize("budget", [0.01, 0.5, 1.0])
def test_the_pairs_are_as_many_as_the_budget_allows_and_give_the_scores(method, num_answers, budget):
    """n - 1 pairs are always read: fewer cannot connect n answers. Verdicts without noise then give the scores."""
    scores = draw_scores(num_answers)
    most = count_pairs(method, num_answers, budget)
    p_first, _ = play(method, scores, most)
    everything = num_answers * (num_answers - 1) // 2
    expected = {"all": everything, "knockout": num_answers - 1}
    assert len(p_first) == most == expected.get(method, max(num_answers - 1, round(budget * everything)))
    found = fit_scores(num_answers, list(p_first), list(p_first.values()))
    assert found == pytest.approx(scores - scores.mean(), abs=1e-6)


@pytest.mark.parametrize("num_answers", SIZES)
def test_a_bracket_has_as_few_rounds_as_halving_and_its_winner_is_the_best(num_answers):
    scores = draw_scores(num_answers)
    p_first, rounds = play("knockout", scores, 0)
    assert len(rounds) == int(np.ceil(np.log2(num_answers)))
    assert [pairs for pairs in play_bracket(num_answers, p_first) if pairs] == rounds
    reached = count_rounds(num_answers, p_first)
    assert reached.argmax() == scores.argmax() and (reached == reached.max()).sum() == 1
    for number, pairs in enumerate(rounds):
        for first, second in pairs:
            loser = first if scores[first] < scores[second] else second
            assert reached[loser] == number


@pytest.mark.parametrize("method", BUDGETED)
def test_after_the_bracket_no_answer_is_twice_in_a_round(method):
    p_first, rounds = play(method, draw_scores(13), 60)
    for pairs in rounds[4:]:
        answers = [answer for pair in pairs for answer in pair]
        assert len(answers) == len(set(answers))
    assert len(p_first) == 60 and len(rounds) > 8


def test_swiss_lets_the_nearest_scores_meet():
    """Scores 0 to 7 in this order. The bracket has 0-1, 2-3, 4-5 and 6-7, which leaves 1-2, 3-4 and 5-6."""
    _, rounds = play("swiss", np.arange(8.0), 10)
    assert rounds[3] == [(1, 2), (3, 4), (5, 6)]


def test_active_reads_the_pair_that_shrinks_the_uncertainty_most():
    """The first pair of a round has the largest determinant of the information, over all pairs not yet read."""
    bracket, _ = play("knockout", draw_scores(6), 0)
    (first, *_) = choose_pairs("active", 6, bracket, 15)

    def measure(pair: Pair) -> float:
        """Log of the product of the information's eigenvalues, with one more pair, at the fitted scores."""
        fitted = fit_scores(6, list(bracket), list(bracket.values()))
        return -np.log(np.linalg.eigvalsh(compute_covariance(fitted, [*bracket, pair]))[1:]).sum()

    rest = [pair for pair in list_pairs(6) if pair not in bracket]
    assert first == max(rest, key=measure) and len({round(measure(pair), 6) for pair in rest}) > 1


def test_what_decides_is_rounded():
    """Verdicts that differ by 1e-8, as those of two packs may, give the same pairs."""
    p_first = {(0, 1): 0.5, (2, 3): 0.5 - 1e-8}
    assert (
        choose_pairs("knockout", 4, p_first, 3) == [(0, 2)] == choose_pairs("knockout", 4, {**p_first, (2, 3): 0.5}, 3)
    )
