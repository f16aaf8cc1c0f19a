"""Cascades: a later judge decides the battles that are most uncertain. Their time budgets are in test_schedule.py."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest

from modeling.encoding.encoder import CUT_COLUMNS
from modeling.judging.calibration import Calibration
from modeling.judging.cascade import Cascade
from modeling.judging.judge import Judge
from modeling.judging.predictions import replace_verdicts, take_raw
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


def predict_ties(p_a: float, p_tie: float, calibrated: bool) -> pd.DataFrame:
    """Verdicts on two battles by a judge of three labels; calibrated ones were [0.2, 0.5, 0.3] before."""
    p = [p_a, 1 - p_a - p_tie, p_tie]
    raw = {"raw_p_a": 0.2, "raw_p_tie": 0.3} if calibrated else {}
    columns = {"p_a": p[0], "p_b": p[1], "p_tie": p[2], "winner": "model_a", **raw, "tokens": 9}
    return pd.DataFrame([{"id": id, **columns, **dict.fromkeys(CUT_COLUMNS, 0)} for id in "xy"])


@pytest.mark.parametrize("calibrated", [(True, True), (True, False), (False, True)])
def test_a_judge_that_decides_brings_its_ties_before_calibration_too(calibrated):
    """Each row's raw probabilities are of one judge; of one that is not calibrated they are its probabilities."""
    first, second = (
        predict_ties(*p, calibrated=known) for p, known in zip(((0.6, 0.1), (0.1, 0.8)), calibrated, strict=True)
    )
    found = take_raw(replace_verdicts(first, np.array([1]), second.iloc[:1]))
    for row, (p_a, p_tie), known in zip((0, 1), ((0.6, 0.1), (0.1, 0.8)), calibrated, strict=True):
        expected = [0.2, 0.5, 0.3] if known else [p_a, 1 - p_a - p_tie, p_tie]
        assert found.loc[row, ["p_a", "p_b", "p_tie"]].tolist() == pytest.approx(expected)
    assert not {"raw_p_a", "raw_p_tie"} & set(found)


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
