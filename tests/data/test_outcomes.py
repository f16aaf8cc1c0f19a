"""Outcomes: what swaps, what stays, and how labels of two and of three become one another."""

import numpy as np
import pytest

from modeling.data.outcomes import (
    LABELS,
    WITH_TIE,
    find_labels,
    find_outcome,
    halve_ties,
    match_labels,
    mirror_label,
    name_winners,
    widen_labels,
)

TWO = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]])


def test_a_model_has_two_or_three_labels():
    assert (find_labels(2), find_labels(3)) == (LABELS, WITH_TIE)
    with pytest.raises(ValueError, match=r"--num_labels 1: expected 2 \(a, b\) or 3 \(a, b, tie\)"):
        find_labels(1)


@pytest.mark.parametrize("label", [[0.1, 0.9], [0.1, 0.7, 0.2]])
def test_mirroring_swaps_a_and_b_only_and_undoes_itself(label):
    assert mirror_label(label) == [label[1], label[0], *label[2:]]
    assert mirror_label(mirror_label(label)) == label


@pytest.mark.parametrize(
    ("label", "outcome"),
    [([0.6, 0.4], "a"), ([0.4, 0.6], "b"), ([0.5, 0.5], "tie"), ([0.2, 0.5, 0.3], "b"), ([0.3, 0.2, 0.5], "tie"),
     ([0.4, 0.4, 0.2], "tie"), ([0.5, 0.1, 0.4], "a"), ([0.4, 0.2, 0.4], "tie")],
)  # fmt: skip
def test_an_outcome_is_a_tie_where_nobody_won(label, outcome):
    assert find_outcome(label) == outcome
    mirrored = {"a": "b", "b": "a", "tie": "tie"}
    assert find_outcome(mirror_label(label)) == mirrored[outcome]


def test_labels_of_two_survive_three():
    """An even label becomes a tie, and half a tie for each is an even label."""
    assert widen_labels(TWO).tolist() == [[1, 0, 0], [0, 0, 1], [0.25, 0.75, 0]]
    assert halve_ties(widen_labels(TWO)).tolist() == TWO.tolist()
    assert match_labels(match_labels(TWO, 3), 2).tolist() == TWO.tolist()


def test_winners_are_the_likeliest_outcome():
    p_a, p_tie = [0.5, 0.2, 0.3, 0.4, 0.2], [0.2, 0.2, 0.4, 0.2, 0.6]
    assert name_winners(p_a, p_tie) == ["model_a", "model_b", "tie", "model_a", "tie"]
    assert name_winners([0.5, 0.49]) == ["model_a", "model_b"]
