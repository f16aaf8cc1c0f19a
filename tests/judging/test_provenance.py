"""Predictions and reports say which judge made them, from which passes and battles; nothing else in them changes."""

import json

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modeling.judging.member import fingerprint_member, read_member
from modeling.judging.predictions import read_provenance, write_predictions
from modeling.judging.provenance import check_provenance, describe_predictions
from modeling.runtime.files import hash_file
from tests.helpers import SAMPLES, call

BATTLES = SAMPLES / "test.jsonl"


@pytest.fixture(scope="module")
def facts(members) -> dict:
    return {name: read_member(folder) for name, folder in members.items()}


@pytest.fixture(scope="module")
def verdicts(judge, sample_battles) -> pd.DataFrame:
    return judge.predict(sample_battles)


def test_predictions_carry_their_judge_and_a_report_passes_it_on(members, facts, tmp_path, monkeypatch):
    flags = ["--battles", BATTLES, "--judge", *members.values(), "--output_dir"]
    call("predict", *flags, tmp_path / "p", monkeypatch=monkeypatch)
    predictions = str(tmp_path / "p" / "predictions.parquet")
    found = read_provenance(predictions)
    assert set(found.pop("versions")) == {"bothways", "torch", "transformers", "peft"}
    assert found == {
        "name": "ab + ba",
        "members": {name: fingerprint_member(member) for name, member in facts.items()},
        "passes": ["ab:ab", "ab:ba", "ba:ab", "ba:ba"],
        "calibration": None,
        "incomplete": 0,
        "cascade_shares": None,
        "hide_prompts": False,
        "battles": {"name": "test.jsonl", "sha256": hash_file(BATTLES)},
    }
    call("evaluate", *flags, tmp_path / "judge", "--draws", 100, monkeypatch=monkeypatch)
    others = ["--battles", BATTLES, "--predictions", predictions, "--draws", 100, "--output_dir", tmp_path / "file"]
    call("evaluate", *others, monkeypatch=monkeypatch)
    reports = [json.loads((tmp_path / name / "report.json").read_text())["judge"] for name in ("judge", "file")]
    assert reports[0] == reports[1] == read_provenance(predictions)
    assert read_provenance(str(tmp_path / "judge" / "predictions.parquet")) == reports[0]


def test_a_calibration_is_recorded_only_where_it_was_applied(members, tmp_path, monkeypatch):
    flags = ["--battles", BATTLES, "--judge", *members.values(), "--draws", 100, "--output_dir"]
    fit = ["--calibrate", "temperature", "--calibrate_battles", SAMPLES / "train.jsonl"]
    call("evaluate", *flags, tmp_path / "out", *fit, monkeypatch=monkeypatch)
    found = json.loads((tmp_path / "out" / "report.json").read_text())["judge"]["calibration"]
    assert found == json.loads((tmp_path / "out" / "calibration.json").read_text())
    predictions = tmp_path / "p.parquet"
    (tmp_path / "out" / "predictions.parquet").rename(predictions)
    flags = ["--battles", BATTLES, "--predictions", predictions, "--draws", 100, "--output_dir", tmp_path / "again"]
    for calibrated, expected in (("true", found), ("false", None)):
        call("evaluate", *flags, "--calibrated", calibrated, monkeypatch=monkeypatch)
        assert json.loads((tmp_path / "again" / "report.json").read_text())["judge"]["calibration"] == expected


def test_the_columns_are_those_that_pandas_writes(verdicts, judge, tmp_path):
    write_predictions(tmp_path / "ours.parquet", verdicts, describe_predictions(judge, verdicts, str(BATTLES)))
    verdicts.drop(columns="winner").to_parquet(tmp_path / "pandas.parquet", index=False)
    ours, pandas = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("ours", "pandas"))
    assert ours.equals(pandas) and ours.schema.pandas_metadata == pandas.schema.pandas_metadata
    assert read_provenance(str(tmp_path / "pandas.parquet")) is None
    pq.write_table(pa.table({"id": ["x"]}), tmp_path / "plain.parquet")
    assert read_provenance(str(tmp_path / "plain.parquet")) is None


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"members": {"ab": "0" * 16, "ba": "1" * 16}},
            r"results of ab \(.*; found those of ab \(0{16}\), ba",
        ),
        ({"passes": ["ab:ab"]}, "expected results of the passes ab:ab, ab:ba, ba:ab, ba:ba; found ab:ab"),
        ({"cascade_shares": [1.0]}, "expected results of one judge; found a cascade's"),
        (
            {"calibration": {"method": "temperature"}},
            "results of an uncalibrated judge.*; found those of a cal",
        ),
        ({"incomplete": 3}, "found 3 battles without some of them"),
        ({"hide_prompts": True}, "found hidden prompts"),
        ({"passes": ["zz:ab"]}, "expected a judge as evaluate.py records it; found KeyError"),
        ({"members": ["ab"]}, "expected a judge as evaluate.py records it; found AttributeError"),
    ],
)
def test_each_difference_is_named(change, expected, judge, verdicts, facts):
    found = describe_predictions(judge, verdicts, str(BATTLES))
    check_provenance("Report r", found, facts, "both", None)
    with pytest.raises(ValueError, match=f"^Report r: .*{expected}.*Evaluate what you publish") as error:
        check_provenance("Report r", found | change, facts, "both", None)
    assert "\n" not in str(error.value)


def test_names_may_differ_where_fingerprints_agree(judge, verdicts, facts):
    """Publishing names members by their orientation."""
    found = describe_predictions(judge, verdicts, str(BATTLES))
    check_provenance("Report r", found, {"first": facts["ab"], "second": facts["ba"]}, "both", None)
    with pytest.raises(ValueError, match="the passes first:ab, second:ba; found ab:ab, ab:ba, ba:ab, ba:ba"):
        check_provenance("Report r", found, {"first": facts["ab"], "second": facts["ba"]}, "own", None)
