"""Figures: drawn for the data that the report has, without a screen, with any names."""

import warnings

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from PIL import Image

from modeling.evaluation.plots import DRAWINGS, draw_figures, draw_reliability
from modeling.evaluation.report import build_report

NAMES = ["baselines", "reliability", "position_bias", "languages", "length_bias", "selective"]


def build(battles: int, languages: list[str], passes: bool = True, p_a=None, label=None) -> dict:
    rng = np.random.default_rng(0)
    label = rng.choice([0, 0.5, 1], battles) if label is None else np.full(battles, label)
    answers = {f"response_{side}": ["x" * n for n in rng.integers(1, 500, battles)] for side in "ab"}
    data = {"id": list(range(battles)), "prompt": [f"p {n}" for n in range(battles)], **answers}
    data |= {"label": np.column_stack([label, 1 - label]).tolist()}
    data |= {"language": [languages[n % len(languages)] for n in range(battles)]}
    verdicts = pd.DataFrame({"id": data["id"], "p_a": rng.random(battles) if p_a is None else p_a})
    if passes:
        verdicts = verdicts.assign(p_a_m_ab=rng.random(battles), p_a_m_ba=rng.random(battles))
    return build_report(verdicts, Dataset.from_dict(data), draws=100)


def test_all_six_are_drawn_and_are_not_blank(tmp_path):
    paths = draw_figures(build(80, ["English", "Korean", "Thai"]), tmp_path / "figures")
    assert [path.stem for path in paths] == NAMES and all(path.parent == tmp_path / "figures" for path in paths)
    for path in paths:
        pixels = np.array(Image.open(path).convert("L"))
        assert pixels.shape[1] > 700 and 20 < pixels.std() < 100


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_no_interval_is_cut_off(label):
    """Also those that end at 0 or 1: all battles have one winner, and the probabilities go from 0 to 1."""
    report = build(80, ["en", "ko"], p_a=np.linspace(0, 1, 80), label=label)
    found = 0
    for draw in DRAWINGS.values():
        for axes in draw(report).axes:
            (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
            for lines in [lines for bar in axes.containers if hasattr(bar, "has_yerr") for lines in bar.lines[2]]:
                points = np.concatenate(lines.get_segments())
                assert (left < points[:, 0]).all() and (points[:, 0] < right).all(), axes.get_title()
                assert (bottom < points[:, 1]).all() and (points[:, 1] < top).all(), axes.get_title()
                found += len(points)
    assert found > 20


def test_the_same_report_gives_the_same_bytes(tmp_path):
    report = build(40, ["en"])
    first, second = (draw_figures(report, tmp_path / name) for name in "xy")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_figures_without_data_are_not_drawn(tmp_path):
    assert [path.stem for path in draw_figures(build(40, ["en"], passes=False), tmp_path)] == [
        name for name in NAMES if name != "position_bias"
    ]
    assert draw_figures(build(0, ["en"]), tmp_path / "empty") == []
    assert list((tmp_path / "empty").iterdir()) == []


@pytest.mark.parametrize("battles", [1, 2, 5])
def test_few_battles_without_intervals_are_drawn(battles, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert draw_figures(build(battles, ["en", "ko"]), tmp_path)


def test_names_are_not_markup(tmp_path):
    """Neither "$" nor "_" starts a formula; long names are shortened; only the most frequent languages are drawn."""
    names = ["$\\frac{1}{0}$", "a_b^c", "x" * 300, *(f"language {n}" for n in range(60))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        report = build(250, names) | {"run": {"judge": "_a$\\frac{1}{0}$/" + "x" * 60}}
        paths = draw_figures(report, tmp_path)
    labels = draw_reliability(report).axes[0].get_legend_handles_labels()[1]
    assert labels[1].startswith(r"judge _a\$\frac{1}{")
    height = Image.open(next(path for path in paths if path.stem == "languages")).size[1]
    assert height < 1100
