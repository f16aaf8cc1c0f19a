"""Accuracy and log loss against numbers derived by hand, their intervals against what an interval promises."""

import math
import socket
from statistics import NormalDist

import evaluate
import numpy as np
import pytest
from transformers import EvalPrediction

from modeling.metrics import (
    PreferenceMetric,
    compute_accuracy,
    compute_baselines,
    compute_log_loss,
    compute_trainer_metrics,
)

Z = NormalDist().inv_cdf(0.975)
A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
PROBABILITIES = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
LABELS = np.array([A, B, [0.2, 0.8], TIE])


def measure_hits(hits: int, battles: int):
    """The accuracy of predictions of which this many are right."""
    predictions = np.tile(A, (battles, 1))
    return compute_accuracy(predictions, np.array([A] * hits + [B] * (battles - hits)))


def test_accuracy_counts_decided_battles_and_leaves_ties_out():
    """Right, wrong, right on a soft label; the tie, confidently predicted, does not count: 2 of 3."""
    accuracy = compute_accuracy(PROBABILITIES, LABELS)
    assert (accuracy.value, accuracy.count) == (pytest.approx(2 / 3), 3)
    assert str(accuracy) == f"0.667 [{accuracy.low:.3f}, {accuracy.high:.3f}] on 3"


def test_log_loss_counts_ties_and_soft_labels():
    """-ln 0.8 - ln 0.4 - (0.2 ln 0.3 + 0.8 ln 0.7) - (ln 0.9 + ln 0.1) / 2
    = 0.2231 + 0.9163 + 0.5261 + 1.2040 = 2.8695, over four battles 0.7174."""
    log_loss = compute_log_loss(PROBABILITIES, LABELS)
    assert (log_loss.value, log_loss.count) == (pytest.approx(0.71738, abs=1e-5), 4)


def test_log_loss_interval_is_that_of_a_mean():
    """Losses ln 2 and ln 4: mean 1.5 ln 2, standard deviation ln(2) / sqrt 2, standard error ln(2) / 2."""
    log_loss = compute_log_loss([[0.5, 0.5], [0.25, 0.75]], [A, A])
    low, high = (math.log(2) * (1.5 + sign * Z / 2) for sign in (-1, 1))
    assert (log_loss.value, log_loss.low, log_loss.high) == pytest.approx((1.5 * math.log(2), low, high))


@pytest.mark.parametrize("hits, battles", [(0, 3), (3, 4), (34, 49)])
def test_accuracy_interval_is_wilsons(hits, battles):
    """Its ends solve (share - p)^2 = z^2 p (1 - p) / n, which is p^2 (1 + z^2/n) - p (2 share + z^2/n) + share^2 = 0."""
    accuracy, share, spread = measure_hits(hits, battles), hits / battles, Z**2 / battles
    ends = sorted(np.roots([1 + spread, -(2 * share + spread), share**2]))
    assert (accuracy.low, accuracy.high) == pytest.approx(ends, abs=1e-12)


def test_accuracy_interval_holds_the_truth_as_often_as_it_says():
    hits = np.random.default_rng(0).binomial(49, 0.686, size=2000)
    estimates = {count: measure_hits(count, 49) for count in set(hits.tolist())}
    covered = [estimates[count].low <= 0.686 <= estimates[count].high for count in hits.tolist()]
    assert np.mean(covered) >= 0.93


def test_accuracy_over_49_battles_is_uncertain_by_13_points():
    """Seed fault 11: a fold of 49 rows, read as if it were exact. At 1/2 Wilson's half width is
    z sqrt(1/(4n) + z^2/(4n^2)) / (1 + z^2/n) = z / (2 sqrt(n + z^2)) = 1.96 / (2 sqrt 52.84) = 0.135; at 34 of 49 it
    is 0.125. Hence no accuracy comes without its interval. 10,000 battles: under one point."""
    for hits, half in ((24.5, 0.135), (34, 0.125)):
        accuracy = measure_hits(49, 98) if hits == 24.5 else measure_hits(hits, 49)
        width = (accuracy.high - accuracy.low) / 2
        width *= math.sqrt((98 + Z**2) / (49 + Z**2)) if hits == 24.5 else 1
        assert width == pytest.approx(half, abs=5e-4)
    accuracy = measure_hits(6860, 10_000)
    assert (accuracy.high - accuracy.low) / 2 < 0.01
    assert {"accuracy", "accuracy_low", "accuracy_high"} <= set(
        PreferenceMetric().compute(predictions=PROBABILITIES, references=LABELS)
    )


@pytest.mark.parametrize("battles", [1, 3, 16, 1000])
def test_perfect_and_always_wrong_predictions_keep_an_interval_inside_0_and_1(battles):
    """All hits: the lower end solves 1 - p = z^2 p / n, so p = n / (n + z^2); no hits mirror it. 16 is where rounding
    would end above 1. A right answer given with probability 1 costs nothing."""
    perfect, wrong = measure_hits(battles, battles), measure_hits(0, battles)
    assert (perfect.value, perfect.low) == pytest.approx((1, battles / (battles + Z**2)))
    assert (wrong.value, wrong.high) == pytest.approx((0, Z**2 / (battles + Z**2)))
    assert wrong.low == pytest.approx(0, abs=1e-12) and perfect.high == pytest.approx(1, abs=1e-12)
    assert 0 <= wrong.low and perfect.high <= 1
    assert compute_log_loss([A] * battles, [A] * battles).value == 0


