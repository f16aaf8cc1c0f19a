"""A calibrated judge: fitted, stored in judge.json, applied, published."""

import asyncio
import contextlib
import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from modeling.data.battles import TEXTS, load_battles, swap_responses
from modeling.judging.calibration import Calibration
from modeling.judging.judge import Judge
from modeling.judging.member import JUDGE_FILE, JudgeFacts, locate_judge, read_judge, write_judge
from modeling.judging.pseudolabels import describe_judge
from modeling.publishing.publish import collect_judge
from modeling.publishing.staging import stage_contents
from modeling.runtime.files import hash_file
from modeling.serving.requests import RequestLimits
from modeling.serving.server import ServedJudge
from tests.helpers import SAMPLES, call, fail

TEST, TRAIN = SAMPLES / "test.jsonl", SAMPLES / "train.jsonl"
SAVED = ["--calibrate_predictions", "p.parquet", "--save_calibration", "true"]


@pytest.fixture
def folder(members, bases, tmp_path):
    """Two members side by side, and their base beside the folder."""
    shutil.copytree(bases["float32"].folder, tmp_path / "base")
    for name, member in members.items():
        shutil.copytree(member, tmp_path / "judge" / name)
        path = tmp_path / "judge" / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": "../../base"}))
    return tmp_path / "judge"


@pytest.fixture
def calibrate(folder, monkeypatch):
    """Runs evaluate.py on the two members, named one by one."""

    def run(*flags):
        judge = [folder / "ab", folder / "ba"]
        required = ["--battles", TEST, "--calibrate_battles", TRAIN, "--output_dir", folder.parent / "out"]
        call("evaluate", "--judge", *judge, *required, "--draws", 100, *flags, monkeypatch=monkeypatch)
        return folder

    return run


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_a_saved_calibration_is_applied_and_raw_p_a_keeps_the_mean(method, calibrate, folder, monkeypatch):
    """raw_p_a equals p_a of the same members without the calibration, and every winner stays."""
    calibrate("--calibrate", method, "--save_calibration", "true")
    facts = read_judge(folder)
    assert facts.members == ["ab", "ba"] and facts.readings == "both" and facts.calibration["battles"] == 216
    assert facts.calibration["fitted_on"]["name"] == TRAIN.name and str(folder) not in (folder / JUDGE_FILE).read_text()
    found = {}
    for name, judge in {"members": [folder / "ab", folder / "ba"], "judge": [folder]}.items():
        output = folder.parent / name
        call("predict", "--battles", TEST, "--judge", *judge, "--output_dir", output, monkeypatch=monkeypatch)
        found[name] = pd.read_parquet(output / "predictions.parquet")
    assert "raw_p_a" not in found["members"]
    assert (found["judge"]["raw_p_a"] == found["members"]["p_a"]).all()
    calibration = Calibration.from_dict(json.loads((folder.parent / "out" / "calibration.json").read_text()))
    assert (found["judge"]["p_a"] == calibration.apply(found["members"]["p_a"].to_numpy())).all()
    assert (found["judge"]["p_a"] - found["members"]["p_a"]).abs().max() > 0.001
    assert (found["judge"]["p_a"] + found["judge"]["p_b"] == 1).all()
    winners = [(folder.parent / name / "submission.csv").read_text() for name in found]
    assert winners[0] == winners[1]


