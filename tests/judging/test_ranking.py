"""Scores and choice probabilities against known strengths, and laws that hold for any verdicts."""

import numpy as np
import pytest
from scipy.special import expit

from modeling.judging.ranking import LEAST_P, bound_scores, compute_covariance, fit_scores, list_pairs, score_answers


def read_pairs(matrix: np.ndarray) -> np.ndarray:
    """The probabilities of `list_pairs` from those of all ordered pairs, shape (answers, answers)."""
    return np.array([matrix[pair] for pair in list_pairs(len(matrix))])


def compute_choice_probabilities(num_answers: int, p_first) -> np.ndarray:
    """p_best of answers whose texts are in the order of their numbers."""
    answers = [chr(ord("A") + number) for number in range(num_answers)]
    return np.array(score_answers(answers, dict(zip(list_pairs(num_answers), p_first, strict=True))).p_best)


def draw_verdicts(num_answers: int, seed: int) -> np.ndarray:
    """Verdicts that no strengths explain: p[i, j] = 1 - p[j, i], otherwise at random."""
    upper = np.triu(np.random.default_rng(seed).random((num_answers, num_answers)), 1)
    return upper + np.tril(1 - upper.T, -1)


@pytest.mark.parametrize("p", [0.0, 1e-12, 0.1, 0.5, 0.73, 1.0])
def test_two_answers_have_the_probability_of_their_pair(p):
    assert compute_choice_probabilities(2, [p]).tolist() == [p, 1 - p]


def test_a_single_answer_is_chosen():
    assert compute_choice_probabilities(1, []).tolist() == [1.0]


@pytest.mark.parametrize("num_answers", [3, 5, 12, 40])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_verdicts_that_strengths_explain_give_these_strengths(num_answers, spread):
    """p_ij = s_i / (s_i + s_j) for known s. A spread of 4 has odds of up to e**16 = 9 million to one, within the
    prior's."""
    s = np.exp(np.random.default_rng(num_answers).normal(0, spread, num_answers).clip(-2 * spread, 2 * spread))
    found = compute_choice_probabilities(num_answers, read_pairs(s[:, None] / (s[:, None] + s)))
    assert found == pytest.approx(s / s.sum(), abs=1e-6)


@pytest.mark.parametrize("num_answers", [3, 7])
def test_the_order_of_the_answers_only_permutes_the_result(num_answers):
    verdicts, order = draw_verdicts(num_answers, 1), np.random.default_rng(2).permutation(num_answers)
    found = compute_choice_probabilities(num_answers, read_pairs(verdicts))
    permuted = compute_choice_probabilities(num_answers, read_pairs(verdicts[np.ix_(order, order)]))
    assert permuted == pytest.approx(found[order], abs=1e-9)
    assert found.sum() == pytest.approx(1) and found.std() > 0.01


def test_the_likelihood_is_maximal():
    """Its derivative is zero: each answer's expected wins, by the strengths, equal its wins, by the verdicts."""
    verdicts = draw_verdicts(6, 3)
    s = compute_choice_probabilities(6, read_pairs(verdicts))
    expected = (s[:, None] / (s[:, None] + s)).sum(1) - 0.5  # without the answer against itself
    assert expected == pytest.approx(verdicts.sum(1), abs=1e-7)


def test_sure_verdicts_rank_and_stay_finite():
    """The first answer beats both others, the second beats the third, each surely. With e = LEAST_P, s = 1, 2e, 4e**2
    solves the equations of the test above to first order in e: s_1 loses to s_2 with 2e of the 2e that it loses in all,
    and s_2 wins 2e / (1 + 2e) + 1 / (1 + 2e) = 1."""
    found = compute_choice_probabilities(3, [1.0, 1.0, 1.0])
    assert found == pytest.approx([1, 2 * LEAST_P, 4 * LEAST_P**2], rel=1e-3, abs=0)
    circle = compute_choice_probabilities(3, [1.0, 0.0, 1.0])  # first > second > third > first
    assert circle == pytest.approx([1 / 3] * 3)


