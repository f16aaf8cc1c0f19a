import re
import sys
from types import SimpleNamespace

import pytest
from accelerate import PartialState
from transformers import AutoConfig

from benchmarks.speed.gpu.models import GEMMA2_9B, build_config
from modeling.judging.member import read_member
from modeling.network.base import load_base
from modeling.network.footprint import MemoryPlan, build_network, count_weights
from modeling.network.lora import add_adapters
from modeling.training import setup
from modeling.training.memory import count_optimizer, plan_memory
from tests.helpers import SAMPLES, TRAINING, succeed


def plan(bases, base="8bit", **changes):
    config = AutoConfig.from_pretrained(bases[base].folder)
    options = {"dtype": "bfloat16", "r": 4, "freeze_layers": 0, "lengths": [64] * 2, "optim": "adamw_torch"}
    return plan_memory(config, **{**options, "device_type": "cuda", **changes}).parts


# On the tiny Gemma-2 (2 layers, hidden 64, intermediate 128, 4 x 16 query and 2 x 16 key heads), rank r adds per layer
# r x (64+64 [q] + 64+32 [k] + 64+32 [v] + 64+64 [o] + 64+128 [gate] + 64+128 [up] + 128+64 [down]) = 1024 r.
LORA = 2 * 1024 * 4
HEAD = 64 * 32 + 32 + 32 * 2 + 2