def test_a_report_on_a_calibrated_judge_shows_before_and_after(calibrate, folder, monkeypatch, capsys):
    """For a judge and for a predictions file; --calibrated false turns it off."""
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    common = ["--battles", TEST, "--output_dir", folder.parent / "again", "--draws", 100]
    fitted = json.loads((folder.parent / "out" / "report.json").read_text())
    call("evaluate", "--judge", folder, *common, monkeypatch=monkeypatch)
    report = json.loads((folder.parent / "again" / "report.json").read_text())
    assert report["calibration"] == fitted["calibration"] and report["log_loss"] == fitted["log_loss"]
    predictions = folder.parent / "p.parquet"
    shutil.copyfile(folder.parent / "again" / "predictions.parquet", predictions)
    call("evaluate", "--predictions", predictions, *common, monkeypatch=monkeypatch)
    report = json.loads((folder.parent / "again" / "report.json").read_text())
    assert report["calibration"] == fitted["calibration"] and report["ece"] == fitted["ece"]
    assert capsys.readouterr().out.count("Method: temperature, fitted on ") == 3
    call("evaluate", "--predictions", predictions, *common, "--calibrated", "false", monkeypatch=monkeypatch)
    report = json.loads((folder.parent / "again" / "report.json").read_text())
    assert "calibration" not in report and report["ece"] == fitted["calibration"]["before"]["ece"]
    call("evaluate", "--judge", folder, *common, "--calibrated", "false", monkeypatch=monkeypatch)
    report = json.loads((folder.parent / "again" / "report.json").read_text())
    assert "calibration" not in report and report["log_loss"] == fitted["calibration"]["before"]["log_loss"]


def test_a_calibration_applies_to_the_passes_it_was_fitted_on_only(calibrate, folder, caplog):
    """A judge that was calibrated on its own orders goes on reading these, though both orders are the default."""
    for fitted, other in (("own", "both"), ("both", "own")):
        (folder / JUDGE_FILE).unlink(missing_ok=True)
        calibrate("--calibrate", "temperature", "--save_calibration", "true", "--readings", fitted)
        judge, battles = Judge.from_pretrained(folder, dtype="float32"), load_battles(TEST).select(range(4))
        assert "raw_p_a" in judge.predict(battles) and "raw_p_a" in judge.predict(battles, readings=fitted)
        assert "raw_p_a" not in judge.predict(battles, readings=other)
        assert f"the calibration was fitted on --readings {fitted}" in caplog.messages[-1]
        assert describe_judge(judge, None)["judge_calibration"].startswith("temperature@")
        assert describe_judge(judge, other)["judge_calibration"] == "none"
    assert describe_judge(judge, None, calibrated=False)["judge_calibration"] == "none"


def test_a_calibrated_judge_of_both_orders_still_mirrors(calibrate, folder):
    """Law 2: p(A, B) = 1 - p(B, A)."""
    calibrate("--calibrate", "isotonic", "--save_calibration", "true")
    judge, battles = Judge.from_pretrained(folder, dtype="float32"), load_battles(TEST).select(range(6))
    first, second = judge.predict(battles), judge.predict(swap_responses(battles))
    assert "raw_p_a" in first and np.abs(first["p_a"] + second["p_a"] - 1).max() < 1e-5


def test_the_app_gives_the_calibrated_answer(calibrate, folder):
    """A single battle and a file give the numbers of `Judge.predict`, not the raw mean."""
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    judge, battles = Judge.from_pretrained(folder, dtype="float32"), load_battles(TEST).select([0])
    served = ServedJudge(judge, RequestLimits(max_characters=10_000, max_battles=10, max_bytes=1_000_000))
    expected = judge.predict(battles).iloc[0]
    assert abs(expected["p_a"] - expected["raw_p_a"]) > 1e-4
    answer = asyncio.run(served.judge_battle({name: battles[0][name] for name in TEXTS}))
    assert answer["p_a"] == pytest.approx(expected["p_a"])
    battles.to_json(upload := folder.parent / "one.jsonl")
    written = pd.read_parquet(served.judge_file(upload, folder.parent / "served").predictions)
    assert written["p_a"][0] == pytest.approx(expected["p_a"]) and written["raw_p_a"][0] == expected["raw_p_a"]
    served.close()


def test_a_judge_named_with_other_members_loses_its_calibration(calibrate, folder, members, caplog):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    judge = Judge.from_pretrained([folder, members["ab"]], dtype="float32")
    assert len(judge.members) == 3 and judge.calibration is None
    assert any("its calibration is ignored" in message for message in caplog.messages)


def test_members_that_were_trained_again_are_refused(calibrate, folder, make_member, bases):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    shutil.rmtree(folder / "ba")
    make_member(folder / "ba", bases["float32"], "ba", seed=9)
    with pytest.raises(ValueError, match=r"expected the members that it was calibrated with .* Calibrate it again"):
        Judge.from_pretrained(folder)


