"""Choice probabilities against known strengths, and laws that hold for any verdicts."""

import numpy as np
import pytest

from modeling.judging.ranking import LEAST_P, compute_choice_probabilities, list_pairs


def read_pairs(matrix: np.ndarray) -> np.ndarray:
    """The probabilities of `list_pairs` from those of all ordered pairs, shape (answers, answers)."""
    return np.array([matrix[pair] for pair in list_pairs(len(matrix))])


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
