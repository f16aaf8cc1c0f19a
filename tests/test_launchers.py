"""configs/accelerate: each launcher runs what its file says, trains what one process trains, and refuses mistakes."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import yaml

from modeling.data.battles import load_battles
from modeling.judging.judge import Judge
from modeling.judging.member import read_member
from tests.helpers import LAUNCH, LAUNCHERS, REPOSITORY, SAMPLES, call, read_run, run, succeed

# distributed_type, ZeRO stage, and the class that wraps the Trainer's model
EXPECTED = {
    "ddp": ("MULTI_CPU", None, "DistributedDataParallel"),
    "zero2": ("DEEPSPEED", 2, "DeepSpeedEngine"),
    "zero3": ("DEEPSPEED", 3, "DeepSpeedEngine"),
}


def compare_runs(first: dict, second: dict) -> tuple[float, float]:
    """Largest difference between two runs' losses, step by step and in an evaluation, and between their weights."""
    losses = [
        [entry[name] for entry in run["history"] for name in ("loss", "eval_loss") if name in entry]
        for run in (first, second)
    ]
    assert len(losses[0]) == len(losses[1]) == 12  # ten steps, an evaluation in the middle and one at the end
    one, two = first["weights"], second["weights"]
    assert one.keys() == two.keys()
    return (
        np.abs(np.subtract(*losses)).max(),
        max((one[name] - two[name]).abs().max().item() for name in one),
    )


def test_accumulation_changes_neither_loss_nor_weights(build_training, launched, tmp_path, monkeypatch):
    """Law 5: 1 x 8 = 8 x 1. A loss scaled by the number of micro-batches would not even be close."""
    flags = ["--per_device_train_batch_size", 1, "--gradient_accumulation_steps", 8]
    call("train", *build_training("one", tmp_path / "ab"), *flags, monkeypatch=monkeypatch)
    loss, weight = compare_runs(read_run(tmp_path / "ab"), read_run(launched("one")))
    assert loss <= 1e-6 and weight <= 1e-6


@pytest.mark.parametrize("launcher", EXPECTED)
def test_a_launcher_trains_what_one_process_trains(launcher, launched):
    """Law 5: 2 processes x 4 = 1 x 8. The processes trained together, under the wrapper that the launcher asks for."""
    output = launched(launcher)
    facts = read_member(output).training
    distributed_type, stage, wrapper = EXPECTED[launcher]
    assert facts["launch"] == {
        "num_processes": 2,
        "distributed_type": distributed_type,
        "zero_stage": stage,
        "wrapped_as": wrapper,
    }
    alone = launched("one", "float32" if launcher == "zero3" else None)
    loss, weight = compare_runs(read_run(output), read_run(alone))
    assert loss <= 1e-6 and weight <= 1e-6
    # Law 1: each language is scored on its own battles, whichever process read them.
    tables = [json.loads((folder / "evaluation.json").read_text())["tables"]["language"] for folder in (output, alone)]
    assert len(tables[0]) == 18
    for here, there in zip(*tables, strict=True):
        assert here["name"] == there["name"]
        assert here["log_loss"]["value"] == pytest.approx(there["log_loss"]["value"], abs=1e-6)


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_adapter_and_head_are_saved_whole_under_each_launcher(launcher, launched):
    """Law 6: a loaded member has the log loss that the model had in the evaluation at the end of its training."""
    output = launched(launcher)
    weights = read_run(output)["weights"]
    assert sum(".score." in name for name in weights) == 4 and all(weight.numel() for weight in weights.values())
    battles = load_battles(SAMPLES / "test.jsonl")
    verdicts = Judge.from_pretrained(output, dtype="float32").predict(battles, readings="own")
    p = torch.tensor(verdicts[["p_a", "p_b"]].to_numpy())
    log_loss = -(torch.tensor(battles["label"]) * p.log()).sum(dim=1).mean().item()
    assert log_loss == pytest.approx(read_member(output).training["metrics"]["eval_log_loss"], abs=1e-6)