def test_a_judge_is_not_calibrated_on_its_training_file_or_on_scored_prompts(folder, calibrate, monkeypatch, caplog):
    """Battles with scored prompts are left out and counted; a member's training file is refused."""
    rows = TRAIN.read_text(encoding="utf-8").splitlines()
    near = [json.loads(row) | {"id": f"new-{n}"} for n, row in enumerate(TEST.read_text("utf-8").splitlines()[:3])]
    mixed = folder.parent / "mixed.jsonl"
    mixed.write_text("\n".join([*rows, *map(json.dumps, near)]) + "\n", encoding="utf-8")
    calibrate("--calibrate", "temperature", "--calibrate_battles", mixed)
    said = [message for message in caplog.messages if "with a scored battle's prompt" in message]
    assert "left out 3 of 219 battles" in said[0] and "'new-0', 'new-1', 'new-2'" in said[0]
    path = folder / "ab" / "member.json"
    facts = json.loads(path.read_text())
    facts["training"]["data"] = [{"role": "train", "source": TRAIN.name, "sha256": hash_file(TRAIN)}]
    path.write_text(json.dumps(facts))
    flags = ["--judge", folder / "ab", "--battles", TEST, "--output_dir", folder.parent / "no", "--calibrate"]
    flags += ["temperature", "--calibrate_battles", TRAIN]
    said = fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "found the training file of ab" in said and not (folder.parent / "no").exists()


def test_publishing_keeps_a_calibration_only_with_the_readings_it_was_fitted_on(calibrate, folder):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    stored = read_judge(folder).calibration
    for readings, expected in ((None, stored), ("both", stored), ("own", None)):
        with stage_contents(collect_judge([folder], readings), "user/judge", ("user/base", "0" * 40)) as stage:
            assert read_judge(stage).calibration == expected
            assert list(stage.glob(".judge*")) == []
            assert ("`raw_p_a` is the mean before calibration" in (stage / "README.md").read_text()) == bool(expected)


def test_a_report_and_its_judge_are_published_both_calibrated_or_neither(calibrate, folder):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    report = folder.parent / "out"
    apart = [folder / "ab", folder / "ba"]
    for contents, ends in ((collect_judge([folder]), "fine"), (collect_judge(apart), "refused")):
        with contextlib.ExitStack() as stack:
            if ends == "refused":
                stack.enter_context(
                    pytest.raises(ValueError, match="expected results of an uncalibrated judge, as it is published")
                )
            stage = stage_contents(replace(contents, report=report), "user/judge", ("user/base", "0" * 40))
            stack.enter_context(stage)


def test_a_calibration_of_other_members_is_not_published(calibrate, folder, make_member, bases):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    shutil.rmtree(folder / "ba")
    make_member(folder / "ba", bases["float32"], "ba", seed=9)
    with pytest.raises(ValueError, match="expected the members that it was calibrated with"):
        collect_judge([folder])


def test_a_calibration_is_saved_only_if_it_was_fitted_on_the_judge_s_own_passes(calibrate, folder, monkeypatch, caplog):
    """Predictions of two members are refused for a judge of one."""
    output = folder.parent / "train"
    judge = ["--judge", folder / "ab", folder / "ba"]
    call("predict", "--battles", TRAIN, *judge, "--output_dir", output, monkeypatch=monkeypatch)
    flags = ["--calibrate", "temperature", "--calibrate_predictions", output / "predictions.parquet"]
    calibrate(*flags, "--save_calibration", "true")
    saved = read_judge(folder).calibration
    (folder / JUDGE_FILE).unlink()
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    assert read_judge(folder).calibration["temperature"] == pytest.approx(saved["temperature"], rel=1e-6)
    required = ["--battles", TEST, "--calibrate_battles", TRAIN, "--output_dir", folder.parent / "out", *flags]
    (folder / JUDGE_FILE).unlink()
    alone = ["--judge", folder / "ab", "--save_calibration", "true"]
    said = fail("evaluate", *alone, *required, monkeypatch=monkeypatch, caplog=caplog)
    assert (
        "expected the passes of --judge (p_a_ab_ab, p_a_ab_ba); found p_a_ab_ab, p_a_ab_ba, p_a_ba_ab, p_a_ba_ba"
        in said
    )


