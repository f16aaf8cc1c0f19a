"""Ratings against known strengths, and against the Bradley-Terry equations by hand."""

import numpy as np
import pytest

from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.leaderboard import build_leaderboard, rate_models

STRENGTHS = {"best": 1300.0, "good": 1100.0, "poor": 900.0, "worst": 700.0}


def draw_battles(battles: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Draws the models of battles, and the probability that a wins by Elo's formula."""
    rng = np.random.default_rng(seed)
    sides = rng.permuted(np.tile(np.array(list(STRENGTHS), object), (battles, 1)), axis=1)[:, :2]
    a, b = sides.T
    points = np.array([[STRENGTHS[x] - STRENGTHS[y]] for x, y in zip(a, b, strict=True)])[:, 0]
    return a, b, 1 / (1 + 10 ** (-points / 400))


def test_two_models_by_hand():
    """x wins 9 of 10, and x and y each draw once against the invented player at 0. The ratings are r and -r. The
    likelihood is maximal if x's expected wins equal its wins: 10 p(2r) + p(r) = 9 + 1/2, with p logistic."""
    ratings = rate_models(["x"] * 10, ["y"] * 10, np.array([1.0] * 9 + [0.0]))
    r = (ratings["x"] - ratings["y"]) / 2 * np.log(10) / 400
    p = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    assert 10 * p(2 * r) + p(r) == pytest.approx(9.5, abs=0.01)
    assert ratings["x"] + ratings["y"] == pytest.approx(2000)


def test_swapped_sides_and_another_order_of_battles_change_nothing():
    a, b, chance = draw_battles(200)
    turned = np.random.default_rng(1).random(200) < 0.5
    order = np.random.default_rng(2).permutation(200)
    exchanged = (
        np.where(turned, b, a)[order],
        np.where(turned, a, b)[order],
        np.where(turned, 1 - chance, chance)[order],
    )
    assert rate_models(*exchanged) == pytest.approx(rate_models(a, b, chance), abs=0.1)


def test_known_strengths_lie_in_the_intervals():
    """The labels are 4,000 outcomes of known probabilities. The judge gives these probabilities themselves, so only the
    drawn battles make its ratings inexact."""
    a, b, chance = draw_battles(4000)
    outcomes = (np.random.default_rng(3).random(4000) < chance).astype(float)
    board = build_leaderboard(Resampler(range(4000), 200), chance, outcomes, a, b)
    assert [row["name"] for row in board["models"]] == list(STRENGTHS)
    for row in board["models"]:
        assert row["people"]["low"] <= STRENGTHS[row["name"]] <= row["people"]["high"]
        assert row["judge"]["value"] == pytest.approx(STRENGTHS[row["name"]], abs=3)
        assert row["people"]["high"] - row["people"]["low"] < 80
    assert board["spearman"]["value"] == pytest.approx(1) and board["kendall"]["value"] == pytest.approx(1)
    assert (board["ranked"], board["spearman"]["count"], board["battles"]) == (4, 4, 4000)


def test_a_judge_that_prefers_the_worse_models_reverses_the_ranking():
    a, b, chance = draw_battles(1000)
    board = build_leaderboard(Resampler(range(1000), 100), 1 - chance, chance, a, b)
    assert board["spearman"]["value"] == pytest.approx(-1) and board["kendall"]["value"] == pytest.approx(-1)


def test_a_less_confident_judge_rates_closer_together_and_ranks_the_same():
    a, b, chance = draw_battles(1000)
    board = build_leaderboard(Resampler(range(1000), 100), 0.5 + (chance - 0.5) / 10, chance, a, b)
    judge, people = ([row[who]["value"] for row in board["models"]] for who in ("judge", "people"))
    assert np.ptp(judge) < np.ptp(people) / 5 and board["spearman"]["value"] == pytest.approx(1)


def test_undefeated_and_unconnected_models_have_finite_ratings():
    ratings = rate_models(["x"] * 50 + ["u"], ["y"] * 50 + ["v"], np.array([1.0] * 51))
    assert np.isfinite(list(ratings.values())).all()
    assert ratings["x"] > ratings["u"] > 1000 > ratings["v"] > ratings["y"]


def test_ties_are_half_a_win():
    assert rate_models(["x"] * 3, ["y"] * 3, np.full(3, 0.5)) == pytest.approx({"x": 1000, "y": 1000})


def test_battles_without_two_named_models_are_left_out():
    a = ["x", "unknown", None, "x", "", float("nan"), "x"]
    b = ["y", "y", "y", "x", "y", "y", "Unknown"]
    board = build_leaderboard(Resampler(range(7), 100), np.full(7, 0.6), np.ones(7), a, b)
    assert board["battles"] == 1 and [row["name"] for row in board["models"]] == ["x", "y"]
    assert board["models"][0]["people"]["low"] is None  # a single prompt gives no interval
    assert board["spearman"] == {"value": None, "low": None, "high": None, "count": 0}


def test_models_with_few_battles_are_rated_but_left_out_of_rank_correlations():
    a, b, chance = draw_battles(300)
    a, b, chance = np.append(a, "rare"), np.append(b, "best"), np.append(chance, 1.0)
    board = build_leaderboard(Resampler(range(301), 100), chance, chance, a, b)
    assert len(board["models"]) == 5 and board["ranked"] == 4


@pytest.mark.parametrize("battles", [0, 2])
def test_without_named_models_the_leaderboard_is_empty(battles):
    board = build_leaderboard(
        Resampler(range(battles)), np.full(battles, 0.5), np.full(battles, 0.5), ["unknown"] * battles, [None] * battles
    )
    assert board["models"] == [] and board["battles"] == 0 and board["kendall"]["value"] is None
