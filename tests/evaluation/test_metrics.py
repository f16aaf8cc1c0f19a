"""Metrics against scikit-learn and numbers derived by hand, and the coverage of the fast intervals."""

import socket
import sys
from math import e, exp, inf, isnan, log, log1p
from pathlib import Path
from statistics import NormalDist

import evaluate
import numpy as np
import pytest
from scipy.stats import binom
from sklearn.metrics import brier_score_loss, roc_auc_score
from sklearn.metrics import log_loss as sklearn_log_loss
from transformers import EvalPrediction

from modeling.evaluation import metrics
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import (
    check_bounds,
    compute_accuracy,
    compute_log_loss,
    compute_mcnemar,
    estimate_metrics,
    estimate_reliability,
    estimate_selective,
)
from modeling.evaluation.trainer_metrics import PreferenceMetric, build_trainer_metrics
from tests.helpers import REPOSITORY, succeed

SCRIPTS = REPOSITORY / "scripts"
Z = NormalDist().inv_cdf(0.975)
A, B, TIE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]
PROBABILITIES = np.array([[0.8, 0.2], [0.6, 0.4], [0.3, 0.7], [0.9, 0.1]])
LABELS = np.array([A, B, [0.2, 0.8], TIE])


def measure(probabilities, labels, **options) -> dict[str, metrics.Estimate]:
    """Estimates all metrics, each battle as its own group."""
    return estimate_metrics(Resampler(range(len(labels)), draws=200), probabilities, np.array(labels), **options)


def stack(p_a) -> np.ndarray:
    return np.column_stack([p_a, 1 - np.asarray(p_a)])


def measure_hits(hits: int, battles: int) -> metrics.Estimate:
    """Returns the accuracy of predictions of which `hits` are right."""
    return compute_accuracy(np.tile(A, (battles, 1)), np.array([A] * hits + [B] * (battles - hits)))


@pytest.mark.parametrize("step", [1, -1], ids=["a first", "b first"])
def test_accuracy_leaves_ties_out_and_log_loss_includes_them(step):
    """Right, wrong, right on a soft label, and a tie: accuracy 2 of 3. Log loss: -ln 0.8 - ln 0.4
    - (0.2 ln 0.3 + 0.8 ln 0.7) - (ln 0.9 + ln 0.1) / 2 = 0.2231 + 0.9163 + 0.5261 + 1.2040, over 4 battles 0.7174."""
    mirrored = PROBABILITIES[:, ::step], LABELS[:, ::step]
    accuracy, log_loss = compute_accuracy(*mirrored), compute_log_loss(*mirrored)
    assert (accuracy.value, accuracy.count) == (pytest.approx(2 / 3), 3)
    assert (log_loss.value, log_loss.count) == (pytest.approx(0.71738, abs=1e-5), 4)


def test_the_log_loss_interval_is_a_means():
    """Losses ln 2 and ln 4: mean 1.5 ln 2, standard deviation ln(2) / sqrt 2, standard error ln(2) / 2."""
    log_loss = compute_log_loss([[0.5, 0.5], [0.25, 0.75]], [A, A])
    assert [log_loss.low, log_loss.high] == pytest.approx([log(2) * (1.5 - Z / 2), log(2) * (1.5 + Z / 2)])


@pytest.mark.parametrize("hits, battles", [(3, 4), (34, 49), (0, 3), (0, 1), (1, 1), (16, 16), (1000, 1000)])
def test_accuracy_interval_is_wilsons_and_inside_0_and_1(hits, battles):
    """The ends solve (share - p)^2 = z^2 p (1 - p) / n: p^2 (1 + z^2/n) - p (2 share + z^2/n) + share^2 = 0. For 16 of
    16 the ends are 1 and n / (n + z^2) = 0.806, and rounding must not give more than 1."""
    accuracy, share, spread = measure_hits(hits, battles), hits / battles, Z**2 / battles
    ends = sorted(np.roots([1 + spread, -(2 * share + spread), share**2]))
    assert (accuracy.low, accuracy.value, accuracy.high) == pytest.approx((ends[0], share, ends[1]), abs=1e-9)
    assert accuracy.low >= 0 and accuracy.high <= 1


