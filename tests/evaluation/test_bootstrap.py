"""Coverage of the bootstrap intervals, and the fast sums against battles drawn one by one."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from modeling.evaluation.bootstrap import UNKNOWN, Estimate, Resampler, bound_draws, bound_share, format_estimate
from modeling.evaluation.metrics import estimate_metrics

GROUPS = np.array([4, 0, 5, 1, 2, 0, 3, 4, 2, 0])


def draw_groups(rng: np.random.Generator, num_groups: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Draws groups of one to five battles; returns each battle's group and its prompt's effect."""
    groups = np.repeat(np.arange(num_groups), rng.integers(1, 6, num_groups))
    return groups, rng.normal(size=num_groups)[groups]


def simulate(estimate, truth: float, sets: int = 300) -> float:
    """Returns the share of simulated data sets whose interval contains the true value."""
    held = [estimate(np.random.default_rng(seed)) for seed in range(sets)]
    return float(np.mean([each.low <= truth <= each.high for each in held]))


def test_accuracy_intervals_have_their_nominal_coverage():
    """Half of a battle's variance comes from its prompt. It is right if prompt + battle > -0.5 sqrt 2, with probability
    Phi(0.5) = 0.691. The coverage is 95%, and 2.5 points are two standard errors for 300 data sets."""

    def estimate(rng):
        groups, prompt = draw_groups(rng)
        right = prompt + rng.normal(size=len(groups)) > -0.5 * np.sqrt(2)
        return Resampler(groups, 400, seed=1).estimate_means(right[:, None], shares=[0])[0]

    assert 0.92 <= simulate(estimate, stats.norm.cdf(0.5)) <= 0.975


def test_intervals_that_ignore_prompts_are_too_narrow():
    """The reason for groups: the same data with each battle as its own group."""

    def estimate(rng):
        groups, prompt = draw_groups(rng)
        right = prompt + rng.normal(size=len(groups)) > -0.5 * np.sqrt(2)
        return Resampler(np.arange(len(groups)), 400, seed=1).estimate_means(right[:, None], shares=[0])[0]

    assert simulate(estimate, stats.norm.cdf(0.5)) < 0.9


def test_few_groups_get_wider_intervals():
    """Means of eight normal values: plain percentiles would have a coverage of about 88%, as z sqrt(7/8) covers 89.3%
    of a t distribution with 7 degrees of freedom."""

    def estimate(rng):
        return Resampler(range(8), 1000, seed=1).estimate_means(rng.normal(size=(8, 1)))[0]

    assert 0.92 <= simulate(estimate, 0) <= 0.975


def draw_judge(rng: np.random.Generator, battles: int, temperature: float) -> tuple[np.ndarray, np.ndarray]:
    """Draws predictions whose log odds are too large by a factor, the temperature, and outcomes."""
    odds = rng.normal(size=battles) * 1.5
    won = rng.random(battles) < 1 / (1 + np.exp(-odds / temperature))
    p_a = 1 / (1 + np.exp(-odds))
    return np.column_stack([p_a, 1 - p_a]), np.column_stack([won, ~won]).astype(float)


@pytest.mark.parametrize("temperature", [1.0, 1.5])
def test_intervals_of_all_metrics_have_their_coverage(temperature):
    """400,000 battles give the true values, except for up to 0.002 of ECE by chance. Coverage over 200 sets: 95%
    within 3 points. The ECE's intervals may be too wide but not too narrow, even for a true ECE of 0, which percentiles
    never contain because every measured ECE is larger."""
    everything = draw_judge(np.random.default_rng(9), 400_000, temperature)
    truth = {name: e.value for name, e in estimate_metrics(Resampler(range(400_000), 1), *everything).items()}
    assert (truth["ece"] < 0.002) == (temperature == 1)
    resampler, held = Resampler(range(250), 300, seed=1), {name: 0 for name in truth}
    for seed in range(200):
        found = estimate_metrics(resampler, *draw_judge(np.random.default_rng(seed), 250, temperature))
        for name, estimate in found.items():
            held[name] += estimate.low <= truth[name] + 0.002 * (name == "ece") and truth[name] <= estimate.high
            assert estimate.low <= estimate.value <= estimate.high
    for name, times in held.items():
        assert 0.92 <= times / 200 <= (1 if name == "ece" else 0.98), name


def test_sums_equal_those_of_battles_drawn_one_by_one():
    """Each draw has as many groups as there are, each with all its battles."""
    values = np.random.default_rng(0).random((len(GROUPS), 3))
    resampler = Resampler(GROUPS, draws=50, seed=7)
    for part in (None, np.arange(10) % 3 > 0, np.arange(10) > 7):
        drawn = resampler.draw_sums(values, part)
        again = np.random.default_rng(7)
        for sums in drawn:
            battles = np.concatenate([np.flatnonzero(group == GROUPS) for group in again.integers(0, 6, 6)])
            counted = battles if part is None else battles[part[battles]]
            assert sums == pytest.approx(values[counted].sum(axis=0), abs=1e-5)


