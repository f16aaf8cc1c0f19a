"""Prediction-powered intervals against the authors' package and statsmodels, and simulations of known truth."""

from math import sqrt

import numpy as np
import pytest
from scipy import sparse, special, stats
from statsmodels.genmod.families import Binomial
from statsmodels.genmod.generalized_linear_model import GLM

from benchmarks.studies.prediction_powered import simulate
from modeling.evaluation import leaderboard
from modeling.evaluation.bootstrap import Z_95
from modeling.evaluation.prediction_powered import Powered, estimate_mean, fit_logistic, rate_models

# Ten votes, and twenty battles without one. The features repeat, so that votes and other battles have one Hessian.
X = np.tile(
    [[0.5, 1], [-1, 0], [1.5, -1], [0, 1], [2, 0.5], [-0.5, -1], [1, 1], [-2, 0.5], [0.5, -0.5], [-1.5, 1]], (3, 1)
)
VOTES = np.array([1, 0, 1, 0, 1, 1, 1, 0, 0, 0.0])
LABELS = np.append(VOTES, np.full(20, np.nan))
PREDICTIONS = np.array([8, 3, 6, 4, 9, 5, 6, 2, 6, 3, 7, 2, 9, 5, 8, 4, 6, 1, 5, 4, 6, 3, 7, 6, 9, 3, 8, 2, 4, 2]) / 10
GROUPS = np.arange(30)
# What ppi-python 0.2.3, the package of the authors, gives for them with alpha 0.05: value and half of the interval.
MEANS = {0: (0.5, 0.30989752), 0.5: (0.4925, 0.26915407), 1: (0.485, 0.25125599)}
COEFFICIENTS = {
    0: ([1.97199832, -0.60071149], [1.91972209, 2.12282063]),
    0.5: ([2.31139832, -0.66664839], [3.58129447, 2.6510265]),
    1: ([2.83550775, -0.80007225], [8.5124932, 4.63718609]),
}


def measure_half(powered: Powered) -> float:
    return (powered.both.high - powered.both.low) / 2


def draw_votes(seed: int, battles: int = 400, votes: int = 100, noise: float = 1.0) -> tuple[np.ndarray, ...]:
    """Labels, NaN without a vote, of which the predictions know the more the less noise there is."""
    rng = np.random.default_rng(seed)
    outcomes = (rng.random(battles) < 0.6).astype(float)
    predictions = special.expit(2 * outcomes - 1 + noise * rng.normal(size=battles))
    return np.where(rng.permutation(battles) < votes, outcomes, np.nan), predictions, np.arange(battles)


@pytest.mark.parametrize("power", MEANS)
def test_a_mean_is_that_of_the_authors_package(power):
    """Whose interval has a normal quantile and divides by n: ours has Student's t with 9 degrees and divides by 9."""
    found = estimate_mean(LABELS, PREDICTIONS, GROUPS, power)
    value, half = MEANS[power]
    assert found.both.value == pytest.approx(value)
    assert measure_half(found) == pytest.approx(half / Z_95 * stats.t.ppf(0.975, 9) * sqrt(10 / 9), rel=1e-6)


@pytest.mark.parametrize("power", COEFFICIENTS)
def test_a_logistic_regression_is_that_of_the_authors_package(power):
    """Its covariances divide by n - 1 and by N - 1, ours by n and by N: at most a factor between 10 / 9 and 20 / 19."""
    fit = fit_logistic(sparse.csr_array(X), LABELS, PREDICTIONS, GROUPS, power=power)
    values, halves = COEFFICIENTS[power]
    errors = np.sqrt(((fit.by_votes - power * fit.shift) ** 2).sum(axis=0))
    assert fit.coefficients == pytest.approx(values, rel=1e-4)
    ratios = np.array(halves) / (Z_95 * errors)
    assert (ratios > sqrt(20 / 19) - 1e-4).all() and (ratios < sqrt(10 / 9) + 1e-4).all()


def test_without_a_judge_a_mean_has_student_s_interval():
    found = estimate_mean(LABELS, PREDICTIONS, GROUPS, power=0)
    expected = stats.ttest_1samp(VOTES, 0).confidence_interval(0.95)
    for estimate in (found.votes, found.both):
        assert (estimate.low, estimate.high) == pytest.approx(tuple(expected))
    assert found.effective_votes == pytest.approx(10)


def test_without_a_judge_a_regression_is_statsmodels_with_clusters():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(90, 3)), np.arange(90) // 3
    y = (rng.random(90) < special.expit(x @ [1, -0.5, 0])).astype(float)
    fit = fit_logistic(sparse.csr_array(x), y, rng.random(90), groups, power=0)
    options = {"groups": groups, "use_correction": False}
    expected = GLM(y, x, family=Binomial()).fit(cov_type="cluster", cov_kwds=options)
    assert fit.coefficients == pytest.approx(expected.params, abs=1e-6)
    assert np.sqrt((fit.by_votes**2).sum(axis=0)) == pytest.approx(expected.bse, rel=1e-3)