def test_the_accuracy_interval_has_its_nominal_coverage():
    """For true accuracies between 1/2 and 1 the expected coverage is 0.950, within 0.005 in 2,000 draws. The interval
    share +- z sqrt(share (1 - share) / n) would have 0.901."""
    rng = np.random.default_rng(0)
    truths = rng.uniform(0.5, 1, size=2000)
    estimates = [measure_hits(hits, 49) for hits in rng.binomial(49, truths).tolist()]
    covered = [estimate.low <= truth <= estimate.high for estimate, truth in zip(estimates, truths, strict=True)]
    assert np.mean(covered) >= 0.93


def test_accuracy_over_49_battles_is_uncertain_by_13_points():
    """The reason why every accuracy has an interval. Wilson's half width is largest at 1/2, where it is
    z / (2 sqrt(n + z^2)) = 1.96 / (2 sqrt 52.84) = 0.135; it is 0.125 at 34 of 49, and 0.009 at 6,860 of 10,000."""
    for hits, battles, half in ((25, 49, 0.135), (34, 49, 0.125), (6860, 10_000, 0.009)):
        accuracy = measure_hits(hits, battles)
        assert (accuracy.high - accuracy.low) / 2 == pytest.approx(half, abs=5e-4)


@pytest.mark.parametrize(
    "predictions, labels, accuracy, log_loss",
    [
        ([[0.5, 0.5]] * 4, [A, B, B, B], 0.25, log(2)),  # equal probabilities count as the first label
        ([[0.5, 0.5], [0.75, 0.25]], [B, B], 0, 1.5 * log(2)),
        ([A, B], [A, B], 1, 0),
        ([A, A], [B, B], 0, 7 * log(10)),  # probability 0 counts as 1e-7: -ln 1e-7 = 7 ln 10 = 16.1
    ],
    ids=["constant", "one class", "perfect", "sure mistakes"],
)
def test_extreme_predictions_have_finite_metrics(predictions, labels, accuracy, log_loss):
    estimates = compute_accuracy(predictions, labels), compute_log_loss(predictions, labels)
    assert [estimate.value for estimate in estimates] == pytest.approx([accuracy, log_loss])
    assert np.isfinite([[estimate.low, estimate.high] for estimate in estimates]).all()


def test_no_battles_give_nan_and_one_battle_an_unbounded_loss():
    empty = np.zeros((0, 2))
    for estimate in (compute_accuracy(empty, empty), compute_log_loss(empty, empty), compute_accuracy([A], [TIE])):
        assert isnan(estimate.value) and isnan(estimate.low) and isnan(estimate.high) and estimate.count == 0
    assert (compute_log_loss([A], [A]).low, compute_log_loss([A], [A]).high) == (-inf, inf)


@pytest.mark.parametrize("compute", [compute_accuracy, compute_log_loss])
def test_nan_and_wrong_shapes_are_refused(compute):
    wrong = [(PROBABILITIES, LABELS[:3]), (PROBABILITIES[:, 0], LABELS[:, 0]), (PROBABILITIES, LABELS[:, :1])]
    for predictions, labels in (*wrong, ([[np.nan, 1]], [A]), ([A], [[np.nan, 1]])):
        with pytest.raises(ValueError, match=r"one shape \(battles, labels\); found|found NaN"):
            compute(predictions, labels)


def test_baselines_choose_the_first_and_the_longer_answer():
    """Always a is right on rows 1 and 4 of the four decided ones. The longer answer is right on 1 and 2, wrong on 3,
    and on 4 equal lengths count as a. Lengths are in characters: two CJK characters are six bytes. Row 5 is a tie."""
    answers = ["long answer", "日本", "longer", "same", "x"], ["short", "abc", "brief", "size", "yy"]
    baselines = metrics.compute_baselines(*answers, [A, B, B, A, TIE])
    results = {name: (baseline.value, baseline.count) for name, baseline in baselines.items()}
    assert results == {"always a": (0.5, 4), "longer wins": (0.75, 4)}
    with pytest.raises(ValueError):
        metrics.compute_baselines(["x"], ["x", "y"], [A, B])


def test_the_evaluate_metric_gives_the_functions_results_without_a_network(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("PreferenceMetric used the network"))
    columns = np.random.default_rng(0).random((2, 40))
    predictions, references = (np.column_stack([column, 1 - column]) for column in columns)
    accuracy, log_loss = compute_accuracy(predictions, references), compute_log_loss(predictions, references)
    expected = {"accuracy": accuracy.value, "accuracy_low": accuracy.low, "accuracy_high": accuracy.high}
    results = PreferenceMetric().compute(predictions=predictions, references=references)
    expected |= {"log_loss": log_loss.value, "log_loss_low": log_loss.low, "log_loss_high": log_loss.high}
    others = measure(predictions, references)
    expected |= {name: others[name].value for name in ("brier", "ece", "auc")}
    assert results == pytest.approx({**expected, "battles": 40})
    assert "auc" not in PreferenceMetric().compute(predictions=[A], references=[A])  # AUC needs both classes
    assert issubclass(PreferenceMetric, evaluate.Metric)