def test_aucs_equal_those_of_battles_drawn_one_by_one():
    """Some scores are equal."""
    rng = np.random.default_rng(1)
    groups = np.repeat(np.arange(40), 3)
    scores, positive = rng.random(120).round(1), rng.random(120) < 0.5
    estimate = Resampler(groups, draws=80, seed=5).estimate_auc(scores, positive)
    again, areas = np.random.default_rng(5), []
    for _ in range(80):
        battles = np.concatenate([np.flatnonzero(groups == group) for group in again.integers(0, 40, 40)])
        areas.append(roc_auc_score(positive[battles], scores[battles]))
    assert estimate.value == pytest.approx(roc_auc_score(positive, scores))
    assert (estimate.low, estimate.high) == pytest.approx(bound_draws(np.array(areas), 40))


def test_ends_are_percentiles_widened_like_a_t_interval():
    """For many groups, the 2.5% and 97.5% points; for 7 groups, the points of Phi(-2.447 sqrt(7 / 6)) = 0.0041."""
    draws = np.linspace(0, 1, 100_001)
    assert bound_draws(draws, 10**6) == pytest.approx((0.025, 0.975), abs=1e-4)
    tail = stats.norm.cdf(-2.4469119 * np.sqrt(7 / 6))
    assert bound_draws(draws, 7) == pytest.approx((tail, 1 - tail), abs=1e-4)


def test_few_groups_have_no_interval_and_unanimous_ones_have_wilsons():
    """Six groups are the minimum for an interval. Ten right answers of ten do not prove an accuracy of 1: Wilson's low
    end is n / (n + z^2) = 10 / 13.84 = 0.722."""
    for groups in (1, 5, 6):
        (estimate,) = Resampler(np.arange(18) % groups).estimate_means(np.arange(18.0)[:, None] % 4)
        assert (estimate.value, estimate.count) == (pytest.approx(25 / 18), 18)
        assert np.isnan([estimate.low, estimate.high]).all() == (estimate.to_dict()["low"] is None) == (groups < 6)
    (estimate,) = Resampler(np.repeat(np.arange(10), 2)).estimate_means(np.ones((20, 1)), shares=[0])
    assert (estimate.low, estimate.high) == pytest.approx((10 / (10 + stats.norm.ppf(0.975) ** 2), 1))
    assert bound_share(0.0, 10) == pytest.approx((0, 1 - estimate.low))


def test_without_battles_estimates_are_unknown():
    resampler = Resampler([], draws=10)
    empty = np.zeros((0, 2))
    estimates = [*resampler.estimate_means(empty), resampler.estimate(empty, lambda sums: sums[:, 0])]
    estimates += [resampler.estimate_auc(np.zeros(0), np.zeros(0, bool))]
    estimates += Resampler([0, 1]).estimate_means(np.ones((2, 1)), np.zeros((2, 1), bool))
    assert [estimate.to_dict() for estimate in estimates] == [
        {"value": None, "low": None, "high": None, "count": 0} for _ in range(5)
    ]


def test_draws_without_a_battle_of_a_rare_part_are_left_out():
    """The part is six of 40 prompts: one draw in e^6 = 400 has none of them, and must not count as 0."""
    part = (np.arange(40) >= 10) & (np.arange(40) < 16)
    values = np.arange(40.0)[:, None]
    resampler = Resampler(range(40), draws=2000)
    assert (resampler.draw_sums(np.ones((40, 1)), part) == 0).any()
    (estimate,) = resampler.estimate_means(values, part[:, None])
    assert (estimate.value, estimate.count) == (12.5, 6) and 10 <= estimate.low < 12 and 13 < estimate.high <= 15


def test_a_weighted_sum_of_means_has_the_interval_of_its_draws():
    """Of one part with the weight 1 it is the plain mean; of two independent parts of 50 prompts with weights 0.8 and
    0.2, the variance is 0.64 + 0.04 of one part's, so that the interval is sqrt(0.68) = 0.82 as wide."""
    values, half = np.random.default_rng(0).normal(size=(100, 2)), np.arange(100) < 50
    values[half] = values[~half]
    resampler = Resampler(range(100), 4000)
    whole = resampler.estimate_weighted([values], [np.full(100, True)], [1])
    for found, plain in zip(whole, resampler.estimate_means(values), strict=True):
        assert (found.value, found.low, found.high) == pytest.approx((plain.value, plain.low, plain.high), abs=1e-6)
    (one, _), (both, _) = (
        resampler.estimate_weighted([values] * len(parts), parts, weights)
        for parts, weights in (([half], [1]), ([half, ~half], [0.8, 0.2]))
    )
    assert both.value == pytest.approx(one.value) and (one.count, both.count) == (50, 100)
    assert (both.high - both.low) / (one.high - one.low) == pytest.approx(np.sqrt(0.68), rel=0.06)


def test_the_same_seed_gives_the_same_interval_and_another_seed_a_similar_one():
    values = np.random.default_rng(0).random((200, 1))
    first, same, other = (Resampler(range(200), 1000, seed).estimate_means(values)[0] for seed in (1, 1, 2))
    assert first == same != other
    assert (first.low, first.high) == pytest.approx((other.low, other.high), abs=0.2 * (first.high - first.low))


def test_json_has_no_nan_and_no_infinity():
    estimate = Estimate(0.5, -np.inf, np.nan, 3)
    assert estimate.to_dict() == {"value": 0.5, "low": None, "high": None, "count": 3}
    assert str(estimate) == "0.500 (too few for an interval) on 3" and str(UNKNOWN) == "n/a on 0"
    assert str(Estimate(0.5, 0.25, 0.75, 3)) == "0.500 [0.250, 0.750] on 3"
    assert format_estimate(None, why="no battles") == "n/a (no battles)"
