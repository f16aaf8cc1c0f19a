"""Calibration against known truths, and the laws that hold for any probabilities."""

import json

import numpy as np
import pytest
from scipy.special import softmax

from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import compute_log_loss, estimate_metrics
from modeling.judging.calibration import FITS, Calibration, add_intervals, fit_isotonic, fit_labels, fit_temperature


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def stack(p_a: np.ndarray) -> np.ndarray:
    """Probabilities of both labels."""
    return np.column_stack([p_a, 1 - p_a])


def draw_overconfident(battles: int, temperature: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Predictions, and outcomes drawn with the probability that the temperature makes of them."""
    rng = np.random.default_rng(seed)
    odds = rng.normal(size=battles) * 2
    won = (rng.random(battles) < sigmoid(odds / temperature)).astype(float)
    return sigmoid(odds), np.column_stack([won, 1 - won])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_the_temperature_is_recovered(temperature):
    """20,000 outcomes determine the slope 1 / T to about 1.5%."""
    p_a, labels = draw_overconfident(20_000, temperature)
    assert fit_temperature(p_a, labels).temperature == pytest.approx(temperature, rel=0.06)


def test_temperature_of_soft_labels_is_exact_and_by_hand():
    """p 0.9 has odds 9 : 1 = 3^2 : 1. Labels of 0.75 have odds 3 : 1, so T = ln 9 / ln 3 = 2, whatever the side."""
    calibration = fit_temperature(np.array([0.9, 0.1]), np.array([[0.75, 0.25], [0.25, 0.75]]))
    assert calibration.temperature == pytest.approx(2, rel=1e-4)
    assert calibration.apply(np.array([0.9, 0.5, 0.1])) == pytest.approx([0.75, 0.5, 0.25], abs=1e-5)


def test_isotonic_pools_labels_out_of_order_by_hand():
    """Labels 0.6, 0.9, 0.7 for p 0.6, 0.7, 0.8, and their mirror images: 0.9 and 0.7 are pooled to 0.8. A hundredth of
    p is mixed in, and no step is surer than 1 in 5, which 0.8 is just not."""
    calibration = fit_isotonic(np.array([0.6, 0.7, 0.8]), np.array([[0.6, 0.4], [0.9, 0.1], [0.7, 0.3]]))
    expected = [0.99 * 0.6 + 0.006, 0.99 * 0.8 + 0.007, 0.99 * 0.8 + 0.008]
    assert calibration.apply(np.array([0.6, 0.7, 0.8])) == pytest.approx(expected)


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize("truth", [0.5, 2.5, -1.0], ids=["timid", "overconfident", "wrong way round"])
def test_symmetry_order_and_winners_are_kept(method, truth):
    """For any probabilities, including 0, 1 and values that were not fitted, and even if the judge is worse than
    chance."""
    calibration = FITS[method](*draw_overconfident(300, truth))
    p = np.sort(np.concatenate([[0, 1e-9, 0.5, 1 - 1e-9, 1], np.random.default_rng(1).random(500)]))
    found = calibration.apply(p)
    assert np.allclose(found + calibration.apply(1 - p), 1, rtol=0, atol=1e-15)
    assert (np.diff(found) >= 0).all() and (np.diff(found[(p > 1e-6) & (p < 1 - 1e-6)]) > 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    assert ((found >= 0.5) == (p >= 0.5)).all() and calibration.apply(np.array([0.5]))[0] == 0.5


@pytest.mark.parametrize("method", FITS)
def test_an_overconfident_judge_becomes_calibrated_on_other_battles(method):
    """Fitted on one half, measured on the other: the ECE falls to what chance leaves (about 0.8 sqrt(p q / n) per bin:
    0.01 with 1,000 battles each) and the log loss falls; the accuracy stays."""
    p_a, labels = draw_overconfident(10_000, 3)
    calibration = FITS[method](p_a[:5000], labels[:5000])
    resampler, labels = Resampler(range(5000), draws=1), labels[5000:]
    before, after = (
        estimate_metrics(resampler, np.column_stack([p, 1 - p]), labels)
        for p in (p_a[5000:], calibration.apply(p_a[5000:]))
    )
    assert before["ece"].value > 0.12 and after["ece"].value < 0.03
    assert after["log_loss"].value < before["log_loss"].value - 0.05
    assert after["accuracy"].value == before["accuracy"].value
    assert after["auc"].value == pytest.approx(before["auc"].value, abs=1e-12)


def test_few_battles_without_an_upset_prove_no_certainty():
    """Eight of eight right: the surest step is 1 - 1/10, and the temperature stops at its end, not at 0."""
    p_a, labels = np.linspace(0.6, 0.9, 8), np.tile([1.0, 0.0], (8, 1))
    assert fit_isotonic(p_a, labels).apply(np.array([0.9]))[0] == pytest.approx(0.99 * 0.9 + 0.009)
    assert 0.01 <= fit_temperature(p_a, labels).temperature < 0.011


@pytest.mark.parametrize("method", FITS)
def test_a_calibration_survives_json_to_the_last_bit(method):
    calibration = FITS[method](*draw_overconfident(200, 2))
    again = Calibration.from_dict(json.loads(json.dumps(calibration.to_dict(), allow_nan=False)))
    p = np.random.default_rng(2).random(100)
    assert again == calibration and (again.apply(p) == calibration.apply(p)).all()


@pytest.mark.parametrize("method", FITS)
def test_ties_and_constant_predictions_are_fitted_and_missing_ones_stay_missing(method):
    """Ties alone give 1/2 everywhere. A constant 0.7 that wins three of four times becomes 0.75."""
    ties = FITS[method](np.array([0.6, 0.9]), np.array([[0.5, 0.5]] * 2))
    assert ties.apply(np.array([0.6, 0.9])) == pytest.approx([0.5, 0.5], abs=0.006)
    constant = FITS[method](np.full(4, 0.7), np.array([[1, 0]] * 3 + [[0, 1]]))
    assert constant.apply(np.array([0.7]))[0] == pytest.approx(0.75, abs=1e-3)
    assert np.isnan(constant.apply(np.array([np.nan]))).all()


@pytest.mark.parametrize("method", FITS)
@pytest.mark.parametrize(
    "p_a, labels, expected",
    [
        ([], np.zeros((0, 2)), "expected battles to fit it on; found none"),
        ([np.nan], [[1, 0]], "found NaN"),
        ([0.5], [[np.nan, 1]], "found NaN"),
        ([0.5, 0.5], [[1, 0]], "one shape"),
    ],
)
def test_battles_that_cannot_be_fitted_are_refused(method, p_a, labels, expected):
    with pytest.raises(ValueError, match=expected):
        FITS[method](np.array(p_a), np.array(labels))


@pytest.mark.parametrize(
    "facts, expected",
    [
        ({"method": "platt", "battles": 1}, "expected the method temperature or isotonic; found 'platt'"),
        ({"method": "temperature", "battles": 1}, "expected a temperature above 0; found None"),
        ({"method": "temperature", "battles": 1, "temperature": -1}, "expected a temperature above 0; found -1"),
        ({"method": "isotonic", "battles": 1}, "expected ascending points"),
        ({"method": "isotonic", "battles": 1, "points": [[0, 0.5], [1, 0.2]]}, "expected ascending points"),
        ({"method": "temperature", "temperature": 1}, "expected the keys"),
        ({"method": "temperature", "battles": 1, "temperature": 1, "slope": 2}, "expected the keys"),
    ],
)
def test_malformed_calibrations_are_refused(facts, expected):
    with pytest.raises(ValueError, match=expected):
        Calibration.from_dict(facts)


def test_calibration_never_costs_log_loss_where_it_was_fitted():
    """Temperature 1, which changes nothing, is among the candidates."""
    p_a, labels = draw_overconfident(100, 1.3, seed=5)
    for fit in (fit_temperature, fit_isotonic):
        after = fit(p_a, labels).apply(p_a)
        losses = [compute_log_loss(np.column_stack([p, 1 - p]), labels).value for p in (p_a, after)]
        assert losses[1] <= losses[0] + 1e-6


def test_an_interval_holds_the_true_temperature():
    """In 95% of cases: of 40 samples of 120 battles, fewer than 34 hold it with probability 0.003 (binomial)."""
    held = 0
    for seed in range(40):
        p_a, labels = draw_overconfident(120, 1.5, seed)
        found = add_intervals(fit_temperature(p_a, labels), stack(p_a), labels, range(120)).intervals["temperature"]
        held += found["low"] <= 1.5 <= found["high"]
    assert held >= 34


@pytest.mark.parametrize("method", FITS)
def test_intervals_narrow_with_more_battles_and_survive_json(method):
    """Four times as many battles halve the width of a temperature's interval; isotonic's steps converge more slowly."""
    widths = []
    for battles in (300, 1200):
        p_a, labels = draw_overconfident(battles, 1.5)
        calibration = add_intervals(FITS[method](p_a, labels), stack(p_a), labels, range(battles))
        assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration
        assert set(calibration.intervals) == set(calibration.list_parameters())
        assert all(each["count"] == battles for each in calibration.intervals.values())
        widths.append(np.mean([each["high"] - each["low"] for each in calibration.intervals.values()]))
    assert widths[1] < 0.8 * widths[0]


def test_battles_of_one_prompt_widen_the_interval():
    """Each battle four times is no more evidence: by group the width is that of the battles once, else half of it."""
    p_a, labels = draw_overconfident(300, 1.5)
    p_4, labels_4 = np.tile(p_a, 4), np.tile(labels, (4, 1))
    widths = []
    for p, outcomes, groups in ((p_a, labels, 1), (p_4, labels_4, 1), (p_4, labels_4, 4)):
        numbers = np.arange(len(p)) if groups == 1 else np.tile(np.arange(300), 4)
        found = add_intervals(fit_temperature(p, outcomes), stack(p), outcomes, numbers).intervals["temperature"]
        widths.append(found["high"] - found["low"])
    assert widths[2] == pytest.approx(widths[0], rel=1e-3) and widths[1] < 0.65 * widths[0]


@pytest.mark.parametrize(
    "groups", [list(range(8)), [0] * 8], ids=["no upset bounds the temperature", "one prompt has no spread"]
)
def test_what_has_no_interval_has_none(groups):
    labels = np.tile([1.0, 0.0], (8, 1))
    labels[0] = [0.0, 1.0] if groups[-1] == 0 else labels[0]
    p_a = np.linspace(0.6, 0.9, 8)
    found = add_intervals(fit_temperature(p_a, labels), stack(p_a), labels, groups).intervals["temperature"]
    assert (found["low"], found["high"], found["count"]) == (None, None, 8)


# --- ties -------------------------------------------------------------------------------------------------------------


def draw_davidson(battles: int, nu: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of a, and outcomes of three drawn as Davidson's model has them."""
    rng = np.random.default_rng(seed)
    p_a = sigmoid(rng.normal(size=battles) * 1.5)
    scores = np.column_stack([p_a, 1 - p_a, nu * np.sqrt(p_a * (1 - p_a))])
    chances = scores / scores.sum(axis=1, keepdims=True)
    return p_a, np.eye(3)[(rng.random((battles, 1)) > chances.cumsum(axis=1)).sum(axis=1)]


@pytest.mark.parametrize("nu", [0.3, 1.0, 3.0])
def test_nu_is_recovered(nu):
    """20,000 outcomes, of which a tenth or more are ties, determine nu to about 3%."""
    p_a, labels = draw_davidson(20_000, nu)
    found = fit_labels("temperature", stack(p_a), labels, ties=True)
    assert np.exp(found.ties) == pytest.approx(nu, rel=0.1) and found.temperature == pytest.approx(1, rel=0.1)


def test_a_draw_without_a_winner_does_not_end_the_calibration():
    """One battle of twelve was won, which every third draw leaves out: nothing is known of the parameters."""
    p_a, labels = np.full((12, 2), 0.5), np.tile([0.0, 0.0, 1.0], (12, 1))
    p_a[0], labels[0] = [0.8, 0.2], [1.0, 0.0, 0.0]
    fitted = fit_labels("temperature", p_a, labels, ties=True)
    assert {found["low"] for found in add_intervals(fitted, p_a, labels, range(12)).intervals.values()} == {None}


@pytest.mark.parametrize("nu", [0.05, 20])
def test_a_rare_or_frequent_tie_has_an_interval_and_one_that_never_occurs_has_none(nu):
    """Nu may be below 0.1 or above 10, where a temperature would say nothing. Without ties it falls to its least."""
    p_a, labels = draw_davidson(2000, nu)
    fitted = fit_labels("temperature", stack(p_a), labels, ties=True)
    found = add_intervals(fitted, stack(p_a), labels, range(2000)).intervals["nu of ties"]
    assert found["low"] < nu < found["high"]
    decided = labels[:, 2] == 0
    fitted = fit_labels("temperature", stack(p_a[decided]), labels[decided], ties=True)
    found = add_intervals(fitted, stack(p_a[decided]), labels[decided], range(decided.sum())).intervals["nu of ties"]
    assert found["value"] < 1e-3 and found["low"] is None


@pytest.mark.parametrize("method", FITS)
def test_ties_keep_the_ratio_and_swap_with_the_answers(method):
    p_a, labels = draw_davidson(400, 0.7)
    fitted = fit_labels(method, stack(p_a), labels, ties=True)
    p = fitted.apply_to_labels(stack(p_a))
    assert p.sum(axis=1) == pytest.approx(1) and (p > 0).all()
    assert p[:, 0] / (p[:, 0] + p[:, 1]) == pytest.approx(fitted.apply(p_a))
    assert fitted.apply_to_labels(stack(1 - p_a))[:, [1, 0, 2]] == pytest.approx(p, abs=1e-12)
    assert p[p_a.argsort()[:200], 2].tolist() == sorted(p[p_a.argsort()[:200], 2])  # most near 1/2
    assert Calibration.from_dict(json.loads(json.dumps(fitted.to_dict()))) == fitted


def test_nu_by_hand():
    """Of p 0.5 the tie's score is nu / 2, and p_tie = (nu / 2) / (1 + nu / 2) is a third for nu = 1."""
    labels = np.array([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    fitted = fit_labels("temperature", np.full((3, 2), 0.5), labels, ties=True)
    assert np.exp(fitted.ties) == pytest.approx(1, abs=1e-3)
    assert fitted.apply_to_labels(np.full((1, 2), 0.5))[0] == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_three_labels_recover_temperature_and_nu():
    """Scores times 2 and a tie's plus 1 are undone by T = 2 and by ln nu = -1 / 2."""
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(20_000, 3))
    chances = softmax(scores, axis=1)
    labels = np.eye(3)[(rng.random((len(scores), 1)) > chances.cumsum(axis=1)).sum(axis=1)]
    given = softmax(2 * scores + [0, 0, 1], axis=1)
    fitted = fit_labels("temperature", given, labels)
    assert fitted.temperature == pytest.approx(2, rel=0.05) and fitted.ties == pytest.approx(-0.5, abs=0.05)
    before, after = (compute_log_loss(p, labels).value for p in (given, fitted.apply_to_labels(given)))
    assert after < before
    assert fitted.apply_to_labels(given[:, [1, 0, 2]])[:, [1, 0, 2]].tolist() == fitted.apply_to_labels(given).tolist()


def test_no_fit_raises_the_loss_on_its_own_battles():
    """Also of three labels whose probabilities are right already, and of a handful of battles."""
    for battles in (3, 10, 200):
        rng = np.random.default_rng(battles)
        given = rng.dirichlet(np.ones(3), battles)
        labels = np.eye(3)[(rng.random((battles, 1)) > given.cumsum(axis=1)).sum(axis=1)]
        fitted = fit_labels("temperature", given, labels)
        after = compute_log_loss(fitted.apply_to_labels(given), labels).value
        assert after <= compute_log_loss(given, labels).value + 1e-9


def test_isotonic_is_for_two_labels():
    with pytest.raises(ValueError, match=r"--calibrate isotonic: expected temperature.*a, b, tie"):
        fit_labels("isotonic", np.full((4, 3), 1 / 3), np.eye(3)[[0, 1, 2, 0]])
