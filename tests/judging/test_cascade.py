"""Cascades: a later judge decides the battles that are most uncertain. Their time budgets are in test_schedule.py."""

import json
import shutil

import numpy as np
import pytest

from modeling.judging.calibration import Calibration
from modeling.judging.cascade import Cascade
from modeling.judging.judge import Judge
from tests.helpers import SAMPLES, fail

TEST = SAMPLES / "test.jsonl"
TOLERANCE = 1e-5  # float32, as in test_predictor.py


def test_a_later_judge_decides_the_uncertain_battles(members, sample_battles):
    small, large = (Judge.from_pretrained(members[name], dtype="float32") for name in ("ab", "ba"))
    first, second = small.predict(sample_battles), large.predict(sample_battles)
    found = Cascade([small, large], [0.25]).predict(sample_battles)
    decided = found["p_a_ba_ba"].notna()
    assert decided.sum() == 18 and list(found["id"]) == sample_battles["id"][:]
    certainty = (first["p_a"] - 0.5).abs()
    assert certainty[decided].max() <= certainty[~decided].min()
    for rows, judged in ((decided, second), (~decided, first)):
        assert np.abs(found["p_a"] - judged["p_a"])[rows].max() <= TOLERANCE
        assert (found["winner"] == judged["winner"])[rows].all()
    assert found["p_a_ab_ab"].notna().all() and (found["p_a"] + found["p_b"] - 1).abs().max() < 1e-12


def test_members_with_the_same_name_get_numbers_in_a_cascade(members, sample_battles):
    judges = [Judge.from_pretrained(members["ab"], dtype="float32") for _ in range(3)]
    found = Cascade(judges, [0.5, 0.1]).predict(sample_battles.select(range(20)))
    assert [name for name in found if name.startswith("p_a_")] == [
        f"p_a_{member}_{order}" for member in ("ab", "ab-2", "ab-3") for order in ("ab", "ba")
    ]
    assert found.filter(like="p_a_").notna().sum().tolist() == [20, 20, 10, 10, 2, 2]


def test_a_cascade_with_different_labels_is_refused(members, tmp_path, monkeypatch, caplog):
    """A judge that predicts ties cannot decide for one that does not; nor can a head of two labels be read as three."""
    other = shutil.copytree(members["ba"], tmp_path / "ba")
    facts = json.loads((other / "member.json").read_text())
    (other / "member.json").write_text(json.dumps(facts | {"labels": ["a", "b", "tie"]}))
    flags = ["--battles", TEST, "--judge", members["ab"], "--output_dir", tmp_path / "out", "--cascade", other]
    said = fail("predict", *flags, "--cascade_shares", 0.5, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a head of 3 labels" in said and "found 2" in said
    assert not (tmp_path / "out").exists()
    judge = Judge.from_pretrained(members["ab"], dtype="float32")
    with_ties = Judge(judge.members, calibration=Calibration("temperature", 1, temperature=1.0, ties=0.0), name="ties")
    with pytest.raises(ValueError, match=r"--cascade: expected the same labels everywhere.*ab: a, b; ties: a, b, tie"):
        Cascade([judge, with_ties], [0.5])
    with pytest.raises(ValueError, match=r"expected a share for each of the 1 of --cascade; found 2"):
        Cascade([Judge.from_pretrained(members["ab"])] * 2, [0.5, 0.1])
