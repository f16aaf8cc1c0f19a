"""The real commands: on the demo base where real weights matter, on the tiny Gemma-2 where processes or numbers do."""

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from modeling import inference, judge
from modeling.bases import find_base, load_base
from modeling.battles import load_battles
from modeling.loading import merge_adapter, read_member
from tests.conftest import DEMO_BACKBONE, DEMO_DATA, REPOSITORY
from tests.test_classifier import make_batch

LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def run(*command, cwd=REPOSITORY) -> subprocess.CompletedProcess:
    """Runs a command as a user would; stdout and stderr as text."""
    command = [str(part) for part in command]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})


def succeed(*command) -> str:
    done = run(*command)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


def call(verb: str, *flags, monkeypatch) -> None:
    """Runs a script in this process, which spares the imports; ends as the command would."""
    if verb != "quantize":
        flags = (*flags, "--use_cpu", "true")
    monkeypatch.setattr(sys, "argv", [f"{verb}.py", *map(str, flags)])
    runpy.run_path(str(REPOSITORY / "scripts" / f"{verb}.py"), run_name="__main__")


@pytest.fixture(scope="session")
def train_flags(bases, tmp_path_factory) -> list:
    """Two optimizer steps of 8 battles each on the tiny base, in float32, without dropout."""
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    lines = (DEMO_DATA / "demo_train.jsonl").read_text(encoding="utf-8").splitlines()[:16]
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    quiet = ["--head_dropout", 0, "--freeze_layers", 0, "--bf16", "false", "--logging_steps", 1, "--max_length", 128]
    return ["--base", bases["float32"].folder, "--train_file", file, "--orientation", "ab", *quiet]


def compare_members(first: Path, second: Path) -> float:
    """Largest difference between two members' weights."""
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (first, second))
    assert one.keys() == two.keys()
    return max((one[name] - two[name]).abs().max().item() for name in one)


def test_the_demo_runs_from_backbone_to_submission(tmp_path):
    """quantize, train both orientations, predict: what `make demo` does, on fewer battles."""
    base, battles = tmp_path / "base", tmp_path / "battles.jsonl"
    lines = (DEMO_DATA / "demo_test.jsonl").read_text(encoding="utf-8").splitlines()[:4]
    battles.write_text("\n".join(lines) + "\n", encoding="utf-8")
    said = succeed(sys.executable, "scripts/quantize.py", "--output_dir", base)
    assert "134,681,762 parameters, 8bit" in said and (base / "model.safetensors").is_file()

    for orientation in ("ab", "ba"):
        flags = ["--base", base, "--train_file", battles, "--output_dir", tmp_path / "{orientation}", "--max_steps", 1]
        said = succeed(*LAUNCH, "scripts/train.py", "--orientation", orientation, *flags, "--max_length", 96)
        assert f"Member written: {tmp_path / orientation}" in said
        assert "tokens/s; cut" in said and "train_tokens_per_second" in said
        assert read_member(tmp_path / orientation).dtype == "bfloat16"
    assert not any((tmp_path / "ab.checkpoints").iterdir())  # where the Trainer's own files would be

    judge = ["--judge", tmp_path / "ab", tmp_path / "ba", "--output_dir", tmp_path / "out"]
    said = succeed(sys.executable, "scripts/predict.py", "--battles", battles, *judge)
    assert "tok/s" in said and "always a" in said and "longer wins" in said
    check_outputs(tmp_path / "out", battles)
    for path in [*(tmp_path / "ab").glob("*.json"), *base.glob("*.json")]:
        assert str(tmp_path) not in path.read_text(), f"law 12: {path.name} names a folder of this machine"


def check_outputs(output: Path, battles: Path) -> None:
    """The files that predict.py promises, in the order of the input."""
    assert {path.name for path in output.iterdir()} == {"predictions.parquet", "submission.csv"}
    ids = load_battles(battles)["id"][:]
    predictions, submission = pd.read_parquet(output / "predictions.parquet"), pd.read_csv(output / "submission.csv")
    cuts = ["tokens", "cut_prompt", "cut_response_a", "cut_response_b"]
    assert list(predictions) == ["id", "p_a", "p_b", "p_a_ab_ab", "p_a_ba_ba", *cuts]
    assert list(submission) == ["id", "winner"]
    assert list(predictions["id"]) == list(submission["id"]) == ids
    assert np.allclose(predictions["p_a"] + predictions["p_b"], 1)
    assert np.allclose(predictions["p_a"], (predictions["p_a_ab_ab"] + predictions["p_a_ba_ba"]) / 2)
    assert list(submission["winner"]) == ["model_a" if p >= 0.5 else "model_b" for p in predictions["p_a"]]