@pytest.mark.parametrize("shift", [0, 1e4, -1e4])
def test_trainer_metrics_apply_a_softmax_to_logits(shift):
    """Logits (2, 0) and (0, 1) with label a give p_a = 1 / (1 + e^-2) and 1 / (1 + e): loss
    (ln(1 + e^-2) + ln(1 + e)) / 2, one of two right. A number added to all logits changes nothing, and exp() must not
    overflow."""
    logits = np.array([[2, 0], [0, 1]], dtype=np.float32) + np.float32(shift)
    compute = build_trainer_metrics(1, [False, False])
    results = compute(EvalPrediction(predictions=logits, label_ids=np.array([A, A])))
    assert results["log_loss"] == pytest.approx((log1p(exp(-2)) + log1p(e)) / 2)
    assert (results["accuracy"], results["battles"]) == (0.5, 2)
    assert "accuracy_cut" not in results


def test_trainer_metrics_average_two_orders_and_separate_cut_battles():
    """Two battles, each read in order ab and then ba. softmax(ln 3, 0) = (3/4, 1/4); equal logits give (1/2, 1/2).
    First battle: ab gives a 3/4, ba gives b, its first slot, 3/4, so p_a is 1/2. Second: 3/4 and 1/2, so 5/8."""
    logits = np.log(np.array([[3, 1], [3, 1], [3, 1], [1, 1]]))
    labels = np.array([A, B, A, B], dtype=float)  # by slot
    results = build_trainer_metrics(2, [True, False])(EvalPrediction(predictions=logits, label_ids=labels))
    assert results["log_loss"] == pytest.approx(-(np.log(1 / 2) + np.log(5 / 8)) / 2)
    assert results["battles"] == 2 and results["accuracy_uncut"] == 1.0
    assert (results["battles_cut"], results["battles_uncut"]) == (1, 1)


# --- all metrics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("digits", [15, 1], ids=["distinct", "many equal"])
def test_metrics_are_scikit_learns_on_hard_labels(digits):
    rng = np.random.default_rng(3)
    p_a = rng.uniform(0.01, 0.99, 500).round(digits)
    won = rng.random(500) < p_a
    results = measure(stack(p_a), stack(won.astype(float)))
    assert results["log_loss"].value == pytest.approx(sklearn_log_loss(won, p_a))
    assert results["brier"].value == pytest.approx(brier_score_loss(won, p_a))
    assert results["auc"].value == pytest.approx(roc_auc_score(won, p_a))
    assert results["accuracy"].value == pytest.approx(((p_a >= 0.5) == won).mean())
    assert [estimate.count for estimate in results.values()] == [500] * 5


def test_soft_labels_and_ties_by_hand():
    """p_a 0.8, 0.6, 0.3, 0.9 and labels of a 1, 0, 0.2, 1/2. Brier: (0.04 + 0.36 + 0.01 + 0.16) / 4. AUC without the
    tie: 0.8 is above 0.6 and 0.3. ECE: the favoured answers have 0.8, 0.6, 0.7 (0.3 is 0.7 for b, whose label is 0.8)
    and 0.9, each in a bin of its own: (|0.8 - 1| + |0.6 - 0| + |0.7 - 0.8| + |0.9 - 0.5|) / 4 = 1.3 / 4."""
    results = measure(PROBABILITIES, LABELS)
    assert results["brier"].value == pytest.approx(0.57 / 4)
    assert (results["auc"].value, results["auc"].count) == (1, 3)
    assert (results["ece"].value, results["ece"].count) == (pytest.approx(1.3 / 4), 4)
    assert (results["accuracy"].value, results["accuracy"].count) == (pytest.approx(2 / 3), 3)
    assert results["log_loss"].value == pytest.approx(compute_log_loss(PROBABILITIES, LABELS).value)


