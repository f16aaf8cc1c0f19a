"""The real commands, on the demo base where real weights matter, else on the tiny Gemma-2."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from modeling.data.battles import load_battles
from modeling.data.folds import split_folds
from modeling.judging import predictor, schedule
from modeling.judging.judge import Judge
from modeling.judging.member import read_member
from modeling.training.trainer import smooth_dataset
from tests.helpers import (
    GEMMA,
    LAUNCH,
    REPOSITORY,
    SAMPLES,
    TRAINING,
    PackCounter,
    call,
    fail,
    find_native_dtype,
    run,
    succeed,
)

DEMO_TRAINING = REPOSITORY / "configs" / "demo" / "train.yaml"


def test_the_demo_runs_from_backbone_to_submission(tmp_path):
    """quantize with the default judge's adapter, train in both orientations, predict: `make demo` on fewer battles.

    Each script in a true interpreter once; the second training is forked."""
    base, battles = tmp_path / "base", tmp_path / "battles.jsonl"
    lines = (SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    battles.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = succeed(sys.executable, "scripts/quantize.py", "--output_dir", base, cold=True)
    assert "268,303,938 parameters, 8bit" in said and (base / "model.safetensors").is_file()
    assert json.loads((base / "config.json").read_text())["made_from"] == GEMMA

    for orientation in ("ab", "ba"):
        flags = ["--base", base, "--train_file", battles, "--output_dir", tmp_path / "{orientation}", "--max_steps", 1]
        flags += ["--orientation", orientation, "--max_length", 96]
        said = succeed(*LAUNCH, "scripts/train.py", DEMO_TRAINING, *flags, cold=orientation == "ab")
        assert f"Member written: {tmp_path / orientation}" in said
        assert "tokens/s; cut" in said and "train_tokens_per_second" in said
        facts = read_member(tmp_path / orientation)
        assert facts.dtype == find_native_dtype(base) and facts.training["base_made_from"] == GEMMA
    assert not any((tmp_path / "ab.checkpoints").iterdir())  # where the Trainer's own files would be

    judge = ["--judge", tmp_path / "ab", tmp_path / "ba", "--output_dir", tmp_path / "out"]
    said = succeed(sys.executable, "scripts/predict.py", "--battles", battles, *judge, cold=True)
    assert "4 battles in" in said and "[RANK" not in said and "always a" in said and "longer wins" in said
    check_outputs(tmp_path / "out", battles)
    for path in [*(tmp_path / "ab").glob("*.json"), *base.glob("*.json")]:
        assert str(tmp_path) not in path.read_text(), f"law 12: {path.name} names a folder of this machine"


def check_outputs(output: Path, battles: Path) -> None:
    """The files that predict.py promises, in the order of the input."""
    assert {path.name for path in output.iterdir()} == {"predictions.parquet", "submission.csv"}
    ids = load_battles(battles)["id"][:]
    predictions, submission = pd.read_parquet(output / "predictions.parquet"), pd.read_csv(output / "submission.csv")
    cuts = ["tokens", "cut_prompt", "cut_response_a", "cut_response_b"]
    passes = ["p_a_ab_ab", "p_a_ab_ba", "p_a_ba_ab", "p_a_ba_ba"]
    assert list(predictions) == ["id", "p_a", "p_b", *passes, *cuts]
    assert list(submission) == ["id", "winner"]
    assert list(predictions["id"]) == list(submission["id"]) == ids
    assert np.allclose(predictions["p_a"] + predictions["p_b"], 1)
    assert np.allclose(predictions["p_a"], predictions[passes].mean(axis=1))
    assert list(submission["winner"]) == ["model_a" if p >= 0.5 else "model_b" for p in predictions["p_a"]]


def test_training_fits_a_visible_rule_and_predict_reproduces_its_evaluation(bases, tmp_path, monkeypatch):
    """Labels, orientation and pooling end to end: a member learns that the answer "yes" wins, in either order.

    If the Trainer's evaluation and predict.py disagreed, they would read in different precision or order."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(192):
        yes = int(rng.integers(2))
        texts = {"response_a": "yes" if yes == 0 else "no", "response_b": "yes" if yes == 1 else "no"}
        rows.append({"id": number, "prompt": f"q{number % 7}", **texts, "winner": ["model_a", "model_b"][yes]})
    files = {"train": rows[:128], "test": rows[128:]}
    for name, part in files.items():
        pd.DataFrame(part).to_parquet(tmp_path / f"{name}.parquet")
    for orientation in ("ab", "ba"):
        flags = [TRAINING, "--base", bases["8bit"].folder, "--orientation", orientation, "--max_length", 96]
        flags += ["--train_file", tmp_path / "train.parquet", "--eval_file", tmp_path / "test.parquet"]
        flags += ["--leak_policy", "keep"]  # seven prompts for all
        flags += ["--freeze_layers", 0, "--num_train_epochs", 3, "--learning_rate", 3e-3]
        call("train", *flags, "--output_dir", tmp_path / "{orientation}", monkeypatch=monkeypatch)
        trained = read_member(tmp_path / orientation).training["metrics"]
        assert trained["eval_accuracy"] >= 0.95

        judge = ["--judge", tmp_path / orientation, "--battles", tmp_path / "test.parquet", "--readings", "own"]
        call("predict", *judge, "--output_dir", tmp_path / f"out-{orientation}", monkeypatch=monkeypatch)
        p_a = pd.read_parquet(tmp_path / f"out-{orientation}" / "predictions.parquet")["p_a"]
        truth = np.array([row["winner"] == "model_a" for row in rows[128:]])
        assert ((p_a >= 0.5) == truth).mean() == pytest.approx(trained["eval_accuracy"])
        log_loss = -np.log(np.where(truth, p_a, 1 - p_a)).mean()
        assert log_loss == pytest.approx(trained["eval_log_loss"], abs=2e-3)


