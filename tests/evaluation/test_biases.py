"""Position and length bias of passes with a known bias."""

import numpy as np
import pytest

from modeling.evaluation.biases import estimate_length_bias, estimate_position_bias
from modeling.evaluation.bootstrap import Resampler

A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]


def measure(passes: dict, labels=None) -> dict:
    battles = len(next(iter(passes.values())))
    passes = {name: np.array(p, float) for name, p in passes.items()}
    return estimate_position_bias(Resampler(range(battles), 100), passes, np.array(labels or [A, B] * (battles // 2)))


def test_passes_in_order_ba_are_converted_to_the_first_slot():
    """ab: a is first, 0.8 and 0.4. ba: b is first, 1 - 0.3 and 1 - 0.6. Mean (0.8 + 0.4 + 0.7 + 0.4) / 4; two of four
    are above 1/2. People give the first slot 1, 0 and 0, 1."""
    bias = measure({"x_ab": [0.8, 0.4], "y_ba": [0.3, 0.6]})
    found = {name: estimate and estimate["value"] for name, estimate in bias.items()}
    assert found == pytest.approx({"mean_p_first": 0.575, "first_wins": 0.5, "people_first": 0.5, "flip_share": None})


def test_only_members_with_both_orders_count_for_flips():
    """x flips on battles 2 and 4 of four; 1/2 counts as a. y has one order, and x with y is no pair."""
    passes = {"x_ab": [0.8, 0.8, 0.2, 0.5], "x_ba": [0.6, 0.4, 0.1, 0.4], "y_ab": [0.1, 0.1, 0.9, 0.9]}
    flips = measure(passes)["flip_share"]
    assert (flips["value"], flips["count"]) == (0.5, 4)
    assert measure({"x_ab": [0.8, 0.2], "y_ba": [0.2, 0.8]})["flip_share"] is None


def test_a_symmetric_member_has_no_position_bias():
    p = np.random.default_rng(0).random(50)
    bias = measure({"x_ab": p, "x_ba": p})
    assert bias["mean_p_first"]["value"] == pytest.approx(0.5) and bias["first_wins"]["value"] == pytest.approx(0.5)
    assert bias["flip_share"]["value"] == 0 and bias["flip_share"]["high"] > 0.05  # 50 battles cannot prove less


def test_missing_passes_are_left_out():
    """As with --folds, where each member reads a part of the battles. No member reads battle 3."""
    bias = measure(
        {"x_ab": [0.9, np.nan, np.nan], "x_ba": [0.9, np.nan, np.nan], "y_ab": [np.nan, 0.6, np.nan]}, [A] * 3
    )
    assert bias["mean_p_first"]["value"] == pytest.approx((0.9 + 0.1 + 0.6) / 3)
    assert (bias["mean_p_first"]["count"], bias["flip_share"]["count"]) == (2, 1)


def test_predictions_without_passes_have_no_position_bias():
    bias = estimate_position_bias(Resampler([0]), {}, np.array([A]))
    assert bias["flip_share"] is None and bias["mean_p_first"]["value"] is None


def test_correlation_with_length_is_pearsons_for_the_judge_and_for_people():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 1000, (300, 2)).astype(float)
    ratio = np.log2((lengths[:, 0] + 1) / (lengths[:, 1] + 1))
    p_a = np.clip(0.5 + ratio / 10 + rng.normal(size=300) / 10, 0, 1)
    labels = np.array([A, B])[rng.integers(0, 2, 300)]
    bias = estimate_length_bias(Resampler(range(300)), np.column_stack([p_a, 1 - p_a]), labels, lengths)
    assert bias["correlation"]["value"] == pytest.approx(np.corrcoef(ratio, p_a)[0, 1])
    assert bias["people_correlation"]["value"] == pytest.approx(np.corrcoef(ratio, labels[:, 0])[0, 1])
    assert bias["correlation"]["low"] > 0.5 > bias["people_correlation"]["high"]
    assert sum(row["mean_p"]["count"] for row in bias["bins"]) == 300 and len(bias["bins"]) == 8
    assert np.all(np.diff([row["log2_ratio"] for row in bias["bins"]]) > 0)


def test_lengths_match_up_to_a_fifth_more():
    """Ratios 100 : 100, 120 : 101 and 101 : 120 match, 130 : 100 does not, and a tie is left out."""
    lengths = np.array([[100, 100], [119, 100], [100, 119], [130, 100], [100, 100]], float)
    probabilities, labels = np.array([A, A, B, B, A]), np.array([A, B, B, A, TIE])
    accuracy = estimate_length_bias(Resampler(range(5)), probabilities, labels, lengths)["accuracy_length_matched"]
    assert (accuracy["value"], accuracy["count"]) == (pytest.approx(2 / 3), 3)


@pytest.mark.parametrize(
    "p_a, lengths", [([0.5] * 4, [1, 2, 3, 4]), ([0.1, 0.2, 0.3, 0.4], [5] * 4), ([], []), ([0.4], [3])]
)
def test_without_variation_there_is_no_correlation(p_a, lengths):
    p_a, lengths = np.array(p_a), np.column_stack([lengths, np.full(len(lengths), 5)]).astype(float).reshape(-1, 2)
    labels = np.array([A] * len(p_a)).reshape(-1, 2)
    bias = estimate_length_bias(Resampler(range(len(p_a))), np.column_stack([p_a, 1 - p_a]), labels, lengths)
    assert bias["correlation"] == {"value": None, "low": None, "high": None, "count": 0}