def test_what_is_trained_is_counted_exactly(bases):
    parts = plan(bases)
    assert parts["adapters and head"] == parts["gradients"] == 4 * (LORA + HEAD)
    assert parts["optimizer"] == 8 * (LORA + HEAD)
    assert plan(bases, freeze_layers=1)["gradients"] == 4 * (LORA // 2 + HEAD)
    assert "optimizer" not in plan(bases, optim="sgd")


@pytest.mark.parametrize(
    ("optim", "expected"),
    [
        ("adamw_torch_fused", 8 * 8192),
        ("sgd", 0),
        ("adamw_8bit", 2 * (8192 + 4 * 32)),
        ("paged_adamw_8bit", 2 * (8192 + 4 * 32)),
        ("lion_8bit", 8192 + 4 * 32),
        ("paged_lion_32bit", 4 * 8192),
        ("something_new", 8 * 8192),
    ],
)
def test_optimizers_are_counted_by_what_they_keep(optim, expected):
    assert count_optimizer(optim, 8192) == expected
    assert count_optimizer("adamw_8bit", 100) == 800  # too small for 8 bit


@pytest.mark.parametrize("base", ["float32", "bfloat16", "8bit", "4bit"])
def test_weights_are_those_of_the_loaded_base(bases, base):
    dtype = "float32" if base == "float32" else "bfloat16"
    config = AutoConfig.from_pretrained(bases[base].folder)
    counted = count_weights(build_network(config, dtype=dtype, r=4, freeze_layers=0))
    loaded = add_adapters(load_base(bases[base], dtype=dtype), r=4, alpha=4, dropout=0.0)
    assert counted == count_weights(loaded)
    frozen = sum(p.numel() * p.element_size() for p in loaded.parameters() if not p.requires_grad)
    assert frozen <= counted <= frozen * 1.1  # and the scales of quantised weights


def test_activations_grow_with_the_batch_and_shrink_with_checkpointing(bases):
    one, two, four = (plan(bases, lengths=[64] * size)["activations"] for size in (1, 2, 4))
    assert four - two == pytest.approx(2 * (two - one), rel=0.05)
    assert plan(bases, gradient_checkpointing=True)["activations"] < two
    assert plan(bases, dtype="float32")["activations"] > two


def test_only_kernels_that_store_scores_take_more_than_in_proportion_to_the_length(bases):
    """Plain matrix products keep tokens x tokens scores of each sequence; the fused kernels of a GPU do not."""
    for kernel, grows in (("packed_flex", False), ("packed_eager", True)):
        short, long = (plan(bases, kernel=kernel, lengths=[n])["activations"] for n in (256, 512))
        assert (long > 2.2 * short) == grows, kernel
    # Packed, each sequence attends to itself alone: two short ones keep half of the scores of a long one.
    assert plan(bases, kernel="packed_eager", lengths=[256] * 2)["activations"] < long


def test_processes_share_what_their_launcher_shares(bases):
    alone, ddp = plan(bases, "bfloat16"), plan(bases, "bfloat16", num_processes=4)
    trained = alone["gradients"]
    assert {name: size for name, size in ddp.items() if name != "buckets"} == alone and ddp["buckets"] == trained
    zero2 = plan(bases, "bfloat16", num_processes=4, zero_stage=2)
    assert zero2["gradients"] == trained // 4 and zero2["optimizer"] == alone["optimizer"] // 4
    assert zero2["base weights"] == alone["base weights"] and zero2["adapters and head"] == trained
    zero3 = plan(bases, "bfloat16", num_processes=4, zero_stage=3)
    assert zero3["base weights"] == pytest.approx(2 * alone["base weights"] / 4, rel=0.03)  # held in float32


def test_gemma2_9b_has_the_parameters_of_the_original():
    """SEED: 222,500,098 trainable, 216,072,192 of them LoRA and 6,427,906 head."""
    network = build_network(build_config(GEMMA2_9B), dtype="bfloat16", r=64, freeze_layers=0)
    trained = {name: p.numel() for name, p in network.named_parameters() if p.requires_grad}
    assert sum(trained.values()) == 222_500_098
    assert sum(size for name, size in trained.items() if "lora_" in name) == 216_072_192


def test_the_estimate_is_within_a_quarter_of_what_smollm2_takes(smollm_base, tmp_path):
    """The real command in a process of its own, on battles that are all longer than the cut."""
    lines = (SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines()[:8]
    long = [line.replace('"prompt": "', '"prompt": "' + "tell me more " * 400) for line in lines]
    (tmp_path / "long.jsonl").write_text("\n".join(long), encoding="utf-8")
    flags = [TRAINING, "--base", smollm_base.folder, "--train_file", tmp_path / "long.jsonl"]
    flags += ["--output_dir", tmp_path / "ab"]
    said = succeed(sys.executable, "scripts/train.py", *flags, "--orientation", "ab", "--max_steps", 3)
    estimated = float(re.search(r"^total +([\d.]+) GB", said, re.M)[1])
    measured = read_member(tmp_path / "ab").training["metrics"]["peak_memory_gb"]
    assert "8 x 384 tokens" in said
    assert estimated == pytest.approx(measured, rel=0.25)


@pytest.mark.parametrize(
    ("zero_stage", "checkpointing", "left_out"),
    [
        (0, False, []),
        (0, True, ["--gradient_checkpointing"]),
        (2, True, ["--gradient_checkpointing", "--tokens_per_batch"]),
        (3, True, ["--gradient_checkpointing", "--tokens_per_batch", "a base in 4 bit"]),
    ],
)
def test_a_plan_beyond_the_free_memory_is_warned_about_with_ways_out_that_are_open(
    zero_stage, checkpointing, left_out, monkeypatch, caplog
):
    ways = ["--gradient_accumulation_steps", "--tokens_per_batch", "--gradient_checkpointing", "a base in 4 bit"]
    run = SimpleNamespace(device=PartialState().device, gradient_checkpointing=checkpointing)
    planned = MemoryPlan({"process before": 2_000_000_000, "base weights": 3_000_000_000})
    monkeypatch.setattr(setup, "measure_free_memory", lambda device: 3_000_000_000)
    setup._compare_with_free(planned, run, zero_stage)
    assert caplog.messages == []  # what the process holds already is not taken twice
    monkeypatch.setattr(setup, "measure_free_memory", lambda device: 2_000_000_000)
    setup._compare_with_free(planned, run, zero_stage)
    (said,) = caplog.messages
    assert "more than the 4.0 GB that are free" in said
    assert [way for way in ways if way not in said] == sorted(left_out, key=ways.index)
