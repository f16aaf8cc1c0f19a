"""scripts/evaluate.py as a command: its files, calibration, a judge instead of predictions, and users' mistakes."""

import html
import json
import re
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from modeling.data.battles import load_battles
from modeling.data.benchmarks import FORMATS, load_benchmark
from modeling.evaluation.bootstrap import format_estimate
from modeling.evaluation.metrics import compute_accuracy, compute_log_loss
from modeling.judging import scoring
from modeling.judging.calibration import Calibration
from modeling.judging.judge import Judge
from modeling.judging.member import fingerprint_member, read_member
from modeling.runtime.choices import BENCHMARKS
from tests.helpers import REPOSITORY, SAMPLES, call, fail, succeed

TEST, TRAIN = SAMPLES / "test.jsonl", SAMPLES / "train.jsonl"
FILES = {"report.json", "report.html", "figures"}


def write_predictions(path, battles=TEST, seed=0, sharpness=1.0):
    """Predictions better than chance, of one member that read both orders; overconfident if sharpness is above 1."""
    loaded = load_battles(battles)
    won = np.array(loaded["label"][:])[:, 0] * 2 - 1
    odds = (won[:, None] + np.random.default_rng(seed).normal(size=(len(won), 2)) * 2) * sharpness
    passes = 1 / (1 + np.exp(-odds))
    p_a = passes.mean(axis=1)
    verdicts = {
        "id": loaded["id"][:],
        "p_a": p_a,
        "p_b": 1 - p_a,
        "p_a_m_ab": passes[:, 0],
        "p_a_m_ba": passes[:, 1],
    }
    pd.DataFrame(verdicts).to_parquet(path, index=False)
    return path


@pytest.fixture(scope="module")
def predictions(tmp_path_factory):
    return write_predictions(tmp_path_factory.mktemp("predictions") / "p.parquet")


def build_flags(predictions, output) -> list:
    return ["--predictions", predictions, "--battles", TEST, "--output_dir", output, "--draws", 100]


def test_the_command_writes_its_files_and_prints_the_table(predictions, tmp_path):
    """As a user types it, in a process where scripts/ stands first on Python's path."""
    flags = [*build_flags(predictions, tmp_path / "out"), "--train_file", TRAIN, "--against", predictions]
    said = succeed(sys.executable, "scripts/evaluate.py", *flags, cold=True)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    report = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    battles, table = load_battles(TEST), pd.read_parquet(predictions)
    labels, p = np.array(battles["label"][:]), table[["p_a", "p_b"]].to_numpy()
    assert report["accuracy"]["value"] == pytest.approx(compute_accuracy(p, labels).value)
    assert report["log_loss"]["value"] == pytest.approx(compute_log_loss(p, labels).value)
    assert "tf-idf" in report["baselines"] and "majority per language" in report["baselines"]
    assert report["comparison"]["accuracy_difference"]["value"] == 0
    assert report["data"]["battles"]["name"] == "test.jsonl" and len(report["data"]["battles"]["sha256"]) == 64
    assert f"accuracy  {report['accuracy']['value']:.3f}" in said and "Against p.parquet" in said
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    drawn = ("baselines", "reliability", "position_bias", "languages", "length_bias", "selective")
    assert names == {f"{name}.png" for name in drawn}
    assert "\nThe judge p.parquet names the winner of " in said and "\nAll tables and pictures: " in said
    written = (tmp_path / "out" / "report.html").read_text(encoding="utf-8") + json.dumps(report, ensure_ascii=False)
    assert str(tmp_path) not in written and not any(battle["prompt"][:20] in written for battle in battles)


def test_battles_are_shown_where_asked_and_a_second_run_replaces_the_first(predictions, tmp_path, monkeypatch):
    flags = build_flags(predictions, tmp_path / "out")
    call("evaluate", *flags, "--show_battles", 2, monkeypatch=monkeypatch)
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "The 2 battles with the highest loss" in page
    report = (tmp_path / "out" / "report.json").read_text(encoding="utf-8")
    assert not any(battle["prompt"][:20] in report for battle in load_battles(TEST))
    assert json.loads(report).pop("run")["command"].endswith("--show_battles 2 --use_cpu true")
    call("evaluate", *flags, monkeypatch=monkeypatch)
    assert "highest loss" not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    again = json.loads((tmp_path / "out" / "report.json").read_text(encoding="utf-8"))
    assert again | {"run": None} == json.loads(report) | {"run": None}  # but for the command and the date
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES


