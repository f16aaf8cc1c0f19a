"""Submissions, and weighted means of predictions files, matched by id."""

import numpy as np
import pandas as pd
import pytest

from modeling.judging.predictions import build_submission, read_provenance
from tests.helpers import SAMPLES, call, fail

TEST = SAMPLES / "test.jsonl"


@pytest.fixture
def files(sample_battles, tmp_path):
    """Two predictions files that no script wrote, the second with its rows in another order."""
    ids = sample_battles["id"][:]
    p = np.random.default_rng(0).random((2, len(ids)))
    order = np.random.default_rng(1).permutation(len(ids))
    pd.DataFrame({"id": ids, "p_a": p[0]}).to_parquet(tmp_path / "first.parquet")
    pd.DataFrame({"id": [ids[row] for row in order], "p_a": p[1][order]}).to_parquet(tmp_path / "second=x.parquet")
    return [tmp_path / "first.parquet", tmp_path / "second=x.parquet"], p


def blend(tmp_path, monkeypatch, *flags):
    call("predict", "--battles", TEST, "--output_dir", tmp_path / "out", "--blend", *flags, monkeypatch=monkeypatch)
    return pd.read_parquet(tmp_path / "out" / "predictions.parquet")


def test_a_blend_is_the_weighted_mean_by_id(files, sample_battles, tmp_path, monkeypatch, capsys):
    """By place the second file would be averaged with other battles."""
    (first, second), p = files
    found = blend(tmp_path, monkeypatch, f"{first}=2", f"{second}=1")
    assert list(found["id"]) == sample_battles["id"][:]
    assert np.abs(found["p_a"] - (2 * p[0] + p[1]) / 3).max() < 1e-9
    provenance = read_provenance(str(tmp_path / "out" / "predictions.parquet"))
    assert [(part["name"], part["weight"]) for part in provenance["blend"]] == [(first.name, 2.0), (second.name, 1.0)]
    assert str(tmp_path) not in str(provenance) and "judge" in capsys.readouterr().out
    assert np.abs(blend(tmp_path, monkeypatch, first)["p_a"] - p[0]).max() < 1e-9  # the weight is 1
    flags = ["--battles", TEST, "--predictions", tmp_path / "out" / "predictions.parquet", "--draws", 100]
    call("evaluate", *flags, "--output_dir", tmp_path / "report", monkeypatch=monkeypatch)


def test_files_of_other_battles_are_refused(files, sample_battles, members, tmp_path, monkeypatch, caplog):
    (first, second), _ = files
    flags = ["--battles", TEST, "--output_dir", tmp_path / "out", "--blend"]
    pd.read_parquet(second).iloc[1:].to_parquet(tmp_path / "less.parquet")
    said = fail("predict", *flags, first, tmp_path / "less.parquet", monkeypatch=monkeypatch, caplog=caplog)
    assert "less.parquet: expected a row for each battle; found none for 1" in said
    # The same ids, but the answers swapped: the file records which battles it was made from.
    swapped = sample_battles.rename_columns({"response_a": "response_b", "response_b": "response_a"})
    swapped.remove_columns("label").to_json(other := tmp_path / "swapped.jsonl", force_ascii=False)
    for name, battles in (("p", TEST), ("q", other)):
        judge = ["--judge", members["ab"], "--battles", battles, "--output_dir", tmp_path / name]
        call("predict", *judge, monkeypatch=monkeypatch)
    written = [tmp_path / name / "predictions.parquet" for name in ("p", "q")]
    said = fail("predict", *flags, *written, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected predictions of one file of battles" in said and not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [["a=0"], ["a=x"], ["=1"], ["a=1", "a=2"], ["a=-1"], ["a=nan"]])
def test_a_malformed_blend_is_refused(words, tmp_path, monkeypatch, caplog):
    flags = ["--battles", TEST, "--output_dir", tmp_path / "out", "--blend", *words]
    said = fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected <file>=<weight>, each file once and each weight above 0" in said


def test_a_blend_does_not_replace_what_it_is_made_of(files, tmp_path, monkeypatch, caplog):
    (first, _), _ = files
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "predictions.parquet").write_bytes(first.read_bytes())
    flags = ["--battles", TEST, "--blend", folder / "predictions.parquet", "--output_dir", folder]
    said = fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a file apart from what is read; found --blend" in said
    assert (folder / "predictions.parquet").read_bytes() == first.read_bytes()
    for idle in (["--calibrated", "false"], ["--second_reading", 0.5], ["--dtype", "float32"]):
        said = fail("predict", *flags[:-1], tmp_path / "out", *idle, monkeypatch=monkeypatch, caplog=caplog)
        assert f"--blend: expected no {idle[0]}, as no judge reads" in said
    said = fail("predict", *flags[:-1], tmp_path / "out", "--tie_share", 0.1, monkeypatch=monkeypatch, caplog=caplog)
    assert "--tie_share: expected with --submission lmsys" in said


def test_a_blend_takes_no_judge(tmp_path, monkeypatch, caplog):
    flags = ["--battles", TEST, "--output_dir", tmp_path / "out", "--blend", "a.parquet"]
    said = fail("predict", *flags, "--judge", "default", monkeypatch=monkeypatch, caplog=caplog)
    assert "--blend: expected no --judge" in said
    assert "--blend" in fail("predict", *flags, "--readings", "own", monkeypatch=monkeypatch, caplog=caplog)
    said = fail("predict", *flags[:-1], tmp_path / "none.parquet", monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a file; found none" in said


@pytest.mark.parametrize("share", [0.0, 0.25])
def test_the_three_columns_of_lmsys_sum_to_1(share, files, tmp_path, monkeypatch, caplog):
    """p_a is the share of a among the battles that are no ties, so its odds against b stay."""
    (first, _), p = files
    blend(tmp_path, monkeypatch, first, "--submission", "lmsys", "--tie_share", share)
    found = pd.read_csv(tmp_path / "out" / "submission.csv")
    assert list(found) == ["id", "winner_model_a", "winner_model_b", "winner_tie"]
    assert np.abs(found.drop(columns="id").sum(axis=1) - 1).max() < 1e-9 and (found["winner_tie"] == share).all()
    assert np.abs(found["winner_model_a"] - (1 - share) * p[0]).max() < 1e-9
    flags = ["--battles", TEST, "--output_dir", tmp_path / "out", "--blend", first, "--tie_share", 1.0]
    assert "--tie_share 1.0: expected a share" in fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)


def test_the_columns_of_wsdm_are_the_winner():
    verdicts = pd.DataFrame({"id": ["x", "y"], "p_a": [0.7, 0.2], "winner": ["model_a", "model_b"]})
    assert build_submission(verdicts).to_dict("list") == {"id": ["x", "y"], "winner": ["model_a", "model_b"]}
