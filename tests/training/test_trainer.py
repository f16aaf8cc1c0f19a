import json
import re
import shutil
from dataclasses import dataclass, fields

import pytest
import torch
from datasets import Dataset
from transformers import TrainingArguments

from modeling.encoding.collator import PackedCollator
from modeling.judging.member import read_member
from modeling.network.base import load_base
from modeling.network.lora import add_adapters
from modeling.settings.flags import REFUSED_FLAGS
from modeling.settings.train_arguments import TrainArguments
from modeling.training import setup
from modeling.training.trainer import (
    REPORTING,
    EpochSampler,
    PreferenceTrainer,
    compute_train_loss,
    describe_settings,
)
from tests.helpers import SAMPLES, call, fail, read_run


def build_trainer(bases, folder, battles=16, base="float32", tokens=None, dropout=0.0, **options):
    own = {name: options.pop(name) for name in ("head_learning_rate",) if name in options}
    model = add_adapters(load_base(bases[base], dtype="float32", head_dropout=dropout), r=4, alpha=4, dropout=dropout)
    rows = [
        {"input_ids": [2, *range(5, 6 + n % 7), 1], "label": [n % 2, 1 - n % 2], "length": 3 + n % 7}
        for n in range(battles)
    ]
    training = TrainingArguments(folder, use_cpu=True, remove_unused_columns=False, label_names=["labels"], **options)
    data = Dataset.from_list(rows)
    own |= {"data_collator": PackedCollator(tokens)}
    return PreferenceTrainer(run={}, model=model, args=training, train_dataset=data, eval_dataset=data, **own)


# --- the order of battles ---------------------------------------------------------------------------------------------


def test_an_epochs_order_depends_on_seed_and_epoch_alone():
    """Not on what other random numbers were drawn before: those differ between processes and after a restart."""
    lengths = [n % 13 for n in range(64)]
    for group_size in (None, 8):
        orders = {}
        for seed, epoch in ((0, 0), (0, 1), (1, 0)):
            sampler = EpochSampler(lengths, group_size, seed)
            sampler.epoch = epoch
            orders[seed, epoch] = list(sampler)
            torch.rand(3)
            assert list(sampler) == orders[seed, epoch] and sorted(orders[seed, epoch]) == list(range(64))
        assert orders[0, 0] != orders[0, 1] != orders[1, 0]