def test_constant_predictions_score_the_first_label_and_ln_2():
    constant, labels = np.full((4, 2), 0.5), np.array([A, B, B, B])
    assert compute_accuracy(constant, labels).value == 0.25
    log_loss = compute_log_loss(constant, labels)
    assert (log_loss.value, log_loss.low, log_loss.high) == pytest.approx((math.log(2),) * 3)


def test_labels_of_one_class_are_scored_like_any():
    assert compute_accuracy(PROBABILITIES, [B] * 4).value == 0.25
    assert compute_log_loss([[0.5, 0.5], [0.75, 0.25]], [B, B]).value == pytest.approx(1.5 * math.log(2))


def test_sure_mistake_costs_a_finite_loss():
    """Probability 0 is read as 1e-7: -ln 1e-7 = 7 ln 10 = 16.1. One battle alone bounds nothing."""
    log_loss = compute_log_loss([A], [B])
    assert log_loss.value == pytest.approx(7 * math.log(10))
    assert (log_loss.low, log_loss.high) == (-math.inf, math.inf)


def test_figures_do_not_depend_on_which_label_stands_first():
    mirrored = PROBABILITIES[:, ::-1], LABELS[:, ::-1]
    assert compute_accuracy(*mirrored) == compute_accuracy(PROBABILITIES, LABELS)
    assert compute_log_loss(*mirrored).value == pytest.approx(compute_log_loss(PROBABILITIES, LABELS).value)


def test_nothing_to_score_is_nan_and_says_0_battles():
    empty = np.zeros((0, 2))
    for estimate in (compute_accuracy(empty, empty), compute_log_loss(empty, empty), compute_accuracy([A], [TIE])):
        assert math.isnan(estimate.value) and math.isnan(estimate.low) and estimate.count == 0


@pytest.mark.parametrize("compute", [compute_accuracy, compute_log_loss])
def test_nan_and_wrong_shapes_are_refused(compute):
    for arrays in (([[np.nan, 1.0]], [A]), ([A], [[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="found NaN"):
            compute(*arrays)
    for arrays in ((PROBABILITIES, LABELS[:3]), (PROBABILITIES[:, 0], LABELS[:, 0]), (PROBABILITIES, LABELS[:, :1])):
        with pytest.raises(ValueError, match=r"one shape \(battles, labels\); found"):
            compute(*arrays)


def test_baselines_choose_the_first_and_the_longer_answer():
    """Always a is right on rows 1 and 4 of the four that are decided. The longer answer, in characters (two CJK signs
    are six bytes), is right on 1 and 2, wrong on 3, and on 4 equal lengths count as a. Row 5 is a tie."""
    baselines = compute_baselines(
        ["long answer", "日本", "longer", "same", "x"], ["short", "abc", "brief", "size", "yy"], [A, B, B, A, TIE]
    )
    assert {name: (estimate.value, estimate.count) for name, estimate in baselines.items()} == {
        "always a": (0.5, 4),
        "longer wins": (0.75, 4),
    }
    with pytest.raises(ValueError):
        compute_baselines(["x"], ["x", "y"], [A, B])


def test_evaluate_metric_gives_the_functions_figures_without_a_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("PreferenceMetric reached for the network"))
    rng = np.random.default_rng(0)
    first = rng.random((2, 40))
    predictions, references = (np.column_stack([column, 1 - column]) for column in first)
    accuracy, log_loss = compute_accuracy(predictions, references), compute_log_loss(predictions, references)
    expected = {
        "accuracy": accuracy.value,
        "accuracy_low": accuracy.low,
        "accuracy_high": accuracy.high,
        "log_loss": log_loss.value,
        "battles": 40,
    }
    metric = PreferenceMetric()
    assert isinstance(metric, evaluate.Metric)
    assert metric.compute(predictions=predictions, references=references) == pytest.approx(expected)
    for part in (slice(0, 15), slice(15, 40)):
        metric.add_batch(predictions=predictions[part], references=references[part])
    assert metric.compute() == pytest.approx(expected)


@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_trainer_metrics_read_logits_with_a_softmax(shift):
    """Logits (2, 0) and (0, 1) on a, with p_a = 1 / (1 + e^-2) and 1 / (1 + e): loss (ln(1 + e^-2) + ln(1 + e)) / 2,
    one of two right. A number added to every logit changes nothing, and exp() must not overflow on it."""
    logits = np.array([[2, 0], [0, 1]], dtype=np.float32) + np.float32(shift)
    figures = compute_trainer_metrics(EvalPrediction(predictions=logits, label_ids=np.array([A, A], np.float32)))
    assert figures["log_loss"] == pytest.approx((math.log1p(math.exp(-2)) + math.log1p(math.e)) / 2)
    assert (figures["accuracy"], figures["battles"]) == (0.5, 2)
