"""Votes and judge together: which models and pairs are estimated, and agreement by other packages and by hand."""

import json

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from modeling.evaluation.bootstrap import Z_95, Resampler
from modeling.evaluation.votes import build_votes, estimate_agreement

NO_PASSES: dict[str, np.ndarray] = {}


def draw_battles(battles: int = 200, votes: int = 100) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The judge's p_a, labels (NaN without a vote), and both models."""
    rng = np.random.default_rng(0)
    sides = rng.permuted(np.tile(np.array(["x", "y", "z"], object), (battles, 1)), axis=1)[:, :2].T
    label = rng.integers(0, 3, battles) / 2
    p_a = np.clip(0.3 * label + rng.random(battles) * 0.7, 0, 1)
    return p_a, np.where(np.arange(battles) < votes, label, np.nan), *sides


def test_kappa_is_scikit_learn_s_and_ties_are_left_out():
    p_a, label, *_ = draw_battles()
    found = estimate_agreement(Resampler(range(200), 100), p_a, label)
    decided = ~np.isnan(label) & (label != 0.5)
    people, judge = label[decided] > 0.5, p_a[decided] >= 0.5
    assert found["kappa"]["value"] == pytest.approx(cohen_kappa_score(people, judge))
    assert found["agreement"]["value"] == pytest.approx((people == judge).mean())
    assert found["kappa"]["count"] == found["agreement"]["count"] == decided.sum()
    assert found["kappa"]["low"] < found["kappa"]["value"] < found["kappa"]["high"]


def test_a_judge_that_always_agrees_is_not_certain_to():
    label = np.arange(12) % 2.0
    found = estimate_agreement(Resampler(range(12), 100), label, label)
    assert found["agreement"]["value"] == found["kappa"]["value"] == 1
    assert found["agreement"]["low"] < 0.9 and found["kappa"]["low"] is None


def test_consistency_by_hand():
    """Member m changes its mind in one of two battles, and in three of four passes agrees with the verdict."""
    passes = {"m_ab": np.array([0.9, 0.6]), "m_ba": np.array([0.7, 0.2]), "n_ab": np.array([np.nan, np.nan])}
    found = build_votes(Resampler([0, 1]), np.array([0.8, 0.4]), np.array([1.0, np.nan]), passes)
    assert (found["position_consistency"]["value"], found["position_consistency"]["count"]) == (0.5, 2)
    assert found["self_consistency"]["value"] == 0.75
    alone = build_votes(Resampler([0, 1]), np.array([0.8, 0.4]), np.array([1.0, np.nan]), NO_PASSES)
    assert alone["position_consistency"] is None and alone["self_consistency"] is None


def test_models_with_few_votes_get_a_win_rate_and_no_rating():
    """u has battles without a vote, v has nine votes, and w ten, of which one is against v: w's others are too few."""
    p_a, label, a, b = draw_battles()
    more = [("u", "x", np.nan)] * 20 + [("v", "x", 1.0)] * 8 + [("v", "w", 1.0)] + [("w", "y", 0.0)] * 9
    names = [np.append(side, [row[place] for row in more]) for place, side in enumerate((a, b))]
    label, p_a = np.append(label, [row[2] for row in more]), np.append(p_a, np.full(len(more), 0.6))
    found = build_votes(Resampler(range(len(p_a)), 100), p_a, label, NO_PASSES, *names)
    rows = {row["name"]: row for row in found["models"]}
    assert {name for name, row in rows.items() if row["rating"]} == {"x", "y", "z"}
    assert rows["u"]["win_rate"]["both"]["value"] is None and rows["u"]["win_rate"]["judge"]["value"] == pytest.approx(
        0.6
    )
    wilson = {"value": 1, "low": 9 / (9 + Z_95**2), "high": 1, "count": 9}
    assert rows["v"]["win_rate"]["votes"] == pytest.approx(wilson)
    ratings = [row["rating"]["both"]["value"] for row in found["models"][:3]]
    assert ratings == sorted(ratings, reverse=True) and sum(ratings) == pytest.approx(3000)
    json.dumps(found, allow_nan=False)


def test_pairs_count_from_their_first_model():
    p_a, label, a, b = draw_battles()
    found = build_votes(Resampler(range(200), 100), p_a, label, NO_PASSES, a, b)
    pairs = {(row["first"], row["second"]): row["win_rate"]["votes"] for row in found["pairs"]}
    assert set(pairs) == {("x", "y"), ("x", "z"), ("y", "z")}
    wins = [label[i] if a[i] == "x" else 1 - label[i] for i in range(100) if {a[i], b[i]} == {"x", "y"}]
    assert pairs["x", "y"]["value"] == pytest.approx(np.mean(wins)) and pairs["x", "y"]["count"] == len(wins)
    assert sum(each["count"] for each in pairs.values()) == found["votes"] == 100


@pytest.mark.parametrize("names", [None, ["unknown"] * 200])
def test_without_names_there_is_the_share_of_a_alone(names):
    p_a, label, *_ = draw_battles()
    found = build_votes(Resampler(range(200), 100), p_a, label, NO_PASSES, names, names)
    assert found["models"] == found["pairs"] == []
    assert found["share_a"]["votes"]["value"] == pytest.approx(np.nanmean(label))