@pytest.mark.parametrize("group_size", [None, 8])
def test_battles_of_one_unit_come_one_after_the_other(group_size):
    """In every epoch each battle once; without units the order is what it was before there were any."""
    lengths = [n % 13 for n in range(64)]
    units = [n // 2 if n < 40 else n for n in range(64)]
    orders = []
    for epoch in (0, 1):
        sampler = EpochSampler(lengths, group_size, 0, units)
        sampler.epoch = epoch
        orders.append(list(sampler))
        places = {row: place for place, row in enumerate(orders[-1])}
        assert sorted(orders[-1]) == list(range(64))
        assert all(places[n + 1] == places[n] + 1 for n in range(0, 40, 2))
    assert orders[0] != orders[1]
    assert list(EpochSampler(lengths, group_size, 0)) == list(EpochSampler(lengths, group_size, 0, range(64)))


def test_groups_are_of_like_length():
    lengths = [n % 61 for n in range(640)]
    spread = {}
    for group_size in (8, None):
        order = list(EpochSampler(lengths, group_size, seed=0))
        batches = [[lengths[n] for n in order[start : start + 8]] for start in range(0, 640, 8)]
        spread[group_size] = sum(max(batch) - min(batch) for batch in batches)
    assert spread[8] < spread[None] / 4


@pytest.mark.parametrize("tokens", [1, 12, 10**6])
def test_parts_of_a_budget_of_tokens_teach_what_the_whole_batch_does(bases, tmp_path, tokens):
    """Law 5 with --tokens_per_batch: which battles share a step stays, and so do loss and weights."""
    found = {}
    for budget in (None, tokens):
        torch.manual_seed(0)
        options = {"learning_rate": 1e-2, "max_steps": 3, "save_strategy": "no", "gradient_accumulation_steps": 2}
        options |= {"per_device_train_batch_size": 5, "optim": "sgd", "logging_strategy": "no"}
        trainer = build_trainer(bases, tmp_path, tokens=budget, **options)
        parts = trainer.data_collator(list(trainer.train_dataset)[:5])["parts"]
        assert len(parts) == {1: 5, 12: 3}.get(budget, 1) and sum(part["share"] for part in parts) == pytest.approx(1)
        loss = trainer.train().training_loss
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        found[budget] = loss, weights
    assert found[tokens][0] == pytest.approx(found[None][0], abs=1e-6)
    for name, weight in found[None][1].items():
        torch.testing.assert_close(found[tokens][1][name], weight, rtol=0, atol=1e-6, msg=name)


def test_an_evaluation_measures_the_model_and_does_not_disturb_its_training(bases, tmp_path):
    """The loss is the mean of each battle's own, alone and without dropout; the losses and weights of the training,
    with dropout, are those of a training without evaluations."""
    found = {}
    for strategy in ("no", "steps"):
        torch.manual_seed(0)
        options = {
            "eval_strategy": strategy,
            "eval_steps": 1,
            "max_steps": 3,
            "logging_steps": 1,
            "save_strategy": "no",
        }
        trainer = build_trainer(bases, tmp_path, base="8bit", dropout=0.3, learning_rate=1e-2, **options)
        trainer.train()
        history = trainer.state.log_history
        losses = [entry["loss"] for entry in history if "loss" in entry]
        weights = {n: p.detach().clone() for n, p in trainer.model.named_parameters() if p.requires_grad}
        found[strategy] = losses, weights
    assert len({entry["eval_loss"] for entry in history if "eval_loss" in entry}) == 3
    assert found["no"][0] == found["steps"][0] and len(losses) == 3
    assert all(torch.equal(weight, found["no"][1][name]) for name, weight in found["steps"][1].items())
    metrics = trainer.evaluate()
    alone = []
    with torch.no_grad():
        for row in trainer.eval_dataset:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor([row["label"]], dtype=torch.float32)
            alone.append(trainer.model(input_ids=ids, labels=labels).loss.item())
    assert metrics["eval_loss"] == pytest.approx(sum(alone) / len(alone), abs=2e-3)  # 8 bit depends on its neighbours
    assert trainer.eval_probabilities.shape == (16, 1, 2) and metrics["eval_samples_per_second"] > 0


# --- the head's learning rate, labels, memory savers ------------------------------------------------------------------


@pytest.mark.parametrize("optim", ["adamw_torch", "adamw_8bit", "sgd"])
def test_the_head_learns_at_its_own_rate(bases, tmp_path, optim):
    trainer = build_trainer(bases, tmp_path, optim=optim, learning_rate=1e-3, head_learning_rate=7e-3, weight_decay=0.1)
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    rates = {
        names[id(p)]: (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
    }
    assert rates.keys() == {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    assert {rate for name, (rate, _) in rates.items() if "lora_" in name} == {1e-3}
    assert {rate for name, (rate, _) in rates.items() if ".score." in name} == {7e-3}
    assert {decay for name, (_, decay) in rates.items() if name.endswith("bias")} == {0.0}
    assert {decay for name, (_, decay) in rates.items() if name.endswith("weight")} == {0.1}


def test_the_heads_rate_decides_its_first_step(bases, tmp_path):
    """Plain SGD: the head moves 7 times as far as with the common rate, the adapters as far."""
    moved = {}
    for rate in (None, 7.0):
        torch.manual_seed(0)
        options = {"optim": "sgd", "learning_rate": 1.0, "max_steps": 1, "max_grad_norm": 0, "save_strategy": "no"}
        trainer = build_trainer(bases, tmp_path, head_learning_rate=rate, lr_scheduler_type="constant", **options)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        moved[rate] = {name: trainer.model.get_parameter(name) - weight for name, weight in before.items()}
    for name, step in moved[None].items():
        assert torch.allclose(moved[7.0][name], step * (7 if ".score." in name else 1), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("base", ["float32", "8bit"])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_changes_memory_and_nothing_else(bases, tmp_path, base, use_reentrant):
    gradients = {}
    for checkpointing in (False, True):
        torch.manual_seed(0)
        options = {"gradient_checkpointing": checkpointing, "max_steps": 1, "save_strategy": "no", "max_grad_norm": 0}
        if checkpointing:
            options["gradient_checkpointing_kwargs"] = {"use_reentrant": use_reentrant}
        trainer = build_trainer(bases, tmp_path, base=base, optim="sgd", learning_rate=1.0, **options)
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
        trainer.train()
        gradients[checkpointing] = {name: before[name] - trainer.model.get_parameter(name) for name in before}
        assert trainer.model.base_model.model.is_gradient_checkpointing == checkpointing
    for name, gradient in gradients[False].items():
        assert torch.allclose(gradients[True][name], gradient, atol=1e-6), name
    assert any(gradient.abs().max() > 1e-4 for name, gradient in gradients[False].items() if "lora_" in name)


# --- what decides a run's numbers -------------------------------------------------------------------------------------


@dataclass
class Own:
    lora_r: int = 4
    train_file: str = "a.jsonl"
    dry_run: bool = False


def test_a_run_is_known_by_what_decides_its_numbers_and_nothing_else(tmp_path):
    def describe(own=None, label=1.0, **options):
        rows = Dataset.from_list([{"input_ids": [2, 5, 1], "label": [label, 1 - label]}])
        return describe_settings(own or Own(), TrainingArguments(tmp_path, use_cpu=True, **options), rows, base="abc")

    plain = describe()
    assert json.loads(json.dumps(plain)) == plain
    for same in (
        describe(Own(train_file="moved.jsonl", dry_run=True)),
        describe(logging_steps=7, save_steps=3, save_total_limit=2, report_to="none", run_name="x", eval_strategy="no"),
        describe(disable_tqdm=True, dataloader_num_workers=2, resume_from_checkpoint="auto"),
    ):
        assert same == plain
    for other in (
        describe(Own(lora_r=8)),
        describe(label=0.5),
        describe(learning_rate=1e-3),
        describe(max_steps=5),
        describe(per_device_train_batch_size=2),
        describe(optim="sgd"),
        describe(seed=1),
        describe(lr_scheduler_type="cosine"),
        describe(gradient_accumulation_steps=2),
        describe(train_sampling_strategy="group_by_length"),
    ):
        assert other != plain


# Fields of TrainingArguments that decide a run's numbers.
DECIDING = {
    "per_device_train_batch_size", "num_train_epochs", "max_steps", "learning_rate", "lr_scheduler_type",
    "lr_scheduler_kwargs", "warmup_steps", "optim", "optim_args", "weight_decay", "adam_beta1", "adam_beta2",
    "adam_epsilon", "optim_target_modules", "gradient_accumulation_steps", "average_tokens_across_devices",
    "max_grad_norm", "label_smoothing_factor", "bf16", "fp16", "bf16_full_eval", "fp16_full_eval", "tf32",
    "activation_checkpointing", "activation_checkpointing_kwargs", "gradient_checkpointing",
    "gradient_checkpointing_kwargs",
    "use_liger_kernel", "liger_kernel_config", "use_cache", "torch_empty_cache_steps",
    "batch_eval_metrics", "full_determinism", "seed", "data_seed",
    "use_cpu", "accelerator_config", "parallelism_config", "dataloader_drop_last",
    "dataloader_multiprocessing_context", "dataloader_in_order", "remove_unused_columns", "label_names",
    "train_sampling_strategy", "length_column_name", "ddp_find_unused_parameters", "ddp_bucket_cap_mb",
    "ddp_broadcast_buffers", "ddp_static_graph", "ddp_backend", "fsdp", "fsdp_config", "deepspeed", "debug",
}  # fmt: skip


def test_each_field_of_the_trainers_arguments_is_known_to_decide_numbers_or_not():
    """A field that a newer transformers adds appears here: put it into REPORTING if it decides no number, or refuse it
    in REFUSED_FLAGS if it breaks a promise."""
    trainers, own = ({field.name for field in fields(kind)} for kind in (TrainingArguments, TrainArguments))
    refused = set(REFUSED_FLAGS)
    assert trainers - REPORTING - DECIDING - refused == set()
    assert set() == REPORTING & DECIDING == refused & REPORTING == refused & DECIDING
    assert refused <= trainers
    assert REPORTING & own == {"base", "train_file", "eval_file", "dry_run", "cache_frozen_gb", "output_dir"} & own


def test_the_training_loss_is_the_mean_over_all_steps_also_those_before_a_restart():
    history = [
        {"step": 3, "loss": 0.6},
        {"step": 3, "eval_loss": 9.0},
        {"step": 4, "loss": 1.0},
        {"step": 4, "runtime": 1},
    ]
    assert compute_train_loss(history) == pytest.approx((3 * 0.6 + 1.0) / 4)
    assert compute_train_loss([]) == 0


def test_a_changed_training_file_or_setting_stops_a_restart(build_training, tmp_path, monkeypatch, caplog):
    """The real command; the checkpoint it could have gone on from is still there."""
    flags = [*build_training("one", tmp_path / "ab"), "--max_steps", 2]
    call("train", *flags, monkeypatch=monkeypatch)
    said = fail("train", *flags, "--learning_rate", 1e-3, monkeypatch=monkeypatch, caplog=caplog)
    assert "learning_rate: 0.00015 there, 0.001 here. Give those settings to go on with it" in said
    lines = (SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines()
    (tmp_path / "fewer.jsonl").write_text("\n".join(lines[1:]), encoding="utf-8")
    said = fail("train", *flags, "--train_file", tmp_path / "fewer.jsonl", monkeypatch=monkeypatch, caplog=caplog)
    assert "train_battles: 72, " in said and " there, 71, " in said
    expected = read_run(tmp_path / "ab")
    call("train", *flags, "--resume_from_checkpoint", "no", monkeypatch=monkeypatch)
    assert all(torch.equal(read_run(tmp_path / "ab")["weights"][n], w) for n, w in expected["weights"].items())


@pytest.mark.parametrize("orientation", ["ab", "both"])
def test_states_of_frozen_layers_that_are_kept_change_no_loss(
    orientation, build_training, tmp_path, monkeypatch, caplog
):
    """On an 8-bit base, over three epochs, and nothing of them is left."""
    caplog.set_level("INFO")
    runs = {}
    for name, limit in (("kept", 4), ("computed", 0)):
        flags = [*build_training("one", tmp_path / name), "--orientation", orientation, "--freeze_layers", 1]
        more = ["--max_steps", 27, "--cache_frozen_gb", limit, "--eval_strategy", "no", "--save_steps", 27]
        call("train", *flags, *more, monkeypatch=monkeypatch)
        runs[name] = read_run(tmp_path / name)
        assert not list(tmp_path.rglob("frozen.npy"))
    said = "\n".join(caplog.messages)
    assert "the states of 1 of 2 layers are computed once" in said and "exceed --cache_frozen_gb 0" in said
    kept, computed = ([entry["loss"] for entry in run["history"] if "loss" in entry] for run in runs.values())
    assert len(kept) == 27 and kept == pytest.approx(computed, abs=1e-5)
    assert kept != [kept[0]] * 27


def test_a_run_that_keeps_states_resumes_bit_for_bit(build_training, tmp_path, monkeypatch):
    """Law 7: after its last checkpoints are gone, as after a kill, the same command gives the same weights and losses.

    The states are computed again."""
    flags = [*build_training("one", tmp_path / "ab"), "--freeze_layers", 1, "--max_steps", 20, "--eval_strategy", "no"]
    flags += ["--save_steps", 5, "--save_total_limit", 4]
    call("train", *flags, monkeypatch=monkeypatch)
    expected = read_run(tmp_path / "ab")
    for step in (15, 20):
        shutil.rmtree(tmp_path / "ab.checkpoints" / f"checkpoint-{step}")
    shutil.rmtree(tmp_path / "ab")
    call("train", *flags, monkeypatch=monkeypatch)
    found = read_run(tmp_path / "ab")
    assert found["history"] == expected["history"]
    assert all(torch.equal(found["weights"][name], value) for name, value in expected["weights"].items())


def test_made_counterfactual_pairs_are_one_more_source(build_training, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    flags = [*build_training("one", tmp_path / "ab"), "--max_steps", 1, "--eval_strategy", "no"]
    call("train", *flags, "--counterfactual_pairs", 10, monkeypatch=monkeypatch)
    said = "\n".join(caplog.messages)
    assert "Training on 92 battles" in said and re.search(r"made counterfactual pairs +all +20 +10 +10 +0", said)
    facts = read_member(tmp_path / "ab").training
    assert facts["counterfactual_pairs"] == 10 and facts["num_battles"] == 92


def test_no_states_are_kept_for_a_single_epoch(build_training, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO")
    flags = [*build_training("one", tmp_path / "ab"), "--freeze_layers", 1, "--max_steps", 9]
    call("train", *flags, monkeypatch=monkeypatch)
    assert "are computed once" not in "\n".join(caplog.messages)


def test_a_full_disk_for_the_states_is_one_line(build_training, tmp_path, monkeypatch, caplog):
    def run_out(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(setup, "FrozenStates", run_out)
    flags = [*build_training("one", tmp_path / "ab"), "--freeze_layers", 1, "--max_steps", 27]
    said = fail("train", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "found [Errno 28] No space left on device. Make room, or pass --cache_frozen_gb 0" in said


def test_nothing_written_names_this_machine(build_training, tmp_path, monkeypatch):
    """Law 12, for checkpoints too: the Trainer's own would hold its arguments and peft's the base's folder."""
    call("train", *build_training("one", tmp_path / "ab"), "--max_steps", 2, monkeypatch=monkeypatch)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"complete.json", "optimizer.pt", "member.json"} <= {path.name for path in files}
    for path in files:
        assert str(tmp_path.parent).encode() not in path.read_bytes(), path


def test_a_dry_run_says_what_the_run_needs_and_writes_nothing(build_training, tmp_path, monkeypatch, capsys):
    flags = [*build_training("one", tmp_path / "ab"), "--gradient_accumulation_steps", 2, "--max_steps", -1]
    call("train", *flags, "--num_train_epochs", 3, "--dry_run", "true", monkeypatch=monkeypatch)
    said = capsys.readouterr().out
    # 72 battles in micro-batches of 8: 9 an epoch, so 5 optimizer steps an epoch
    assert "a step: 16 battles = 8 on a device x 2 accumulated x 1 processes" in said
    assert "the run: 15 steps" in said and " tokens/s" in said and "peak measured in 3 steps" in said
    assert "total" in said and not any(tmp_path.iterdir())


def test_reports_go_to_the_trainers_own_integrations_under_a_telling_name(build_training, tmp_path, monkeypatch):
    """TensorBoard's files, really written; off by default."""
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    flags = [*build_training("one", tmp_path / "ab"), "--max_steps", 2, "--save_strategy", "no"]
    call("train", *flags, monkeypatch=monkeypatch)
    assert not (tmp_path / "board").exists()
    call("train", *flags, "--report_to", "tensorboard", monkeypatch=monkeypatch)
    written = b"".join(path.read_bytes() for path in (tmp_path / "board").rglob("events.*"))
    assert b"train/loss" in written and b'"run_name": "8bit-ab"' in written


def test_a_centred_head_gives_the_first_battles_even_odds(build_training, tmp_path, monkeypatch):
    """Without a step that moves it: the mean state gives the logits of a zero input."""
    flags = [*build_training("one", tmp_path / "ab"), "--max_steps", 1, "--learning_rate", 0]
    call("train", *flags, monkeypatch=monkeypatch)
    plain = read_run(tmp_path / "ab")["weights"]
    call("train", *flags, "--center_head", "true", "--output_dir", tmp_path / "centred", monkeypatch=monkeypatch)
    centred = read_run(tmp_path / "centred")["weights"]
    (bias,) = (name for name in plain if name.endswith("dense.bias"))
    assert plain[bias].abs().max() == 0 < centred[bias].abs().min()
    assert all(plain[name].equal(centred[name]) for name in plain if name != bias)
