"""Law 7: a command that is killed with SIGKILL and repeated leaves what an undisturbed run leaves, bit for bit.

`make test` kills one training, one rank of another and one prediction; `make crash` runs the rest (marker `crash`): 21
kills in training, under every launcher, and 20 in prediction.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from modeling.data.battles import DEMO_FOLDER
from modeling.training.checkpoints import SEAL
from tests.helpers import LAUNCH, LAUNCHERS, SAMPLES, read_run, run, start, succeed
from tests.warm import WarmProcess

# Settings whose state a restart must restore besides the plain run's: dropout, 8-bit optimizer state, accumulated
# gradients, bf16, batches by length, a new order in each epoch. 24 steps of 8 battles are nearly 3 epochs of the 72.
DEMANDING = ["--head_dropout", 0.1, "--lora_dropout", 0.1, "--optim", "adamw_8bit", "--dtype", "bfloat16"]
DEMANDING += ["--train_sampling_strategy", "group_by_length", "--gradient_accumulation_steps", 2]
DEMANDING += ["--per_device_train_batch_size", 2, "--max_steps", 24, "--save_steps", 4, "--logging_steps", 3]


@pytest.fixture(scope="module")
def undisturbed(build_training, launched, tmp_path_factory) -> Callable:
    """Results of a run that nobody kills, by launcher and settings; each is trained once."""
    made: dict[str, dict] = {}

    def make(launcher: str, demanding: bool) -> dict:
        if not demanding:
            return read_run(launched(launcher))
        if launcher not in made:
            output = tmp_path_factory.mktemp("undisturbed") / launcher
            succeed(*build_command(build_training, launcher, output, demanding))
            made[launcher] = read_run(output)
        return made[launcher]

    return make


def build_command(build_training: Callable, launcher: str, output: Path, demanding: bool) -> list:
    flags = [*build_training(launcher, output), *(DEMANDING if demanding else [])]
    return [*LAUNCH, *LAUNCHERS[launcher], "scripts/train.py", *flags]


def assert_same(found: dict, expected: dict) -> None:
    """Everything logged and the weights are equal, bit for bit."""
    assert found["history"] == expected["history"] and found["train_loss"] == expected["train_loss"]
    assert found["weights"].keys() == expected["weights"].keys()
    assert all(torch.equal(found["weights"][name], weight) for name, weight in expected["weights"].items())


def start_logged(command: list, log: Path) -> WarmProcess:
    with log.open("wb") as file:
        return start(*command, stdout=file, stderr=file)


def wait_for(process: WarmProcess, condition: Callable[[], bool]) -> bool:
    """Waits for a condition; whether it came true before the process ended."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.001)
    return False


def kill_at_random(command: list, log: Path, moment: Callable[[], bool], longest: float, rng: random.Random) -> bool:
    """Starts a command and kills all its processes at most `longest` seconds after `moment`; whether it still ran."""
    process = start_logged(command, log)
    running = wait_for(process, moment)
    if running:
        time.sleep(rng.uniform(0, longest))
        running = process.poll() is None
    if running:
        for rank in process.list_ranks():  # each is the leader of a session of its own, and would outlive the launcher
            os.kill(rank, signal.SIGKILL)
        process.kill()
    process.wait()
    assert running or process.returncode == 0, log.read_text()[-3000:]
    return running


def is_writing(checkpoints: Path) -> bool:
    """Whether a checkpoint is incomplete: still being written, or torn by a kill."""
    return any(not (path / SEAL).exists() for path in checkpoints.glob("checkpoint-*"))


@pytest.mark.parametrize(
    ("launcher", "kills", "demanding"),
    [
        ("one", 1, True),
        *(pytest.param(*case, True, marks=pytest.mark.crash) for case in (("one", 8), ("ddp", 6), ("zero2", 6))),
        pytest.param("zero3", 1, False, marks=pytest.mark.crash),
    ],
)
def test_a_training_that_is_killed_ends_as_if_it_had_not_been(
    launcher, kills, demanding, build_training, undisturbed, tmp_path
):
    """The first kill and every second one after it hit the writing of a checkpoint, the others any moment."""
    output, log, rng = tmp_path / "ab", tmp_path / "log", random.Random(kills)
    checkpoints = tmp_path / "ab.checkpoints"
    command = build_command(build_training, launcher, output, demanding)
    expected = undisturbed(launcher, demanding)
    done = 0
    for attempt in range(3 * kills):
        if attempt % 2 == 0:
            done += kill_at_random(command, log, lambda: is_writing(checkpoints), 0.01, rng)
        else:
            done += kill_at_random(command, log, lambda: b"'loss'" in log.read_bytes(), 1.0, rng)
        if done == kills:
            break
        if (output / "member.json").exists():  # it ended before it could be killed: start again from nothing
            assert_same(read_run(output), expected)
            shutil.rmtree(output)
            shutil.rmtree(checkpoints)
    assert done == kills
    succeed(*command)
    assert_same(read_run(output), expected)
    assert not is_writing(checkpoints)