def test_a_report_says_whose_it_is_and_how_it_was_made(members, tmp_path, monkeypatch, capsys):
    """Both judges by name and fingerprint, date, versions and command, without a folder of this machine (law 12)."""
    monkeypatch.chdir(tmp_path)
    for name, folder in members.items():
        (tmp_path / name).symlink_to(folder)
        flags = ["--judge", name, "--battles", TEST, "--output_dir", f"p/{name}"]
        call("predict", *flags, monkeypatch=monkeypatch)
    capsys.readouterr()
    flags = ["--predictions", "p/ab/predictions.parquet", "--against", tmp_path / "p" / "ba" / "predictions.parquet"]
    before = datetime.now(UTC).replace(second=0, microsecond=0)
    call("evaluate", *flags, "--battles", TEST, "--draws", 100, "--output_dir", "out", monkeypatch=monkeypatch)
    report, text = json.loads(Path("out/report.json").read_text()), capsys.readouterr().out
    page = html.unescape(Path("out/report.html").read_text(encoding="utf-8"))
    command = (
        "python scripts/evaluate.py --predictions p/ab/predictions.parquet --against p/ba/predictions.parquet "
        "--battles test.jsonl --draws 100 --output_dir out --use_cpu true"
    )
    run = report["run"]
    assert (run["judge"], report["comparison"]["name"], run["command"]) == ("ab", "ba", command)
    assert before <= datetime.strptime(run["date"], "%Y-%m-%d %H:%M UTC").replace(tzinfo=UTC) <= datetime.now(UTC)
    assert {"bothways", "torch", "transformers", "python"} <= set(run["versions"])
    ab, ba = (fingerprint_member(read_member(folder)) for folder in members.values())
    assert (report["judge"]["members"], report["comparison"]["members"]) == ({"ab": ab}, {"ba": ba})
    for shown in (text, page):
        head = shown.split("accuracy")[0]
        facts = (f"ab (members: ab {ab})", f"ba (members: ba {ba})", run["date"], command, f"torch {version('torch')}")
        assert all(fact in head for fact in facts)
        assert "right only with ab, " in shown and "only with ba: " in shown
        assert not re.search("this judge|these predictions|the others", shown)
    assert "The judge ab names the winner of " in text and text.splitlines()[-3].split()[0] == "ba"
    written = page + json.dumps(report)
    assert str(tmp_path) not in written and str(REPOSITORY) not in written


def test_two_judges_of_one_name_are_told_apart(predictions, tmp_path, monkeypatch):
    flags = build_flags(predictions, tmp_path / "out")
    call("evaluate", *flags, "--against", predictions, monkeypatch=monkeypatch)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["run"]["judge"], report["comparison"]["name"]) == ("p.parquet", "p.parquet (--against)")


def test_a_judge_s_predictions_are_kept_beside_the_report(members, tmp_path, monkeypatch):
    flags = ["--judge", *members.values(), "--battles", TEST, "--output_dir", tmp_path / "out", "--draws", 100]
    call("evaluate", *flags, monkeypatch=monkeypatch)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}  # no progress folder is left
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    call("predict", *flags[:-4], "--output_dir", tmp_path / "p", monkeypatch=monkeypatch)
    assert found.equals(pd.read_parquet(tmp_path / "p" / "predictions.parquet"))
    readings = json.loads((tmp_path / "out" / "report.json").read_text())["readings"]
    assert [row["name"] for row in readings] == ["ab_ab", "ab_ba", "ba_ab", "ba_ba"]