def test_equal_answers_share_all_numbers_and_any_order_gives_the_same():
    """Not even the last digit differs. Pairs are numbered by the texts, x < y < z, not by the answers' order."""
    p_first = {(0, 1): 0.7, (0, 2): 0.4, (1, 2): 0.6}
    found = score_answers(["x", "y", "z", "y"], p_first)
    assert found.scores[1] == found.scores[3] and found.p_best[1] == found.p_best[3]
    assert sum(found.p_best) == pytest.approx(1)
    turned = score_answers(["y", "z", "y", "x"], p_first)
    for name in ("scores", "low", "high", "p_best"):
        x, y, z, _ = getattr(found, name)
        assert getattr(turned, name) == [y, z, y, x]


def test_a_tree_of_pairs_adds_up_log_odds_and_leaves_the_intervals_unknown():
    """0 beats 1 with log odds 1, and 1 beats 2 with log odds 2: scores 3, 2, 0 less their mean."""
    pairs, p = [(0, 1), (1, 2)], expit([1.0, 2.0])
    scores = fit_scores(3, pairs, p)
    assert scores == pytest.approx(np.array([3, 2, 0]) - 5 / 3, abs=1e-6)
    assert np.isnan(bound_scores(scores, pairs, p)).all()


def test_the_covariance_is_that_of_the_information():
    """Three equal scores: each pair adds 1/4 to the information of its difference. I = (3 E - J) / 4 with E the unit
    matrix and J all ones, so that the inverse on sums of zero is 4/3 (E - J / 3)."""
    expected = 4 / 3 * (np.eye(3) - 1 / 3)
    assert compute_covariance(np.zeros(3), list_pairs(3)) == pytest.approx(expected)


def test_verdicts_that_agree_with_the_scores_have_no_uncertainty():
    """And scatter of twice the size about the same scores gives intervals of about twice the width."""
    truth, pairs = np.linspace(1, -1, 6), list_pairs(6)
    first, second = np.array(pairs).T
    noise = np.random.default_rng(0).normal(0, 0.1, len(pairs))
    widths = []
    for size in (0, 1, 2):
        p = expit(truth[first] - truth[second] + size * noise)
        scores = fit_scores(6, pairs, p)
        low, high = bound_scores(scores, pairs, p)
        assert (low <= scores).all() and (scores <= high).all()
        widths.append((high - low).mean())
    assert widths[0] == pytest.approx(0, abs=1e-6) and widths[2] / widths[1] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("q", [0.9, 0.99, 1 - 1e-6, 1.0])
@pytest.mark.parametrize("num_answers", [4, 10, 64])
def test_verdicts_that_are_sure_and_agree_have_intervals_within_the_scores_range(num_answers, q):
    pairs = list_pairs(num_answers)
    scores = fit_scores(num_answers, pairs, np.full(len(pairs), q))
    low, high = bound_scores(scores, pairs, np.full(len(pairs), q))
    assert np.isfinite(low).all() and ((high - low) / 2 < 1.1 * np.ptp(scores)).all() and (np.diff(scores) < 0).all()


@pytest.mark.parametrize(("num_answers", "least"), [(4, 0.88), (8, 0.9), (16, 0.91)])
def test_the_intervals_hold_the_true_scores(num_answers, least):
    """In about 95% of the cases; less with few answers, as sandwiches of few pairs are too narrow. The noise is that
    of the model, with variance in proportion to p (1 - p)."""
    rng, pairs, hits = np.random.default_rng(0), list_pairs(num_answers), []
    first, second = np.array(pairs).T
    for _ in range(300):
        truth = rng.normal(0, 1, num_answers)
        truth -= truth.mean()
        mean = expit(truth[first] - truth[second])
        p = (mean + rng.normal(0, 0.2, len(pairs)) * np.sqrt(mean * (1 - mean))).clip(0.001, 0.999)
        low, high = bound_scores(fit_scores(num_answers, pairs, p), pairs, p)
        hits.append((low <= truth) & (truth <= high))
    assert least < np.mean(hits) < 0.99