@pytest.mark.parametrize("processes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_any_number_of_processes_writes_the_same_bytes(processes, members, tmp_path, monkeypatch):
    """Law 1, also where batches do not divide evenly, and with fewer battles than processes, or none."""
    rows = load_battles(SAMPLES / "test.jsonl").to_pandas()
    commands = {}
    for count in (71, 2, 0):
        rows[:count].to_parquet(tmp_path / f"{count}.parquet")
        commands[count] = ["--battles", tmp_path / f"{count}.parquet", "--judge", *members.values()]
        commands[count] += ["--tokens_per_batch", 1500, "--output_dir"]
        call("predict", *commands[count], tmp_path / f"one-{count}", monkeypatch=monkeypatch)
    # One launch for all three, as most of a launch is imports.
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import json, runpy, sys\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    sys.argv = ['predict.py', *command]\n"
        f"    runpy.run_path({str(REPOSITORY / 'scripts' / 'predict.py')!r}, run_name='__main__')\n"
    )
    argv = [[*map(str, command), str(tmp_path / f"more-{count}")] for count, command in commands.items()]
    ddp = ["--config_file", "configs/accelerate/ddp.yaml", "--num_processes", processes]
    assert succeed(*LAUNCH, *ddp, driver, json.dumps(argv)).count("Written: ") == 3
    check_outputs(tmp_path / "more-71", tmp_path / "71.parquet")
    for count in commands:
        for name in ("predictions.parquet", "submission.csv"):
            one, more = ((tmp_path / f"{run}-{count}" / name).read_bytes() for run in ("one", "more"))
            assert one == more, f"{name} of {count} battles"


def test_a_pass_that_dies_leaves_no_result(members, tmp_path, monkeypatch):
    """Seed fault 3: its second pass died unnoticed, the first one's file was read twice, and every p was a half."""
    compute, named = predictor.predict_together, []

    def fail_second(*arguments, **options):
        named.append(options["name"])
        if len(named) == 2:
            raise RuntimeError("out of memory")
        return compute(*arguments, **options)

    monkeypatch.setattr(schedule, "predict_together", fail_second)
    flags = ["--battles", SAMPLES / "test.jsonl", "--judge", *members.values(), "--output_dir", tmp_path / "out"]
    flags += ["--readings", "own"]  # both members at once where they read the same
    with pytest.raises(RuntimeError, match="out of memory"):
        call("predict", *flags, monkeypatch=monkeypatch)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".bothways-progress"]