def test_the_judge_without_prompts_is_a_baseline_read_now_or_before(members, tmp_path, monkeypatch, capsys):
    judge = ["--judge", *members.values(), "--battles", TEST]
    call("predict", *judge, "--hide_prompts", "true", "--output_dir", tmp_path / "blind", monkeypatch=monkeypatch)
    found = []
    for name, alone in (("now", "judge"), ("before", tmp_path / "blind" / "predictions.parquet")):
        flags = [*judge, "--output_dir", tmp_path / name, "--draws", 100, "--answers_alone", alone]
        call("evaluate", *flags, monkeypatch=monkeypatch)
        found.append(json.loads((tmp_path / name / "report.json").read_text())["baselines"]["answers alone"])
    assert found[0] == found[1]
    assert "its lead over that is what reading them is worth" in capsys.readouterr().out
    p = pd.read_parquet(tmp_path / "blind" / "predictions.parquet")
    hits = compute_accuracy(p[["p_a", "p_b"]].to_numpy(), np.array(load_battles(TEST)["label"][:]))
    assert found[0]["accuracy"]["value"] == pytest.approx(hits.value)
    # The prompt counts in these members' probabilities, and nothing else of the battles has changed.
    whole = pd.read_parquet(tmp_path / "now" / "predictions.parquet")
    assert whole["id"].equals(p["id"]) and not np.allclose(whole["p_a"], p["p_a"])


def test_a_column_to_tabulate_by_must_exist(predictions, tmp_path, monkeypatch, caplog):
    flags = [*build_flags(predictions, tmp_path / "out"), "--by", "reason", "kinds"]
    said = fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "--by kinds: expected columns of" in said and ", reason, " in said


