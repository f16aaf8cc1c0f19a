"""Agreement of annotators against published and counted values."""

import numpy as np
import pytest

from modeling.evaluation.agreement import measure_agreement
from modeling.evaluation.bootstrap import Resampler

NAN = np.nan


def measure(votes, judge=None) -> dict:
    votes = np.array(votes, float)
    names = [f"annotator {place}" for place in range(votes.shape[1])]
    return measure_agreement(votes, names, Resampler(np.arange(len(votes)), 200), judge)


def test_alpha_is_that_of_krippendorff_s_example():
    """Krippendorff 2011, part A, binary data of two observers and no gaps: alpha 0.095."""
    first, second = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    assert measure(np.column_stack([first, second]))["alpha"]["value"] == pytest.approx(0.095, abs=5e-4)


def test_alpha_takes_any_number_of_votes_and_leaves_single_ones_out():
    """Three battles: a a, a b, b b b, and one vote that has no pair. Counted by hand.

    Disagreement: of a b, 2 ordered pairs / (2 - 1) = 2. By chance, with 3 votes for a and 4 for b: 2 x 3 x 4 / 6 = 4.
    """
    found = measure([[1, 1, NAN], [1, 0, NAN], [0, 0, 0], [NAN, NAN, 1]])
    assert found["alpha"]["value"] == pytest.approx(1 - 2 / 4)
    assert found["percent_agreement"]["value"] == pytest.approx(4 / 5)
    assert (found["battles"], found["votes"], found["shared"]) == (4, 8, 3)


def test_perfect_agreement_is_1_and_votes_at_random_are_0():
    rng = np.random.default_rng(0)
    column = rng.choice([0, 0.5, 1], 4000)
    assert measure(np.column_stack([column, column]))["alpha"]["value"] == 1
    found = measure(np.column_stack([column, rng.permutation(column)]))["alpha"]
    assert found["value"] == pytest.approx(0, abs=0.05) and found["low"] < found["value"] < found["high"]


def test_votes_that_always_agree_do_not_claim_certainty():
    found = measure([[1, 1], [0, 0]] * 6)
    assert found["percent_agreement"]["value"] == 1 and found["percent_agreement"]["low"] < 0.9
    assert (found["alpha"]["value"], found["alpha"]["low"], found["alpha"]["high"]) == (1, None, None)


def test_what_cannot_be_told_is_none():
    """Votes of one category say nothing about chance; one vote per battle says nothing about agreement."""
    assert measure([[1, 1]] * 9)["alpha"]["value"] is None
    alone = measure([[1, NAN], [NAN, 0]])
    assert alone["alpha"] is alone["percent_agreement"] is alone["annotators"]["annotator 0"]["with_others"] is None


def test_each_annotator_is_compared_with_the_others_and_the_judge():
    """The third contradicts the other two, who agree, on two of three battles; for these, the other two draw.

    A tie is no answer to compare with the judge, who is right about the first battle.
    """
    found = measure([[1, 1, 0], [0, 0, 1], [0.5, 0.5, 0.5]], judge=np.array([0.9, 0.8, 0.1]))["annotators"]
    others = [found[f"annotator {place}"]["with_others"] for place in range(3)]
    assert [(each["value"], each["count"]) for each in others] == [(1, 1), (1, 1), (pytest.approx(1 / 3), 3)]
    assert [found[f"annotator {place}"]["with_judge"]["value"] for place in range(3)] == [0.5, 0.5, 0.5]
    assert found["annotator 0"]["with_judge"]["count"] == 2