def test_accumulation_and_processes_change_neither_loss_nor_gradient(train_flags, tmp_path, monkeypatch):
    """Law 5: 1 x 8 = 8 x 1 = 2 processes x 4. A loss scaled by the number of micro-batches would not even be close:
    8 times the gradient, then clipped, gives other weights after the second step."""
    runs = {"1x8": (8, 1, 1), "8x1": (1, 8, 1), "2x4": (4, 1, 2)}
    for name, (batch, accumulation, processes) in runs.items():
        flags = [*train_flags, "--output_dir", tmp_path / name, "--max_grad_norm", 1000]
        flags += ["--per_device_train_batch_size", batch, "--gradient_accumulation_steps", accumulation]
        # Batches by length would group micro-batches otherwise.
        flags += ["--train_sampling_strategy", "random", "--optim", "sgd", "--learning_rate", 0.1]
        if processes == 1:
            call("train", *flags, monkeypatch=monkeypatch)
        else:
            ddp = ["--config_file", "configs/accelerate/ddp.yaml", "--num_processes", processes]
            said = succeed(*LAUNCH, *ddp, "scripts/train.py", *flags)
            assert said.count("Member written") == 1
    for name, (_, _, processes) in runs.items():
        facts = read_member(tmp_path / name).training
        assert facts["world_size"] == processes
        assert facts["metrics"]["train_loss"] == pytest.approx(
            read_member(tmp_path / "1x8").training["metrics"]["train_loss"], abs=1e-5
        )
        assert compare_members(tmp_path / name, tmp_path / "1x8") <= 1e-5
    assert read_member(tmp_path / "2x4").training["launch"] == {
        "distributed_type": "MULTI_CPU",
        "wrapped_as": "DistributedDataParallel",
    }


def test_training_fits_a_visible_rule_and_predict_reproduces_its_evaluation(bases, tmp_path, monkeypatch):
    """Labels, orientation and pooling end to end: "the answer that says yes wins" is learned, read either way.

    The Trainer's evaluation and predict.py must agree, else they read in different precision or order."""
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
        flags = ["--base", bases["8bit"].folder, "--orientation", orientation, "--max_length", 96]
        flags += ["--train_file", tmp_path / "train.parquet", "--eval_file", tmp_path / "test.parquet"]
        flags += ["--freeze_layers", 0, "--num_train_epochs", 3, "--learning_rate", 3e-3]
        call("train", *flags, "--output_dir", tmp_path / "{orientation}", monkeypatch=monkeypatch)
        trained = read_member(tmp_path / orientation).training["metrics"]
        assert trained["eval_accuracy"] >= 0.95

        judge = ["--judge", tmp_path / orientation, "--battles", tmp_path / "test.parquet"]
        call("predict", *judge, "--output_dir", tmp_path / f"out-{orientation}", monkeypatch=monkeypatch)
        p_a = pd.read_parquet(tmp_path / f"out-{orientation}" / "predictions.parquet")["p_a"]
        truth = np.array([row["winner"] == "model_a" for row in rows[128:]])
        assert ((p_a >= 0.5) == truth).mean() == pytest.approx(trained["eval_accuracy"])
        log_loss = -np.log(np.where(truth, p_a, 1 - p_a)).mean()
        assert log_loss == pytest.approx(trained["eval_log_loss"], abs=2e-3)


def test_processes_predict_the_same_files(members, tmp_path, monkeypatch):
    """Law 1: two processes, one of which has a batch fewer, write what one writes."""
    battles = DEMO_DATA / "demo_test.jsonl"
    flags = ["--battles", battles, "--judge", *members.values(), "--tokens_per_batch", 3000]
    call("predict", *flags, "--output_dir", tmp_path / "one", monkeypatch=monkeypatch)
    ddp = ["--config_file", "configs/accelerate/ddp.yaml", "--num_processes", 2]
    said = succeed(*LAUNCH, *ddp, "scripts/predict.py", *flags, "--output_dir", tmp_path / "two")
    assert said.count("Written: ") == 1
    check_outputs(tmp_path / "two", battles)
    one, two = (pd.read_parquet(tmp_path / name / "predictions.parquet") for name in ("one", "two"))
    assert one["id"].equals(two["id"]) and np.abs(one["p_a"] - two["p_a"]).max() <= 1e-6


def test_a_reading_that_dies_leaves_no_result(members, tmp_path, monkeypatch):
    """Seed fault 3: its second pass died unnoticed, and the first one's file was read twice, every p a half."""
    compute, readings = inference.predict_battles, []

    def fail_second(*arguments, **options):
        readings.append(options["name"])
        if len(readings) == 2:
            raise RuntimeError("out of memory")
        return compute(*arguments, **options)

    monkeypatch.setattr(judge, "predict_battles", fail_second)
    flags = ["--battles", DEMO_DATA / "demo_test.jsonl", "--judge", *members.values(), "--output_dir", tmp_path / "out"]
    with pytest.raises(RuntimeError, match="out of memory"):
        call("predict", *flags, monkeypatch=monkeypatch)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".bothways-progress"]


# --- mistakes ---------------------------------------------------------------------------------------------------------