def test_a_lost_process_ends_the_others_and_costs_nothing(build_training, undisturbed, tmp_path):
    """A rank is killed: the launch fails at once and says so, and the same command goes on from the checkpoint."""
    output, log = tmp_path / "ab", tmp_path / "log"
    command = build_command(build_training, "ddp", output, demanding=False)
    process = start_logged(command, log)
    sealed = tmp_path / "ab.checkpoints" / "checkpoint-2" / SEAL
    assert wait_for(process, sealed.exists), log.read_text()[-3000:]
    os.kill(process.list_ranks()[-1], signal.SIGKILL)
    assert process.wait(60) != 0 and "Signal 9 (SIGKILL)" in log.read_text()
    assert not (output / "member.json").exists()
    assert "going on from" in succeed(*command)
    assert_same(read_run(output), undisturbed("ddp", demanding=False))


@pytest.mark.parametrize(
    ("processes", "kills"), [(2, 1), *(pytest.param(count, 10, marks=pytest.mark.crash) for count in (1, 2))]
)
def test_a_prediction_that_is_killed_writes_the_same_bytes(processes, kills, members, tmp_path):
    flags = ["--battles", SAMPLES / "train.jsonl", "--judge", *members.values(), "--tokens_per_batch", 400]
    launch = [*LAUNCH, *LAUNCHERS["ddp"]] if processes == 2 else [sys.executable]
    command = [*launch, "scripts/predict.py", *flags, "--output_dir"]
    succeed(*command, tmp_path / "expected")
    rng, progress = random.Random(kills), tmp_path / "out" / ".bothways-progress"
    for _ in range(kills):
        moment = lambda: any(path.stat().st_size for path in progress.glob("*.jsonl"))  # noqa: E731
        kill_at_random([*command, tmp_path / "out"], tmp_path / "log", moment, 1.0, rng)
    succeed(*command, tmp_path / "out")
    for name in ("predictions.parquet", "submission.csv"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


@pytest.mark.parametrize(
    ("verb", "flags", "progress", "files"),
    [
        ("rank", ["--input", DEMO_FOLDER / "answers.jsonl"], "out/.bothways-rank-progress", ["rankings.parquet"]),
        (
            "select",
            ["--battles", SAMPLES / "train.jsonl", "--num_battles", 20],
            ".out.progress",
            ["selected.parquet", "battles.csv", "predictions.parquet"],
        ),
    ],
)
def test_rankings_and_choices_that_are_killed_are_the_same_bytes(verb, flags, progress, files, members, tmp_path):
    command = [sys.executable, f"scripts/{verb}.py", *flags, "--judge", *members.values(), "--tokens_per_batch", 400]
    succeed(*command, "--output_dir", tmp_path / "expected")
    moment = lambda: any(path.stat().st_size for path in (tmp_path / progress).glob("*.jsonl"))  # noqa: E731
    kill_at_random([*command, "--output_dir", tmp_path / "out"], tmp_path / "log", moment, 0.3, random.Random(0))
    assert not any((tmp_path / "out" / name).exists() for name in files)
    succeed(*command, "--output_dir", tmp_path / "out")
    for name in files:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "expected" / name).read_bytes()


# --- other faults of a checkpoint -------------------------------------------------------------------------------------


def test_a_full_disk_is_reported_and_costs_nothing(build_training, launched, tmp_path):
    """The disk, a tmpfs where we may mount one, is too small for the second checkpoint."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small disk needs root")
    try:
        command = [*LAUNCH, *LAUNCHERS["one"], "scripts/train.py", *build_training("one", disk / "ab")]
        done = run(*command)
        assert done.returncode != 0
        assert "expected to write it whole; found" in done.stderr and "MB are free there" in done.stderr
        assert "Traceback" not in done.stderr.split("expected to write it whole")[0]
        assert not is_writing(disk / "ab.checkpoints") and not (disk / "ab").exists()
        sealed = max((disk / "ab.checkpoints").iterdir(), key=lambda path: path.stat().st_mtime)
        subprocess.run(["mount", "-o", "remount,size=100m", disk], check=True)
        assert f"going on from {sealed}" in succeed(*command)
        assert_same(read_run(disk / "ab"), read_run(launched("one")))
    finally:
        subprocess.run(["umount", disk], check=True)