def test_errors_within_a_bin_of_the_ece_cancel():
    """0.62 and 0.68, one right and one wrong: mean 0.65 against a share of 1/2. 0.7 is in the next bin."""
    results = measure(stack(np.array([0.62, 0.68])), [A, B])
    assert results["ece"].value == pytest.approx(0.15)
    rows = estimate_reliability(Resampler(range(3)), stack(np.array([0.62, 0.68, 0.7])), np.array([A, B, A]))
    expected = [(0.6, 0.7, pytest.approx(0.65), 0.5, 2), (0.7, 0.8, pytest.approx(0.7), 1, 1)]
    assert [tuple(row[key] for key in ("low", "high", "mean_p", "share", "battles")) for row in rows] == expected


def test_swapped_answers_give_the_same_metrics():
    rng = np.random.default_rng(4)
    probabilities, labels = stack(rng.random(300)), stack(rng.choice([0, 0.2, 0.5, 1], 300))
    straight, turned = measure(probabilities, labels), measure(probabilities[:, ::-1], labels[:, ::-1])
    for name, estimate in straight.items():
        assert [*vars(estimate).values()] == pytest.approx([*vars(turned[name]).values()], abs=1e-6), name


@pytest.mark.parametrize(
    "predictions, labels, expected",
    [
        # Always 1/2 counts as a, is calibrated because it favours neither answer, and ranks nothing.
        (
            [[0.5, 0.5]] * 4,
            [A, A, B, A],
            {"accuracy": 0.75, "log_loss": log(2), "brier": 0.25, "ece": 0, "auc": 0.5},
        ),
        ([A, B, A], [A, B, A], {"accuracy": 1, "log_loss": 0, "brier": 0, "ece": 0, "auc": 1}),
        ([B, A, B], [A, B, A], {"accuracy": 0, "log_loss": 7 * log(10), "brier": 1, "ece": 1, "auc": 0}),
        (
            [[0.75, 0.25]] * 3,
            [A, A, A],
            {"accuracy": 1, "log_loss": log(4 / 3), "brier": 1 / 16, "ece": 0.25, "auc": None},
        ),
        (
            [[0.75, 0.25]] * 2,
            [TIE, TIE],
            {"accuracy": None, "log_loss": (log(4 / 3) + log(4)) / 2, "ece": 0.25, "auc": None},
        ),
        (np.zeros((0, 2)), np.zeros((0, 2)), dict.fromkeys(["accuracy", "log_loss", "brier", "ece", "auc"])),
    ],
    ids=["constant", "perfect", "wrong", "one class", "ties only", "empty"],
)
def test_extreme_cases_have_defined_results(predictions, labels, expected):
    """If there is nothing to score, the value is None and the count 0. JSON values are never NaN."""
    results = {name: estimate.to_dict() for name, estimate in measure(np.array(predictions), labels).items()}
    for name, value in expected.items():
        assert results[name]["value"] == (value if value is None else pytest.approx(value, abs=1e-12)), name
        assert (results[name]["count"] == 0) == (value is None)
        assert not any(isinstance(end, float) and isnan(end) for end in results[name].values())


def test_a_part_is_scored_like_a_file_of_its_own():
    part = np.array([True, False, True, True])
    alone = measure(PROBABILITIES[part], LABELS[part])
    results = measure(PROBABILITIES, LABELS, part=part)
    assert [(e.value, e.count) for e in results.values()] == [(pytest.approx(e.value), e.count) for e in alone.values()]


@pytest.mark.parametrize("estimate", [estimate_metrics, estimate_reliability, estimate_selective])
def test_all_metrics_refuse_nan(estimate):
    for probabilities, labels in (([[np.nan, 1]], [A]), ([A], [[np.nan, 1]])):
        with pytest.raises(ValueError, match="found NaN"):
            estimate(Resampler([0]), np.array(probabilities), np.array(labels))


def test_the_most_confident_verdicts_come_first_and_ties_are_left_out():
    """Ten decided battles, of which the three least confident are wrong, and a tie that is the most confident."""
    p_a = np.array([0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.4, 0.45, 0.48, 0.99])
    labels = np.array([A] * 10 + [TIE])
    rows = estimate_selective(Resampler(range(11)), stack(p_a), labels)
    assert [row["battles"] for row in rows] == list(range(1, 11))
    assert [row["accuracy"]["value"] for row in rows] == pytest.approx([1] * 7 + [7 / 8, 7 / 9, 7 / 10])
    assert [row["share"] for row in rows] == pytest.approx(np.arange(1, 11) / 10)