def fail(verb, *flags, monkeypatch, caplog) -> str:
    """The one line that a mistake is answered with; exit code 2."""
    with pytest.raises(SystemExit) as stop:
        call(verb, *flags, monkeypatch=monkeypatch)
    assert stop.value.code == 2
    return caplog.messages[-1]


def test_the_bare_commands_say_what_to_run_first(tmp_path):
    """In a clone where the demo has not run: exit code 2, the way out, and nothing written."""
    (tmp_path / "modeling").mkdir()
    (tmp_path / "modeling" / "data").symlink_to(DEMO_DATA)
    scripts = REPOSITORY / "scripts"
    for command in ([*LAUNCH, scripts / "train.py", "--orientation", "ba"], [sys.executable, scripts / "predict.py"]):
        done = run(*command, cwd=tmp_path)
        assert done.returncode != 0
        assert "run `make demo` first" in done.stderr
        assert [path.name for path in tmp_path.iterdir()] == ["modeling"]


def test_scripts_without_the_package_say_what_to_run(tmp_path):
    for verb in ("quantize", "train", "predict"):
        done = run(sys.executable, "-S", REPOSITORY / "scripts" / f"{verb}.py", cwd=tmp_path)
        assert done.returncode == 1 and "run `make install`" in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ([], "Expected --orientation; found neither flag nor YAML key. --orientation: Which answer"),
        (["--orientation", "abc"], "invalid choice: 'abc'"),
        (["--orientation", "ab", "--base", "nowhere/at/all"], "run `make demo` first"),
        (["--orientation", "ab", "--train_file", "none.jsonl"], "Battles file none.jsonl: expected a file; found none"),
        (["--orientation", "ab", "--train_file", "setup.cfg"], "expected a file ending in .parquet, .csv, .jsonl"),
        (["--orientation", "ab", "--output_dir", "configs"], "expected a new or empty folder"),
        (
            ["--orientation", "ab", "--fp16", "true", "--bf16", "false"],
            "launched with mixed precision fp16",
        ),
        (["--orientation", "ab", "--label_smoothing_factor", "0.1"], "--label_smoothing_factor: expected 0"),
        (["--orientation", "ab", "--push_to_hub", "true"], "--push_to_hub: the Trainer would upload its optimizer"),
        (["--orientation", "ab", "--max_length", "20"], "--max_length 20: expected"),
    ],
)
def test_train_answers_mistakes_with_one_line(flags, expected, bases, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(REPOSITORY)
    before = sorted((REPOSITORY / "configs").iterdir())
    base = [] if "--base" in flags else ["--base", bases["float32"].folder]
    output = [] if "--output_dir" in flags else ["--output_dir", tmp_path / "out"]
    assert expected in fail("train", *base, *output, *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert not any(tmp_path.iterdir()) and sorted((REPOSITORY / "configs").iterdir()) == before


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"winner": "model_c"}], "battle 'r0': winner must be one of model_a, model_b, tie; found 'model_c'"),
        ([{"response_a": " "}], "battle 'r0': prompt, response_a and response_b must not be null or blank"),
        ([{"prompt": None}], "battle 'r0': prompt, response_a and response_b must not be null or blank"),
        ([{}, {"id": "r0"}], "battle 'r0': an id must stand on 1 row"),
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


def test_quantize_merges_an_adapter_before_it_quantises(plain_backbone, members, tmp_path, monkeypatch):
    """The real command gives the base that merging in memory and loading in 8 bit gives, and not the unmerged one."""
    flags = ["--base", plain_backbone, "--quantization", "8bit", "--dtype", "float32"]
    call("quantize", *flags, "--output_dir", tmp_path / "plain", monkeypatch=monkeypatch)
    call(
        "quantize", *flags, "--merge_adapter", members["ab"], "--output_dir", tmp_path / "base", monkeypatch=monkeypatch
    )
    merge_adapter(load_base(find_base(str(plain_backbone)), dtype="float32"), str(members["ab"])).save_pretrained(
        tmp_path / "merged"
    )
    expected = load_base(find_base(str(tmp_path / "merged")), dtype="float32", quantization="8bit").eval()
    merged, plain = (load_base(find_base(str(tmp_path / name)), dtype="float32").eval() for name in ("base", "plain"))
    features, other, wanted = (m.model(**make_batch()).last_hidden_state for m in (merged, plain, expected))
    assert torch.equal(features, wanted) and not torch.allclose(other, wanted, atol=1e-2)
    names = {path.name for path in (tmp_path / "base").iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_quantize_leaves_nothing_behind_when_it_fails(bases, tmp_path, monkeypatch, caplog):
    """Here on a base that is quantised already."""
    flags = ["--base", bases["8bit"].folder, "--output_dir", tmp_path / "out"]
    said = fail("quantize", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected unquantised weights; found quantised ones" in said
    assert not any(tmp_path.iterdir())


def test_the_demo_recipe_names_the_packaged_weights():
    assert DEMO_BACKBONE in (REPOSITORY / "configs" / "demo" / "quantize.yaml").read_text()