@pytest.mark.parametrize(
    ("verb", "flags", "file"),
    [
        ("predict", ["--readings", "both", "--output_dir", "{}"], "{}/predictions.parquet"),
        ("evaluate", ["--draws", 100, "--output_dir", "{}"], "{}/predictions.parquet"),
        ("pseudolabel", ["--output", "{}/soft.parquet"], "{}/soft.parquet"),
        ("select", ["--num_battles", 20, "--output_dir", "{}"], "{}/selected.parquet"),
    ],
)
def test_a_restart_reads_only_what_was_not_read_before(verb, flags, file, members, tmp_path, monkeypatch):
    """Counts tokens. The second member is interrupted, so that the first one's pass had ended."""
    common = ["--battles", SAMPLES / "test.jsonl", "--judge", *members.values(), "--tokens_per_batch", 1000]

    def read(folder: str) -> None:
        (tmp_path / folder).mkdir(exist_ok=True)
        call(verb, *common, *(str(flag).format(tmp_path / folder) for flag in flags), monkeypatch=monkeypatch)

    whole, before, after = PackCounter(monkeypatch).interrupt(read)
    assert before + after == whole
    assert len(before) > len(whole) / 2 > 4
    assert Path(file.format(tmp_path / "again")).read_bytes() == Path(file.format(tmp_path / "whole")).read_bytes()
    assert not [path for path in tmp_path.rglob("*") if "progress" in path.name or path.suffix == ".jsonl"]


def test_pseudolabels_belong_to_their_battles_and_are_valid_training_data(
    members, build_training, tmp_path, monkeypatch
):
    """Seed fault 1: all of its pseudo-labels sat on other rows."""
    battles, judge = tmp_path / "pool.parquet", ["--judge", *members.values(), "--tokens_per_batch", 700]
    judge += ["--dtype", "float32"]
    pool = load_battles(SAMPLES / "test.jsonl").to_pandas().drop(columns="label")
    pool.sample(frac=1, random_state=0).to_parquet(battles)  # not in the order of their lengths, nor by id
    call("predict", "--battles", battles, *judge, "--output_dir", tmp_path / "p", monkeypatch=monkeypatch)
    predicted = pd.read_parquet(tmp_path / "p" / "predictions.parquet").set_index("id")

    flags = ["--battles", battles, *judge, "--output"]
    call("pseudolabel", *flags, tmp_path / "soft.parquet", monkeypatch=monkeypatch)
    soft = load_battles(tmp_path / "soft.parquet", require_labels=True)
    assert sorted(soft["id"]) == sorted(pool["id"])
    texts = pool.set_index("id")
    for row in soft:
        assert row["label"] == pytest.approx(predicted.loc[row["id"], ["p_a", "p_b"]].tolist())
        assert row["response_a"] == texts["response_a"][row["id"]] and row["language"] == texts["language"][row["id"]]

    confidence = predicted[["p_a", "p_b"]].max(axis=1)
    least = round(confidence.median(), 4)
    call("pseudolabel", *flags, tmp_path / "hard.parquet", "--min_confidence", least, monkeypatch=monkeypatch)
    hard = load_battles(tmp_path / "hard.parquet")
    sure = predicted[confidence >= least]
    assert 30 < len(hard) < 42 and set(hard["id"]) == set(sure.index)
    assert all(
        row["label"] == [float(sure["p_a"][row["id"]] >= least), float(sure["p_b"][row["id"]] >= least)] for row in hard
    )

    flags = ["--train_file", tmp_path / "soft.parquet", "--max_steps", 1]
    call("train", *build_training("one", tmp_path / "ab"), *flags, monkeypatch=monkeypatch)
    assert read_member(tmp_path / "ab").training["num_battles"] == 72
    assert {path.name for path in tmp_path.iterdir()} == {
        "pool.parquet",
        "p",
        "soft.parquet",
        "hard.parquet",
        "ab",
        "ab.checkpoints",
    }


# --- mistakes ---------------------------------------------------------------------------------------------------------