def test_without_a_judge_ratings_are_the_leaderboard_s():
    rng = np.random.default_rng(0)
    first, second = rng.permuted(np.tile(np.arange(4), (300, 1)), axis=1)[:, :2].T
    y = rng.integers(0, 3, 300) / 2
    found = rate_models(first, second, np.where(np.arange(300) < 200, y, np.nan), rng.random(300), np.arange(300), 0)
    expected = leaderboard.rate_models(first[:200], second[:200], y[:200])
    assert {model: each.both.value for model, each in enumerate(found)} == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("rate", [0.02, 0.07, 0.93, 0.98])
@pytest.mark.parametrize("accuracy", [0.6, 0.93])
@pytest.mark.parametrize("votes", [10, 20])
def test_intervals_of_few_votes_hold_a_share_near_0_or_1(votes, accuracy, rate):
    """Of a judge that is sure of itself: at 0.93 most samples of 10 votes are unanimous, or show no error of it."""
    rng, held = np.random.default_rng(0), np.zeros(2)
    for _ in range(200):
        outcomes = (rng.random(1000) < rate).astype(float)
        predictions = np.abs(outcomes - np.where(rng.random(1000) < accuracy, 0.02, 0.98))
        labels = np.where(rng.permutation(1000) < votes, outcomes, np.nan)
        found = estimate_mean(labels, predictions, np.arange(1000))
        held += [each.low <= rate <= each.high for each in (found.votes, found.both)]
        assert all(0 <= each.low < each.high <= 1 for each in (found.votes, found.both))
    assert (held / 200 >= 0.9).all()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_votes_that_all_agree_have_wilson_s_interval_over_prompts(share):
    """Of n prompts: from 0 to z^2 / (n + z^2), or its mirror image; here 20 votes on 10 prompts."""
    labels, groups = np.append(np.full(20, share), np.full(20, np.nan)), np.arange(40) // 2
    found = estimate_mean(labels, np.linspace(0.1, 0.9, 40), groups)
    width = Z_95**2 / (10 + Z_95**2)
    for each in (found.votes, found.both):
        assert (each.low, each.high) == pytest.approx((0, width) if share == 0 else (1 - width, 1))
    assert found.to_dict()["effective_votes"] is None and found.votes_to_halve is None


def test_ties_alone_have_no_interval():
    """Their spread is 0, and they are no share of wins and losses either."""
    labels = np.append(np.full(20, 0.5), np.full(20, np.nan))
    share = estimate_mean(labels, np.linspace(0.1, 0.9, 40), np.arange(40))
    (rating, _) = rate_models(np.zeros(40, int), np.ones(40, int), labels, np.full(40, 0.7), np.arange(40))
    for found, value in ((share, 0.5), (rating, 1000)):
        assert found.both.value == pytest.approx(value) and np.isnan(found.both.low) and np.isnan(found.votes.low)
        assert found.to_dict()["effective_votes"] is None


@pytest.mark.parametrize(("errors", "trusted"), [(2, False), (3, True)])
def test_a_judge_without_three_errors_on_the_votes_gets_no_weight(errors, trusted):
    """Then both are the votes alone."""
    labels = np.where(np.arange(200) < 50, np.arange(200) % 2, np.nan)
    predictions = np.where(np.arange(200) < errors, 0.9 - 0.8 * (np.arange(200) % 2), 0.1 + 0.8 * (np.arange(200) % 2))
    found = estimate_mean(labels, predictions, np.arange(200))
    assert (found.power > 0) == trusted and (found.both == found.votes) != trusted
    (rating, _) = rate_models(np.zeros(200, int), np.ones(200, int), labels, predictions, np.arange(200))
    assert (rating.power > 0) == trusted


def test_a_label_of_several_votes_shows_a_judges_errors_as_a_single_vote_does():
    """A judge that names the other winner in every fourth battle, by labels of one third and two thirds."""
    rng = np.random.default_rng(0)
    wins, wrong = rng.random(800) < 0.6, np.arange(800) % 4 == 0
    predictions = np.where(wins != wrong, 0.7, 0.3)
    voted = np.arange(800) < 200
    found = [
        estimate_mean(np.where(voted, low + (1 - 2 * low) * wins, np.nan), predictions, np.arange(800))
        for low in (0, 1 / 3)
    ]
    assert found[0].power == pytest.approx(found[1].power * 3, rel=0.01) and found[1].power > 0.1
    assert found[0].effective_votes == pytest.approx(found[1].effective_votes) and found[0].effective_votes > 210


def test_with_a_vote_on_every_battle_the_judge_changes_nothing():
    labels, predictions, groups = draw_votes(0)
    labels = np.where(np.isnan(labels), 1.0, labels)
    first, second = np.arange(len(labels)) % 2, np.full(len(labels), 2)
    alone, both = (rate_models(first, second, labels, predictions, groups, power) for power in (0.0, 0.5))
    assert [row.both.value for row in both] == pytest.approx([row.votes.value for row in alone], abs=1e-6)


def test_what_a_judge_is_worth_is_computed_from_whole_intervals():
    """Those shown end at 0: with three in ten votes for a, half of ten's interval would lie below."""
    labels = np.where(np.arange(300) < 30, np.arange(300) % 10 == 0, np.nan)
    found = estimate_mean(labels, np.full(300, 0.4), np.arange(300))
    assert found.both.low == 0 and found.effective_votes == pytest.approx(30)