def test_mcnemar_counts_battles_that_only_one_gets_right():
    """6 against 1 on the battles that differ: both tails of 7 fair coins, 2 (1 + 7) / 2^7 = 0.125."""
    hits, others = np.array([1] * 6 + [0] + [1] * 20, bool), np.array([0] * 6 + [1] + [1] * 20, bool)
    test = compute_mcnemar(hits, others)
    assert test == {"only_first": 6, "only_second": 1, "p_value": pytest.approx(0.125)}
    assert test["p_value"] == pytest.approx(2 * binom.cdf(1, 7, 0.5))
    assert compute_mcnemar(hits, hits) == {"only_first": 0, "only_second": 0, "p_value": 1.0}


def test_a_script_named_evaluate_does_not_hide_the_library():
    """`python scripts/predict.py` puts scripts/ first on the import path, where evaluate.py hides the library."""
    code = f"""
import sys
from importlib.util import find_spec
sys.argv, sys.path[0] = [{str(SCRIPTS / "predict.py")!r}], {str(SCRIPTS)!r}
print(find_spec("evaluate").origin)
from modeling.runtime.startup import run_script

def main():
    from modeling.evaluation.trainer_metrics import evaluate
    print(evaluate.__file__)

run_script(main)
"""
    hidden, found = map(Path, succeed(sys.executable, "-c", code).splitlines()[-2:])
    assert hidden == SCRIPTS / "evaluate.py"  # the trap is real
    assert found.parent.name == "evaluate" and SCRIPTS not in found.parents


def test_bounds_are_met_from_the_better_side_and_never_without_a_value():
    """Every metric is between its best value and 0.5, which is both a bad accuracy and a bad Brier score."""
    best = {"accuracy": 1.0, "log_loss": 0.0, "brier": 0.0, "ece": 0.0, "auc": 1.0}
    for value, passed in ((0.5, True), (None, False)):
        estimates = {name: {"value": value} for name in best}
        assert [row["passed"] for row in check_bounds(estimates, dict.fromkeys(best, 0.5))] == [passed] * 5
        assert not any(row["passed"] for row in check_bounds(estimates, best))
        worse = {name: 1 - bound for name, bound in best.items()}
        assert [row["passed"] for row in check_bounds(estimates, worse)] == [passed] * 5


# --- three labels -----------------------------------------------------------------------------------------------------


def draw_three(battles: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Random probabilities of three outcomes, and outcomes drawn from them, by number."""
    rng = np.random.default_rng(0)
    p = rng.dirichlet(np.ones(3), battles)
    return p, (rng.random((battles, 1)) > p.cumsum(axis=1)).sum(axis=1)


def test_metrics_of_three_labels_are_scikit_learns():
    """The AUC is over the battles that a or b won, of what each can expect with half of a tie."""
    p, truth = draw_three()
    found = measure(p, np.eye(3)[truth])
    assert found["accuracy"].value == pytest.approx((p.argmax(axis=1) == truth).mean())
    assert found["accuracy"].count == len(p)
    assert found["log_loss"].value == pytest.approx(sklearn_log_loss(truth, p))
    assert found["brier"].value == pytest.approx(brier_score_loss(truth, p, labels=[0, 1, 2]))
    won = truth < 2
    expected = roc_auc_score(truth[won] == 0, p[won, 0] + p[won, 2] / 2)
    assert found["auc"].value == pytest.approx(expected) and found["auc"].count == won.sum()


def test_metrics_of_three_labels_swap_with_the_answers():
    p, truth = draw_three()
    labels = np.eye(3)[truth]
    found, swapped = measure(p, labels), measure(p[:, [1, 0, 2]], labels[:, [1, 0, 2]])
    for name in ("accuracy", "log_loss", "brier", "ece", "auc"):
        assert swapped[name].value == pytest.approx(found[name].value), name


def test_ece_of_three_labels_by_hand():
    """Two battles of 0.4, one right: a gap of 0.1. Two of 0.9, both right: also 0.1. Bins begin at 1/3."""
    p = np.array([[0.4, 0.3, 0.3], [0.3, 0.4, 0.3], [0.05, 0.05, 0.9], [0.9, 0.05, 0.05]])
    labels = np.eye(3)[[0, 2, 2, 0]]
    assert measure(p, labels)["ece"].value == pytest.approx(0.1)
    rows = estimate_reliability(Resampler(range(4), draws=200), p, labels)
    assert [(row["low"], row["high"], row["share"]) for row in rows] == [(0.333, 0.467, 0.5), (0.867, 1.0, 1.0)]