def test_the_bare_commands_say_what_to_run_first(tmp_path):
    """Where the demo has not run: an error with the way out, and nothing written."""
    scripts = REPOSITORY / "scripts"
    for command in ([*LAUNCH, scripts / "train.py", "--orientation", "ba"], [sys.executable, scripts / "predict.py"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode != 0
        assert "run `make demo` first" in done.stderr
        assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", sorted((REPOSITORY / "scripts").glob("*.py")), ids=lambda path: path.stem)
def test_every_script_runs_by_its_path_from_any_folder(script, tmp_path):
    done = run(sys.executable, script, "--no_such_flag", 1, cwd=tmp_path, cold=True)
    assert done.returncode == 2 and "Unknown argument '--no_such_flag'" in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_scripts_without_the_package_say_what_to_run(tmp_path):
    for verb in ("quantize", "train", "pseudolabel", "predict"):
        done = run(sys.executable, "-ES", REPOSITORY / "scripts" / f"{verb}.py", cwd=tmp_path)
        assert done.returncode == 1 and "run `make install`" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "Expected --orientation; found neither flag nor YAML key. --orientation: Order of the answers"),
        (["--orientation", "abc"], "invalid choice: 'abc'"),
        (["--orientation", "ab", "--base", "nowhere/at/all"], "run `make demo` first"),
        (["--orientation", "ab", "--train_file", "none.jsonl"], "Battles file none.jsonl: expected a file, a folder"),
        (["--orientation", "ab", "--train_file", "setup.cfg"], "expected a file ending in .parquet, .csv"),
        (["--orientation", "ab", "--output_dir", "configs"], "expected a new or empty folder"),
        (["--orientation", "ab", "--fp16", "true"], "--fp16 true: expected --dtype instead"),
        (["--orientation", "ab", "--label_smoothing_factor", "1"], "label_smoothing_factor 1.0: expected 0 to below"),
        (["--orientation", "ab", "--push_to_hub", "true"], "--push_to_hub: expected a repository; found none"),
        (["--orientation", "ab", "--max_length", "20"], "--max_length 20: expected"),
    ],
)
def test_train_answers_mistakes_with_one_line(flags, expected, bases, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(REPOSITORY)
    before = sorted((REPOSITORY / "configs").iterdir())
    base = [] if "--base" in flags else ["--base", bases["float32"].folder]
    output = [] if "--output_dir" in flags else ["--output_dir", tmp_path / "out"]
    assert expected in fail("train", TRAINING, *base, *output, *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert not any(tmp_path.iterdir()) and sorted((REPOSITORY / "configs").iterdir()) == before


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"winner": "model_c"}], "battle 'r0': winner must be one of model_a, model_b, tie; found 'model_c'"),
        ([{"response_a": " "}], "battle 'r0': prompt, response_a and response_b must not be null or blank"),
        ([{"prompt": None}], "battle 'r0': prompt, response_a and response_b must not be null or blank"),
        ([{}, {"id": "r0"}], "battle 'r0': each id must be on 1 row"),
    ],
)
def test_predict_answers_bad_rows_with_their_ids_and_writes_nothing(
    rows, expected, members, tmp_path, monkeypatch, caplog
):
    plain = {"prompt": "Why?", "response_a": "x", "response_b": "y", "winner": "model_a"}
    lines = [json.dumps({"id": f"r{number}", **plain, **row}) for number, row in enumerate(rows)]
    (tmp_path / "bad.jsonl").write_text("\n".join(lines))
    flags = ["--battles", tmp_path / "bad.jsonl", "--judge", members["ab"], "--output_dir", tmp_path / "out"]
    assert expected in fail("predict", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert not (tmp_path / "out").exists()


def test_the_demo_recipe_names_the_packaged_weights():
    assert GEMMA in (REPOSITORY / "configs" / "demo" / "quantize.yaml").read_text()


def test_one_adapter_for_both_orders_learns_from_teacher_and_weights_and_reads_both_ways(
    members, bases, tmp_path, monkeypatch, caplog
):
    """Trains on two sources, one of them a judge's output with a teacher column; the member then reads ab and ba."""
    rows = load_battles(SAMPLES / "test.jsonl").to_pandas()
    rows["id"], rows["label"] = rows["id"].astype(str), rows["label"].map(list)
    rows[:8].assign(teacher=[0.9] * 4 + [None] * 4).to_parquet(tmp_path / "first.parquet")
    rows[8:16].to_parquet(tmp_path / "second.parquet")
    rows[16:24].to_parquet(tmp_path / "test.parquet")
    flags = [
        TRAINING,
        "--base",
        bases["float32"].folder,
        "--orientation",
        "both",
        "--max_length",
        96,
        "--max_steps",
        2,
    ]
    flags += ["--train_file", tmp_path / "first.parquet", tmp_path / "second.parquet", "--train_weights", 1, 0.5]
    flags += ["--train_confidences", 1, 0.9, "--teacher_column", "teacher", "--eval_file", tmp_path / "test.parquet"]
    flags += ["--label_smoothing_factor", 0.3]  # the evaluation below shows that only training labels are smoothed
    call("train", *flags, "--freeze_layers", 0, "--output_dir", tmp_path / "{orientation}", monkeypatch=monkeypatch)
    facts = read_member(tmp_path / "both")
    assert facts.orientation == "both" and facts.training["metrics"]["eval_battles"] == 8
    assert facts.training["train_file"] == ["first.parquet", "second.parquet"]
    judge = ["--judge", tmp_path / "both", "--battles", tmp_path / "test.parquet", "--output_dir", tmp_path / "out"]
    call("predict", *judge, monkeypatch=monkeypatch)
    predictions = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert {"p_a_both_ab", "p_a_both_ba"} < set(predictions)
    labels = np.array(rows["label"][16:24].tolist())
    log_loss = -(labels * np.log(predictions[["p_a", "p_b"]].to_numpy())).sum(axis=1).mean()
    assert log_loss == pytest.approx(facts.training["metrics"]["eval_log_loss"], abs=2e-3)


def test_training_labels_are_smoothed():
    smoothed = smooth_dataset(Dataset.from_dict({"label": [[1.0, 0.0], [0.25, 0.75]]}), 0.2)
    assert np.allclose(smoothed["label"][:], [[0.9, 0.1], [0.3, 0.7]])


def test_each_battle_is_predicted_by_the_members_that_did_not_train_on_it(bases, tmp_path, monkeypatch, caplog):
    rows = load_battles(SAMPLES / "test.jsonl").to_pandas()[:24]
    rows["label"] = rows["label"].map(list)
    rows.to_parquet(battles := tmp_path / "battles.parquet")
    folders = [tmp_path / f"fold{fold}" for fold in range(2)]
    for fold, folder in enumerate(folders):
        flags = [TRAINING, "--base", bases["float32"].folder, "--orientation", "ab"]
        flags += ["--max_length", 96, "--max_steps", 1]
        flags += ["--train_file", battles, "--num_folds", 2, "--fold", fold, "--freeze_layers", 0]
        call("train", *flags, "--output_dir", folder, monkeypatch=monkeypatch)
    flags = ["--battles", battles, "--judge", *folders, "--output_dir", tmp_path / "out", "--dtype", "float32"]
    call("predict", *flags, "--folds", "true", monkeypatch=monkeypatch)
    found = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert found["id"].tolist() == rows["id"].tolist() and found["p_a"].notna().all()
    dataset = load_battles(battles)
    for fold, folder in enumerate(folders):
        held_out = split_folds(dataset, 2, fold)[1]
        read = found[f"p_a_{folder.name}_ab"].notna()
        assert set(found["id"][read]) == set(held_out["id"])
        alone = Judge.from_pretrained(folder, dtype="float32").predict(held_out).set_index("id")["p_a"]
        expected = found[read].set_index("id")["p_a"].loc[alone.index]
        assert np.allclose(alone, expected, atol=1e-5)

    call_flags = ["--battles", tmp_path / "other.parquet", "--judge", *folders, "--output_dir", tmp_path / "o"]
    rows[1:].to_parquet(tmp_path / "other.parquet")
    said = fail("predict", *call_flags, "--folds", "true", monkeypatch=monkeypatch, caplog=caplog)
    assert "--folds: expected the battles that fold" in said
    flags[3:5] = [folders[0]]
    said = fail("predict", *flags, "--folds", "true", monkeypatch=monkeypatch, caplog=caplog)
    assert "expected members of all 2 folds; found none of fold 1" in said