def test_answers_alone_needs_a_judge_to_read_them(predictions, tmp_path, monkeypatch, caplog):
    flags = [*build_flags(predictions, tmp_path / "out"), "--answers_alone"]
    said = fail("evaluate", *flags, "judge", monkeypatch=monkeypatch, caplog=caplog)
    assert "--answers_alone judge: expected a --judge to read them; found none" in said
    said = fail("evaluate", *flags, tmp_path / "none.parquet", monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a file; found none" in said


@pytest.mark.parametrize("method", ["temperature", "isotonic"])
def test_calibration_is_fitted_elsewhere_and_shown_before_and_after(method, predictions, tmp_path, monkeypatch, capsys):
    sharp = write_predictions(tmp_path / "sharp.parquet", seed=1, sharpness=4)
    other = write_predictions(tmp_path / "train.parquet", TRAIN, seed=2, sharpness=4)
    flags = [*build_flags(sharp, tmp_path / "out"), "--calibrate", method, "--calibrate_battles", TRAIN]
    call("evaluate", *flags, "--calibrate_predictions", other, monkeypatch=monkeypatch)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    facts = report["calibration"]
    assert facts["after"]["log_loss"]["value"] < facts["before"]["log_loss"]["value"]
    assert facts["after"]["accuracy"] == facts["before"]["accuracy"] == report["accuracy"]
    assert facts["after"]["log_loss"] == report["log_loss"] and facts["battles"] == 216
    calibration = Calibration.from_dict(json.loads((tmp_path / "out" / "calibration.json").read_text()))
    p_a = calibration.apply(pd.read_parquet(sharp)["p_a"].to_numpy())
    labels = np.array(load_battles(TEST)["label"][:])
    expected = compute_log_loss(np.column_stack([p_a, 1 - p_a]), labels).value
    assert report["log_loss"]["value"] == pytest.approx(expected)
    interval = next(iter(facts["intervals"].values()))
    assert facts["intervals"] == calibration.intervals and interval["low"] <= interval["value"] <= interval["high"]
    said = capsys.readouterr().out
    name = "temperature" if method == "temperature" else "0.6 becomes"
    assert f"; {name} {format_estimate(interval)}" in said and "was fitted on" not in said


def test_a_calibration_on_fewer_than_a_hundred_battles_warns(predictions, tmp_path, monkeypatch, capsys, caplog):
    rows = TRAIN.read_text(encoding="utf-8").splitlines()
    for battles in (99, 100):
        (tmp_path / "few.jsonl").write_text("\n".join(rows[:battles]), encoding="utf-8")
        few = write_predictions(tmp_path / "few.parquet", tmp_path / "few.jsonl", seed=2)
        flags = ["--calibrate", "temperature", "--calibrate_battles", tmp_path / "few.jsonl"]
        flags += ["--calibrate_predictions", few, *build_flags(predictions, tmp_path / "out")]
        caplog.clear()
        call("evaluate", *flags, monkeypatch=monkeypatch)
        warning = f"The calibration was fitted on {battles} battles: expected 100 or more."
        page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
        shown = [any(warning in message for message in caplog.messages), warning in capsys.readouterr().out]
        assert [*shown, warning in page] == [battles < 100] * 3


@pytest.mark.parametrize("margin", [0, 0.001])
def test_a_metric_beyond_its_bound_fails_the_command_after_the_report(
    margin, predictions, tmp_path, monkeypatch, caplog
):
    """A metric at its bound passes; one that is worse by a thousandth fails: below for accuracy, above for log loss."""
    flags = build_flags(predictions, tmp_path / "out")
    call("evaluate", *flags, monkeypatch=monkeypatch)
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    bounds = {"accuracy": found["accuracy"]["value"] + margin, "log_loss": found["log_loss"]["value"] - margin}
    flags += ["--fail_under", *(f"{name}={bound!r}" for name, bound in bounds.items()), "brier=1"]
    if not margin:
        call("evaluate", *flags, monkeypatch=monkeypatch)
    else:
        with pytest.raises(SystemExit) as stop:
            call("evaluate", *flags, monkeypatch=monkeypatch)
        assert stop.value.code == 1
        said = caplog.messages[-1].splitlines()
        assert len(said) == 2 and "expected accuracy " in said[0] and "or more; found" in said[0]
        loss = found["log_loss"]
        ends = f"{loss['value']:.3f} [{loss['low']:.3f}, {loss['high']:.3f}] on {loss['count']} battles"
        assert "expected log loss " in said[1] and f"or less; found {ends}" in said[1]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    passed = [not margin, not margin, True]
    assert [row["passed"] for row in report["bounds"]] == passed
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert page.count("<td>no</td>") == passed.count(False) and page.count("<td>yes</td>") == passed.count(True)


def test_calibrating_on_scored_battles_or_prompts_is_refused(predictions, tmp_path, monkeypatch, caplog):
    """Prompts decide, not ids."""
    flags = [*build_flags(predictions, tmp_path / "out"), "--calibrate", "temperature"]
    same = ["--calibrate_predictions", predictions, "--calibrate_battles", TEST]
    said = fail("evaluate", *flags, *same, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected battles with other prompts than the scored battles; found none among 72" in said
    rows = [json.loads(line) for line in TEST.read_text(encoding="utf-8").splitlines()[:3]]
    rows = [row | {"id": f"new-{number}", "prompt": f"{row['prompt']} "} for number, row in enumerate(rows)]
    (tmp_path / "near.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    near = write_predictions(tmp_path / "near.parquet", tmp_path / "near.jsonl")
    near_flags = ["--calibrate_predictions", near, "--calibrate_battles", tmp_path / "near.jsonl"]
    said = fail("evaluate", *flags, *near_flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "found none among 3" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, expected",
    [
        ({"--draws": 5}, "expected 100 draws or more"),
        ({"--predictions": "nowhere.parquet"}, "Predictions nowhere.parquet: expected a file; found none"),
        ({"--predictions": TEST}, "expected a parquet file"),
        ({"--calibrate": "isotonic"}, "expected both or neither; found one"),
        ({"--train_file": TEST}, "--train_file .*: expected no scored battle; found 72"),
        ({"--battles": TRAIN}, "expected a row for each battle; found none for 216"),
        ({"--show_battles": -1}, "no fewer battles than 0"),
        ({"--fail_under": "acuracy=0.6"}, "expected metrics among accuracy, log_loss, brier, ece, auc; found acuracy"),
        ({"--fail_under": "accuracy"}, "expected <name>=<value>, each name once; found 'accuracy'"),
        ({"--fail_under": "accuracy=nan"}, "expected a number for each metric; found accuracy=nan. Write accuracy=0.6"),
        ({"--fail_under": "ece=low"}, "expected a number for each metric; found ece=low"),
        ({"--predictions": ""}, "Expected --predictions or --judge; found neither"),
    ],
)
def test_a_mistake_gives_one_line_and_writes_nothing(change, expected, predictions, tmp_path, monkeypatch, caplog):
    flags = dict(zip(*[iter(build_flags(predictions, tmp_path / "out"))] * 2, strict=True)) | change
    said = fail("evaluate", *(part for item in flags.items() for part in item), monkeypatch=monkeypatch, caplog=caplog)
    assert re.search(expected, said), said
    assert not (tmp_path / "out").exists()


def test_a_folder_with_other_files_or_with_an_input_is_not_replaced(predictions, tmp_path, monkeypatch, caplog):
    """Not even an earlier evaluation's folder, if it holds the predictions to score."""
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    flags = build_flags(predictions, tmp_path / "notes")
    assert "found other files" in fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    inside = tmp_path / "out" / "predictions.parquet"
    inside.parent.mkdir()
    write_predictions(inside)
    (inside.parent / "report.json").write_text("{}")
    said = fail("evaluate", *build_flags(inside, tmp_path / "out"), monkeypatch=monkeypatch, caplog=caplog)
    assert "expected a folder without inputs" in said and inside.is_file()
    assert (tmp_path / "notes" / "mine.txt").read_text() == "keep"


def test_the_recipe_names_what_the_demo_makes():
    recipe = (REPOSITORY / "configs" / "demo" / "evaluate.yaml").read_text()
    predict = (REPOSITORY / "configs" / "demo" / "predict.yaml").read_text()
    assert "predictions: outputs/demo/predictions/predictions.parquet" in recipe
    assert "output_dir: outputs/demo/predictions" in predict


# --- public benchmarks ------------------------------------------------------------------------------------------------

PAGE = (REPOSITORY / "docs" / "benchmarks.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def llmbar(tmp_path_factory):
    """A folder as LLMBar's repository lays it out, with six questions in each of two subsets, made of the samples."""
    folder = tmp_path_factory.mktemp("LLMBar")
    battles = load_battles(TEST).to_list()
    for subset, rows in (("Natural", battles[:6]), ("Adversarial/Manual", battles[6:12])):
        (folder / subset).mkdir(parents=True)
        written = [
            {
                "input": row["prompt"],
                "output_1": row["response_a"],
                "output_2": row["response_b"],
                "label": 1 + number % 2,
            }
            for number, row in enumerate(rows)
        ]
        (folder / subset / "dataset.json").write_text(json.dumps(written), encoding="utf-8")
    return folder


def test_the_documented_command_scores_a_benchmark(members, llmbar, tmp_path, monkeypatch, capsys):
    """That of docs/benchmarks.md, with the tests' members and folder: the table, the whole report, and predictions."""
    (command,) = re.findall(r"^```bash\n(.*?)^```", PAGE, re.M | re.S)
    words = shlex.split(command.replace("\\\n", " "))
    ours = {"default": [*members.values()], "LLMBar/Dataset/LLMBar": [llmbar], "outputs/llmbar": [tmp_path / "out"]}
    flags = [flag for word in words[2:] for flag in ours.get(word, [word])]
    call("evaluate", *flags, monkeypatch=monkeypatch)
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {"predictions.parquet"}
    report, said = json.loads((tmp_path / "out" / "report.json").read_text()), capsys.readouterr().out
    found = report["benchmark"]
    assert (found["name"], found["questions"], found["size"]) == ("llmbar", 12, 419)
    assert [row["name"] for row in found["rows"]] == ["overall", "Adversarial", "Natural", "Manual"]
    assert found["absent"] == ["Neighbor", "GPTInst", "GPTOut"]
    # Two subsets of equal size: their mean is the accuracy of all, and the baselines are those of the whole report.
    overall = found["rows"][0]
    assert overall["judge"]["value"] == pytest.approx(report["accuracy"]["value"])
    for ours, theirs in (("longest", "longer wins"), ("shortest", "shorter wins"), ("always a", "always a")):
        assert overall[ours]["value"] == pytest.approx(report["baselines"][theirs]["accuracy"]["value"])
    assert overall["flips"]["value"] == pytest.approx(report["position_bias"]["flip_share"]["value"])
    page = html.unescape((tmp_path / "out" / "report.html").read_text(encoding="utf-8"))
    for shown in (said, page):
        assert "Benchmark llmbar" in shown and "12 of 419 questions" in shown
        assert "these are not its official numbers. Without Neighbor, GPTInst, GPTOut." in shown
        assert format_estimate(overall["judge"]) in shown
    assert report["data"]["battles"] == {"name": llmbar.name, "sha256": None}
    verdicts = Judge.from_pretrained(list(members.values())).predict(load_benchmark("llmbar", str(llmbar)))
    kept = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    pd.testing.assert_frame_equal(kept, verdicts.drop(columns="winner"), check_exact=False, atol=1e-6)


def test_a_benchmark_s_predictions_are_scored_again_without_a_judge(members, llmbar, tmp_path, monkeypatch):
    flags = ["--benchmark", "llmbar", "--benchmark_file", llmbar, "--draws", 100]
    call("evaluate", *flags, "--judge", *members.values(), "--output_dir", tmp_path / "first", monkeypatch=monkeypatch)
    flags += ["--predictions", tmp_path / "first" / "predictions.parquet", "--output_dir", tmp_path / "again"]
    call("evaluate", *flags, monkeypatch=monkeypatch)
    first, again = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("first", "again"))
    assert first["benchmark"] == again["benchmark"]


def test_a_benchmark_that_is_stopped_goes_on(members, llmbar, tmp_path, monkeypatch):
    """Law 7: what was read is kept beside the output, and the second run reads nothing and gives the same."""
    flags = ["--judge", *members.values(), "--benchmark", "llmbar", "--benchmark_file", llmbar, "--draws", 100]
    call("evaluate", *flags, "--output_dir", tmp_path / "whole", monkeypatch=monkeypatch)

    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(scoring, "evaluate_verdicts", stop)
        with pytest.raises((KeyboardInterrupt, SystemExit)):
            call("evaluate", *flags, "--output_dir", tmp_path / "out", monkeypatch=patched)
    assert not (tmp_path / "out").exists() and len(list(tmp_path.iterdir())) == 2
    call("evaluate", *flags, "--output_dir", tmp_path / "out", monkeypatch=monkeypatch)
    whole, out = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("whole", "out"))
    assert whole.equals(out) and {path.name for path in tmp_path.iterdir()} == {"whole", "out"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (
            "--benchmark llmbar --battles b.jsonl",
            "--benchmark: expected no --battles, as the benchmark says which rows",
        ),
        ("--benchmark llmbar --tie_policy drop", "--benchmark: expected no --tie_policy"),
        ("--benchmark_file f.json --battles b.jsonl", "--benchmark_file: expected --benchmark too; found none"),
        ("--benchmark mmlu", "--benchmark: invalid choice: 'mmlu' .*'rewardbench', 'rewardbench2', 'rm-bench'"),
        ("--benchmark llmbar --benchmark_file none.json", "none.json: expected a file, a folder .*found none"),
        ("--benchmark rewardbench", "allenai/reward-bench:filtered: expected an answer from the Hub"),
    ],
)
def test_a_mistake_about_a_benchmark_gives_one_line(flags, expected, members, tmp_path, monkeypatch, caplog):
    """Offline, the Hub's data set is such a mistake."""
    flags = [*flags.split(), "--judge", *members.values(), "--output_dir", tmp_path / "out"]
    said = fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert re.search(expected, said), said
    assert not (tmp_path / "out").exists()


def test_the_page_lists_the_benchmarks_as_they_are():
    rows = re.findall(r"^\| `([\w-]+)` \| `([\w./-]+)` \| ([\d,]*) ?\| ", PAGE, re.M)
    sizes = {name: FORMATS[name].size for name in BENCHMARKS}
    assert {name: hub for name, hub, _ in rows} == BENCHMARKS
    assert {name: int(size.replace(",", "")) if size else None for name, _, size in rows} == sizes


# --- votes and style --------------------------------------------------------------------------------------------------


def write_votes(folder: Path, **changes) -> list:
    """Judged battles of three models without outcomes, votes on every third of them, and the flags that name them."""
    battles = load_battles(TEST).to_pandas()
    labels = np.stack(battles["label"])
    models = np.random.default_rng(0).permuted(np.tile(["x", "y", "z"], (len(battles), 1)), axis=1)
    judged = battles[["id", "prompt", "response_a", "response_b"]].assign(model_a=models[:, 0], model_b=models[:, 1])
    judged.to_parquet(folder / "judged.parquet")
    votes = judged.drop(columns=["model_a", "model_b"]).assign(**{"label": list(labels)} | changes)[::3]
    votes.to_parquet(folder / "votes.parquet")
    predictions = write_predictions(folder / "p.parquet")
    flags = ["--predictions", predictions, "--battles", folder / "judged.parquet", "--votes", folder / "votes.parquet"]
    return [*flags, "--draws", 100, "--output_dir", folder / "out"]


def test_few_votes_and_a_judge_give_win_rates_and_ratings(tmp_path, monkeypatch, capsys):
    """The battles have no outcomes: metrics are those of the votes, whose models are those of the judged battles."""
    call("evaluate", *write_votes(tmp_path), "--against", tmp_path / "p.parquet", monkeypatch=monkeypatch)
    report, said = json.loads((tmp_path / "out" / "report.json").read_text()), capsys.readouterr().out
    everything = load_battles(TEST)
    labels, p = (
        np.array(everything["label"][:])[::3],
        pd.read_parquet(tmp_path / "p.parquet")[["p_a", "p_b"]].to_numpy(),
    )
    assert report["accuracy"]["value"] == pytest.approx(compute_accuracy(p[::3], labels).value)
    facts = report["votes"]
    assert (facts["votes"], facts["battles"]) == (len(labels), len(everything))
    assert facts["share_a"]["votes"]["value"] == pytest.approx(labels[:, 0].mean())
    assert facts["share_a"]["judge"]["value"] == pytest.approx(p[:, 0].mean())
    assert (
        {row["name"] for row in facts["models"]}
        == {"x", "y", "z"}
        == {r["name"] for r in report["leaderboard"]["models"]}
    )
    assert facts["agreement"]["value"] == report["accuracy"]["value"]
    assert report["comparison"]["accuracy_difference"]["value"] == 0
    assert "Ratings by votes and judge" in said and "votes.parquet" in report["data"]["votes"]["name"]
    assert "Ratings by votes and judge" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"response_a": "Other."}, "expected the texts of the judged battles"), ({"label": None}, "label")],
    ids=["texts", "no label"],
)
def test_votes_on_other_battles_are_refused(changes, expected, tmp_path, monkeypatch, caplog):
    said = fail("evaluate", *write_votes(tmp_path, **changes), monkeypatch=monkeypatch, caplog=caplog)
    assert expected in said
    assert not (tmp_path / "out").exists()


def test_votes_on_battles_that_were_not_judged_are_refused(tmp_path, monkeypatch, caplog):
    flags = write_votes(tmp_path)
    judged = pd.read_parquet(tmp_path / "judged.parquet")
    judged[1:].to_parquet(tmp_path / "judged.parquet")
    said = fail("evaluate", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert f"found 1 on others: {judged['id'][0]!r}. Add these battles" in said


def test_style_is_taken_out_of_p_and_scored(predictions, tmp_path, monkeypatch):
    flags = build_flags(predictions, tmp_path / "out")
    call("evaluate", *flags, "--style_control", "true", monkeypatch=monkeypatch)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    controlled = tmp_path / "out" / "style_controlled.parquet"
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES | {controlled.name}
    assert {row["name"] for row in report["style"]["features"]} >= {"length"}
    call("evaluate", *build_flags(controlled, tmp_path / "again"), monkeypatch=monkeypatch)
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert report["style_control"]["after"] == {name: again[name] for name in report["style_control"]["after"]}
    assert report["style_control"]["before"]["accuracy"] == report["accuracy"] != again["accuracy"]
