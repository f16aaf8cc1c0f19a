"""Style: counts by hand, known coefficients, symmetry, and nothing fitted on what it is measured on."""

import numpy as np
import pytest
from scipy import special

from modeling.evaluation import leaderboard
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.style import FEATURES, build_style, control_style, count_marks, measure_style, split_groups

TEXT = "# Head\nplain **bold** __too__ * not\n- one\n* two\n1. three\n####### none\n```\n# code\n- **x**\n```\n## End"


def draw_style(battles: int, people: tuple, judge: tuple, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Style of random counts, folds, p and labels of known coefficients; the judge also knows the answers' quality."""
    rng = np.random.default_rng(seed)
    counts = np.concatenate([rng.integers(0, 4, (2, battles, 4)), rng.integers(1, 400, (2, battles, 1))], axis=2)
    texts = [
        ["# h\n" * h + "**b** " * k + "\n- l" * li + "\n```c```\n" * c + "x" * n for h, k, li, c, n in side]
        for side in counts
    ]
    style, quality = measure_style(*texts), rng.normal(size=battles)
    label_a = (rng.random(battles) < special.expit(quality + style @ people)).astype(float)
    p_a = special.expit(quality + style @ judge)
    return style, split_groups([f"prompt {n}" for n in range(battles)], np.arange(battles)), p_a, label_a, quality


def stack(chances: np.ndarray) -> np.ndarray:
    return np.column_stack([chances, 1 - chances])


def test_marks_are_counted_outside_of_code_blocks():
    assert count_marks(TEXT) == (len(TEXT), 2, 2, 3, 1)
    assert count_marks("") == (0, 0, 0, 0, 0) and count_marks("```never closed\n# x")[1:] == (0, 0, 0, 1)


def test_features_are_relative_differences_that_swap_with_the_answers():
    """300 characters against 100 are 2 / 4, the reverse -2 / 4, equal ones 0; scaled to a root mean square of 1."""
    a, b = ["x" * 300, "x" * 100, "x" * 9], ["y" * 100, "y" * 300, "y" * 9]
    style = measure_style(a, b)
    assert style[:, 0] == pytest.approx(np.array([1, -1, 0]) * np.sqrt(3 / 2)) and not style[:, 1:].any()
    assert (measure_style(b, a) == -style).all() and measure_style([], []).shape == (0, len(FEATURES))


def test_known_coefficients_lie_in_the_intervals():
    """Quality is unknown to the regression, which shrinks all coefficients by sqrt(1 + c^2 s^2) with c^2 = 0.346 for a
    logistic regression (Zeger, Liang and Albert 1988). Four true values of people and judge and their differences: the
    chance that one or more of 15 intervals of 99.9% misses is 1.5%, so the ends are widened from z = 1.96 to 3.29."""
    people, judge = np.array([0.4, 0.0, 0.2, 0.0, -0.2]), np.array([0.8, 0.3, 0.2, 0.0, -0.2])
    style, folds, p_a, label_a, _ = draw_style(3000, people, judge)
    found = build_style(Resampler(range(3000), 100), style, folds, stack(p_a), stack(label_a))
    shrunk = np.sqrt(1 + 0.346)
    for place, row in enumerate(found["features"]):
        truths = people[place], judge[place], judge[place] - people[place]
        for name, truth in zip(("people", "judge", "difference"), truths, strict=True):
            half = (row[name]["high"] - row[name]["low"]) / 2 * 3.29 / 1.96
            assert abs(row[name]["value"] - truth / shrunk) < half + 0.01, (row["name"], name)
    assert [row["name"] for row in found["features"]] == list(FEATURES)
    assert found["features"][0]["difference"]["low"] > 0  # the judge likes length more than people do
    assert found["judge"]["explained"]["low"] > found["people"]["explained"]["high"] > 0
    assert found["people"]["accuracy"]["low"] > 0.5


def test_style_that_means_nothing_explains_nothing():
    """The regressions are fitted on other prompts, so chance does not look like an explanation."""
    style, folds, p_a, label_a, _ = draw_style(300, (0,) * 5, (0,) * 5)
    found = build_style(Resampler(range(300), 200), style, folds, stack(p_a), stack(label_a))
    for who in ("people", "judge"):
        assert found[who]["explained"]["value"] < 0.02
        assert found[who]["accuracy"]["low"] < 0.5 < found[who]["accuracy"]["high"]


def test_a_judge_of_style_alone_is_explained_and_fails_where_style_is_alike():
    style, folds, _, label_a, _ = draw_style(1000, (0.3, 0, 0, 0, 0), (0,) * 5)
    p_a = special.expit(style @ [1.5, 0.5, 0, 0, 0])
    found = build_style(Resampler(range(1000), 100), style, folds, stack(p_a), stack(label_a))
    assert found["judge"]["explained"]["value"] > 0.99 and found["judge"]["accuracy"]["value"] > 0.98
    assert found["matched"]["count"] == pytest.approx(1000 / 3, abs=2)


def test_control_leaves_the_judge_s_quality_and_takes_the_style():
    style, folds, p_a, _, quality = draw_style(2000, (0,) * 5, (1.0, 0.4, 0, 0, 0))
    controlled = control_style(style, folds, p_a)
    before, after = (np.corrcoef(special.logit(p), quality)[0, 1] for p in (p_a, controlled))
    assert after > 0.97 > 0.75 > before
    assert abs(np.corrcoef(special.logit(controlled), style[:, 0])[0, 1]) < 0.3
    assert np.isfinite(control_style(style, folds, np.round(p_a))).all()  # of p_a 0 and 1


def test_swapped_answers_and_another_order_of_battles_change_nothing():
    """Laws 1 and 2: p of the swapped battle is 1 - p, and each battle keeps its p wherever it stands."""
    style, folds, p_a, *_ = draw_style(200, (0,) * 5, (1.0, 0, 0, 0, 0))
    groups, order = np.arange(200), np.random.default_rng(1).permutation(200)
    controlled = control_style(style, folds, p_a)
    assert control_style(-style, folds, 1 - p_a) == pytest.approx(1 - controlled)
    prompts = [f"prompt {n}" for n in range(200)]
    again = split_groups([prompts[n] for n in order], groups)  # groups are numbered as they appear
    assert (again == folds[order]).all()
    assert control_style(style[order], again, p_a[order]) == pytest.approx(controlled[order])


def test_a_group_of_prompts_is_in_one_fold():
    groups = np.arange(100) // 4
    folds = split_groups([f"{n}" for n in range(100)], groups)
    assert all(len(set(folds[groups == group])) == 1 for group in range(25)) and set(folds) == set(range(5))


def test_style_controlled_ratings_differ_only_by_style():
    """x writes longer answers and wins by that alone: with style held fixed it is y's equal. Where no battle's style
    differs, ratings are the leaderboard's."""
    rng = np.random.default_rng(2)
    lengths = np.column_stack([rng.integers(200, 600, 1000), rng.integers(100, 400, 1000)])
    style = measure_style(*(["x" * n for n in side] for side in lengths.T))
    label_a = (rng.random(1000) < special.expit(1.2 * style[:, 0])).astype(float)
    names, folds = (["x"] * 1000, ["y"] * 1000), np.arange(1000) % 5
    found = build_style(Resampler(range(1000), 100), style, folds, stack(label_a), stack(label_a), names)
    plain = leaderboard.rate_models(*names, label_a)
    ratings = {row["name"]: row["people"] for row in found["models"]}
    assert plain["x"] - plain["y"] > 100
    assert ratings["x"]["low"] < 1000 < ratings["x"]["high"] and ratings["x"]["high"] < plain["x"]
    alike = np.where(np.arange(1000)[:, None] < 500, style, 0)
    part = np.array(["x"] * 500 + ["u"] * 500, object), np.array(["unknown"] * 500 + ["v"] * 500, object)
    found = build_style(Resampler(range(1000), 100), alike, folds, stack(label_a), stack(label_a), part)
    expected = leaderboard.rate_models(["u"] * 500, ["v"] * 500, label_a[500:])
    assert {row["name"]: row["people"]["value"] for row in found["models"]} == pytest.approx(expected, abs=0.1)


def test_a_rare_model_has_a_rating_and_no_interval():
    style, folds, p_a, label_a, _ = draw_style(200, (1, 0, 0, 0, 0), (1, 0, 0, 0, 0))
    size = len(p_a)
    names = ["x"] * (size - 1) + ["rare"], ["y"] * size
    found = build_style(Resampler(range(size), 100), style, folds, stack(p_a), stack(label_a), names)
    rows = {row["name"]: row["people"] for row in found["models"]}
    assert (rows["rare"]["count"], rows["rare"]["low"], rows["rare"]["high"]) == (1, None, None)
    assert rows["x"]["count"] == size - 1 and rows["x"]["low"] < rows["x"]["value"]


@pytest.mark.parametrize(("battles", "num_groups"), [(0, 0), (49, 49), (200, 49)])
def test_too_few_prompts_have_no_analysis(battles, num_groups):
    style, folds, p_a, label_a, _ = draw_style(battles, (0,) * 5, (0,) * 5)
    groups = np.arange(battles) % max(num_groups, 1)
    assert build_style(Resampler(groups, 100), style, folds, stack(p_a), stack(label_a)) is None


def test_answers_of_one_style_have_no_analysis_and_keep_their_p():
    style, p_a = np.zeros((100, 5)), np.linspace(0.1, 0.9, 100)
    assert build_style(Resampler(range(100)), style, np.arange(100) % 5, stack(p_a), stack(p_a)) is None
    assert control_style(style, np.arange(100) % 5, p_a) == pytest.approx(p_a)