def test_a_judge_is_not_scored_on_the_battles_it_was_calibrated_on(calibrate, folder, monkeypatch, caplog):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    flags = ["--judge", folder, "--battles", TRAIN, "--output_dir", folder.parent / "again", "--draws", 100]
    said = fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert f"--battles {TRAIN}: expected other battles than the judge was calibrated on" in said
    more = folder.parent / "more.jsonl"  # the judged battles may be others, as long as the votes are
    more.write_text(TRAIN.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    votes = [*flags[:2], "--battles", more, "--votes", TRAIN, *flags[4:]]
    said = fail("evaluate", *votes, monkeypatch=monkeypatch, caplog=caplog)
    assert f"--votes {TRAIN}: expected other battles than the judge was calibrated on" in said
    call("evaluate", *flags, "--calibrated", "false", monkeypatch=monkeypatch)


def test_saving_a_calibration_does_not_change_the_readings_in_judge_json(calibrate, folder, monkeypatch, caplog):
    write_judge(folder, JudgeFacts(["ab", "ba"], "own"))
    flags = ["--judge", folder / "ab", folder / "ba", "--battles", TEST, "--calibrate_battles", TRAIN]
    flags += ["--calibrate", "temperature", "--save_calibration", "true", "--output_dir", folder.parent / "out"]
    said = fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected --readings own" in said and read_judge(folder) == JudgeFacts(["ab", "ba"], "own")


@pytest.mark.parametrize("change", [{"temperature": "x"}, {"points": 5}, {"battles": None}, {"slope": 1}])
def test_a_damaged_calibration_is_named(change, calibrate, folder):
    calibrate("--calibrate", "temperature", "--save_calibration", "true")
    path = folder / JUDGE_FILE
    facts = json.loads(path.read_text())
    path.write_text(json.dumps(facts | {"calibration": facts["calibration"] | change}))
    with pytest.raises(ValueError, match=r"Judge ab, ba, judge\.json: Calibration: expected"):
        Judge.from_pretrained(folder)


def test_where_a_judge_can_be_stored(folder, members):
    assert locate_judge([str(folder / "ab"), str(folder / "ba")]) == (folder, ["ab", "ba"])
    with pytest.raises(ValueError, match="expected a folder here"):
        locate_judge(["user/judge"])
    with pytest.raises(ValueError, match="expected members side by side"):
        locate_judge([str(folder / "ab"), str(folder.parent / "base")])
    with pytest.raises(ValueError, match="each once"):
        locate_judge([str(folder / "ab"), str(folder / "ab")])
    write_judge(folder, JudgeFacts(["ba", "ab"]))
    assert locate_judge([str(folder)]) == (folder, ["ba", "ab"])
    with pytest.raises(ValueError, match=r"expected the members ab in judge.json; found ba, ab"):
        locate_judge([str(folder / "ab")])
    (folder / JUDGE_FILE).write_text(json.dumps({"format": 1, "members": ["ab"], "calibration": 2}))
    with pytest.raises(ValueError, match="expected format 1"):
        read_judge(folder)


@pytest.mark.parametrize(
    "flags, expected",
    [
        (["--calibrate_predictions", "p.parquet"], "expected --calibrate too"),
        (["--save_calibration", "true"], "expected --calibrate too"),
        (["--calibrate", "isotonic", "--calibrate_battles", TRAIN], "expected --calibrate_predictions or a --judge"),
        (
            ["--calibrate", "isotonic", "--calibrate_battles", TRAIN, *SAVED],
            "expected the --judge to keep it in",
        ),
    ],
)
def test_flags_that_need_another_say_so(flags, expected, tmp_path, monkeypatch, caplog):
    common = ["--battles", TEST, "--predictions", "p.parquet", "--output_dir", tmp_path / "out"]
    assert expected in fail("evaluate", *common, *flags, monkeypatch=monkeypatch, caplog=caplog)