def test_two_machines_train_what_one_trains(build_training, launched, tmp_path):
    """multi_node.yaml with both machines on this one: two launchers with one process each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ["--config_file", "configs/accelerate/multi_node.yaml", "--num_processes", 2, "--main_process_port", port]
    command = [*LAUNCH, *flags, "--machine_rank"]
    script = ["scripts/train.py", *build_training("ddp", tmp_path / "ab")]
    with ThreadPoolExecutor(2) as machines:
        list(machines.map(lambda rank: succeed(*command, rank, *script, cold=True), (0, 1)))
    assert read_member(tmp_path / "ab").training["launch"]["num_processes"] == 2
    # Not 0: a machine's only process uses all of its cores, and sums over more threads differ in the last digit.
    loss, weight = compare_runs(read_run(tmp_path / "ab"), read_run(launched("ddp")))
    assert max(loss, weight) <= 1e-6


# --- settings that would silently run something else, or nothing ------------------------------------------------------


def fail(launcher: list, *flags) -> str:
    """What a launch that must fail says."""
    done = run(*LAUNCH, *launcher, "scripts/train.py", *flags, "--orientation", "ab")
    assert done.returncode != 0
    return done.stderr


def write_launcher(folder, **changes):
    """ddp.yaml with other fields."""
    fields = yaml.safe_load((REPOSITORY / "configs" / "accelerate" / "ddp.yaml").read_text()) | changes
    path = folder / "launcher.yaml"
    path.write_text(yaml.safe_dump(fields))
    return ["--config_file", path]


def test_an_unknown_launcher_field_is_an_error(tmp_path):
    assert "unknown keys (['num_procs'])" in fail(write_launcher(tmp_path, num_procs=2))


def test_zero3_refuses_a_quantised_base(build_training, tmp_path):
    said = fail(LAUNCHERS["zero3"], *build_training("zero3", tmp_path / "ab", "8bit"))
    assert "with ZeRO-3: expected unquantised weights; found quantised ones" in said and not any(tmp_path.iterdir())


def test_deepspeed_that_is_turned_off_is_an_error(build_training, tmp_path, monkeypatch):
    """With this variable accelerate silently trains without DeepSpeed."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "1")
    said = fail(LAUNCHERS["zero2"], *build_training("zero2", tmp_path / "ab"))
    assert "Launcher: expected DeepSpeed; found" in said and not (tmp_path / "ab").exists()


def test_processes_that_do_not_find_each_other_are_an_error(build_training, tmp_path):
    """With `use_cpu` only in the launcher's file, two runs of world size 1 would start, and both would exit with 0."""
    flags = [*build_training("ddp", tmp_path / "ab"), "--use_cpu", "false"]
    said = fail(write_launcher(tmp_path, use_cpu=True), *flags)
    assert "expected 2 processes that train together; found 1" in said and not (tmp_path / "ab").exists()


def test_more_processes_than_battles_are_an_error(build_training, tmp_path):
    file = tmp_path / "one.jsonl"
    file.write_text((SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines()[0], encoding="utf-8")
    said = fail(LAUNCHERS["ddp"], *build_training("ddp", tmp_path / "ab"), "--train_file", file)
    assert "--num_processes 2: expected a battle for each process; found 1 for training" in said


def test_each_launcher_says_its_command_and_when_to_choose_it():
    files = sorted((REPOSITORY / "configs" / "accelerate").glob("*.yaml"))
    assert [path.stem for path in files] == ["cpu", "ddp", "multi_node", "single_gpu", "zero2", "zero3"]
    for path in files:
        header = path.read_text(encoding="utf-8")
        assert header.startswith("# accelerate launch --config_file configs/accelerate/" + path.name)
        assert yaml.safe_load(header)["mixed_precision"] == "no"