def test_a_perfect_judge_is_worth_a_vote_on_every_battle_and_a_useless_one_nothing():
    """With its predictions the labels themselves, the best power is N / (n + N), and the variance that of n + N votes:
    Var = s^2 ((1 - power)^2 / n + power^2 / N)."""
    labels, _, groups = draw_votes(0)
    outcomes = (np.random.default_rng(0).random(400) < 0.6).astype(float)
    perfect = estimate_mean(labels, outcomes, groups, power=300 / 400)
    assert perfect.effective_votes == pytest.approx(400, rel=0.05)
    useless = estimate_mean(labels, np.full(400, 0.9), groups)
    assert useless.both.value == useless.votes.value and useless.power == 0
    assert useless.effective_votes == pytest.approx(100, rel=0.02)


def test_further_votes_halve_the_interval_as_announced():
    """With as many more votes on the same battles. The announcement is off by what 400 votes say about a variance."""
    rng = np.random.default_rng(1)
    outcomes = (rng.random(20_000) < 0.6).astype(float)
    predictions = special.expit(2 * outcomes - 1 + rng.normal(size=20_000))
    found = estimate_mean(np.where(np.arange(20_000) < 400, outcomes, np.nan), predictions, np.arange(20_000))
    more = 400 + found.votes_to_halve
    later = estimate_mean(np.where(np.arange(20_000) < more, outcomes, np.nan), predictions, np.arange(20_000))
    assert measure_half(later) == pytest.approx(measure_half(found) / 2, rel=0.1)
    # Half the width takes more than four times the votes, because the other battles do not become more.
    assert found.votes_to_halve > 3 * 400
    assert estimate_mean(*draw_votes(0, battles=120)).votes_to_halve is None


def test_battles_on_one_prompt_count_once():
    """Each battle twice in its group: the same interval, where independent battles would narrow it by sqrt(2)."""
    labels, predictions, groups = draw_votes(2)
    once = estimate_mean(labels, predictions, groups)
    twice = estimate_mean(*(np.repeat(each, 2) for each in (labels, predictions, groups)))
    assert measure_half(twice) == pytest.approx(measure_half(once))
    apart = estimate_mean(np.repeat(labels, 2), np.repeat(predictions, 2), np.arange(800))
    assert measure_half(apart) == pytest.approx(measure_half(once) / sqrt(2), rel=0.02)


def test_swapped_sides_and_another_order_of_battles_change_nothing():
    rng = np.random.default_rng(3)
    first, second = rng.permuted(np.tile(np.arange(3), (400, 1)), axis=1)[:, :2].T
    labels, predictions, groups = draw_votes(3)
    order, turned = rng.permutation(400), rng.random(400) < 0.5
    found = rate_models(first, second, labels, predictions, groups // 2)
    sides = [np.where(turned, *pair)[order] for pair in ((second, first), (first, second))]
    values = [np.where(turned, 1 - each, each)[order] for each in (labels, predictions)]
    again = rate_models(*sides, *values, groups[order] // 2)
    for one, other in zip(found, again, strict=True):
        assert vars(one.both) == pytest.approx(vars(other.both), abs=1e-3)
    mean, mirrored = (estimate_mean(*each, groups) for each in ((labels, predictions), (1 - labels, 1 - predictions)))
    ends = mean.both.low, mean.both.value, mean.both.high
    assert ends == pytest.approx((1 - mirrored.both.high, 1 - mirrored.both.value, 1 - mirrored.both.low))


@pytest.mark.parametrize("num_groups", [1, 5])
def test_too_few_prompts_or_no_votes_give_no_interval(num_groups):
    labels, predictions, groups = draw_votes(4)
    found = estimate_mean(labels, predictions, groups % num_groups)
    assert np.isnan(found.both.low) and found.to_dict()["effective_votes"] is None and found.votes_to_halve is None
    none = estimate_mean(np.full(400, np.nan), predictions, groups)
    assert none.to_dict()["both"]["value"] is None and none.judge.value == pytest.approx(predictions.mean())
    every = estimate_mean(np.where(np.isnan(labels), 0, labels), predictions, groups)
    assert every.power == 0 and every.both.value == every.votes.value


def test_intervals_hold_the_truth_and_are_narrower_although_the_judge_is_biased():
    """80 repeats. If the intervals of one repeat all hit or miss together, the share that holds the truth has a
    standard error of sqrt(0.95 * 0.05 / 80) = 2.4%; 3 of them are allowed. benchmarks/studies has 1,000 repeats."""
    found = simulate(0.8, repeats=80, seed=0)
    for kind in ("win_rate", "rating"):
        coverage, width = found[kind]["coverage"], found[kind]["width"]
        for way in ("votes", "both"):
            assert coverage[way] >= 0.95 - 3 * sqrt(0.95 * 0.05 / 80), (kind, way)
        assert coverage["judge"] < 0.5 and width["both"] < 0.9 * width["votes"]
        assert found[kind]["effective_votes_per_vote"] > 1.25
