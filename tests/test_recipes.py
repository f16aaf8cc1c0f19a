"""Every recipe but the demo's, run by the real scripts on small random weights of its architecture."""

import itertools
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from bitsandbytes.optim.optimizer import Optimizer2State
from safetensors.torch import load_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma2ForSequenceClassification,
    Gemma3TextConfig,
    LlamaConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP
from transformers.models.qwen2.modeling_qwen2 import Qwen2MLP

from modeling.judging.member import read_member
from modeling.network.base import find_base, load_base
from modeling.network.classifier import find_family
from modeling.network.lora import LORA_MODULES, add_adapters
from modeling.runtime.packages import WEIGHTS
from tests.helpers import REPOSITORY, SAMPLES, SMALL, call, find_native_dtype

CONFIGS = REPOSITORY / "configs"
GEMMA_9B = {"hidden_size": 3584, "intermediate_size": 14336, "num_hidden_layers": 42, "num_attention_heads": 16}
GEMMA_9B |= {"num_key_value_heads": 8, "head_dim": 256, "vocab_size": 256_000}
GEMMA_2B = {"hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26, "num_attention_heads": 8}
GEMMA_2B |= {"num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256_000}
QWEN_7B = {"hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28}
QWEN_7B |= {"num_key_value_heads": 4, "vocab_size": 152_064}
# The base's config and sizes, the class of its checkpoint, and how its tokenizer's special tokens differ.
BACKBONES = {
    "gemma2-9b": (Gemma2Config, GEMMA_9B, Gemma2ForCausalLM, {}),
    "lmsys": (Gemma2Config, GEMMA_9B, Gemma2ForCausalLM, {}),
    "gemma2-2b": (Gemma2Config, GEMMA_2B, Gemma2ForCausalLM, {}),
    "qwen2.5-7b": (Qwen2Config, QWEN_7B, Qwen2ForCausalLM, {"bos_token": None}),
    "r1-distill-qwen-7b": (Qwen2Config, QWEN_7B, Qwen2ForCausalLM, {"pad_token": "<eos>"}),
    "fsfairx-gemma2-rm": (Gemma2Config, GEMMA_9B, Gemma2ForSequenceClassification, {}),
}


# Recipes on weights of installed packages, for a CPU: the base's config, and its number of layers.
PACKAGED = {"gemma3-270m": (Gemma3TextConfig, 18), "smollm2-135m": (LlamaConfig, 30)}


def read_recipe(folder: str, verb: str) -> dict:
    return yaml.safe_load((CONFIGS / folder / f"{verb}.yaml").read_text(encoding="utf-8"))


def read_header(folder: str, verb: str) -> str:
    """The comment at the top of a recipe, as one line."""
    lines = (CONFIGS / folder / f"{verb}.yaml").read_text(encoding="utf-8").splitlines()
    header = itertools.takewhile(lambda line: line.startswith("#"), lines)
    return " ".join(line.removeprefix("#").strip() for line in header)


def test_every_recipe_is_tested_here():
    folders = {path.name for path in CONFIGS.iterdir() if path.is_dir()}
    assert folders == {*BACKBONES, *PACKAGED, "demo", "accelerate", "study"}


pytestmark = pytest.mark.usefixtures("quick")


@pytest.fixture
def observed(monkeypatch) -> dict:
    """Counts the MLPs that training computes, and collects the types of the optimizer's state for matrices of 4,096
    numbers or more (bitsandbytes keeps the state of smaller ones in float32)."""
    found = {"mlps": 0, "states": set()}
    for kind in (Gemma2MLP, Qwen2MLP):  # not the layer: checkpointing wraps its forward

        def count(self, hidden, forward=kind.forward):
            found["mlps"] += self.training and not isinstance(hidden, FakeTensor)  # the memory plan computes fake ones
            return forward(self, hidden)

        monkeypatch.setattr(kind, "forward", count)
    update = Optimizer2State.update_step

    def look(self, group, parameter, *indices):
        update(self, group, parameter, *indices)
        if parameter.numel() >= 4096:
            found["states"] |= {self.state[parameter][name].dtype for name in ("state1", "state2")}

    monkeypatch.setattr(Optimizer2State, "update_step", look)
    return found


def write_backbone(folder: Path, recipe: str, tiny: Path) -> None:
    """Writes random weights of the recipe's architecture with 2 layers, as they would come from the Hub."""
    config, _, checkpoint, special = BACKBONES[recipe]
    set_seed(0)
    # initializer_range well above the default, so that different battles give visibly different logits.
    settings = config(**SMALL, initializer_range=0.3, eos_token_id=1)
    if checkpoint is Gemma2ForSequenceClassification:
        settings.num_labels = 1
    checkpoint(settings).save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    tokenizer.save_pretrained(folder)


# gemma2-2b differs from gemma2-9b in sizes alone.
@pytest.mark.parametrize(
    "recipe", [pytest.param(name, marks=[pytest.mark.slow] * (name == "gemma2-2b")) for name in BACKBONES]
)
def test_a_recipe_gives_a_member_that_judges(recipe, plain_backbone, observed, tmp_path, monkeypatch):
    """quantize, 3 steps of train, predict: all settings but paths and battle length are the recipe's."""
    paths = {verb: CONFIGS / recipe / f"{verb}.yaml" for verb in ("quantize", "train", "predict")}
    settings = read_recipe(recipe, "train")
    write_backbone(tmp_path / "backbone", recipe, plain_backbone)
    flags = ["--base", tmp_path / "backbone", "--output_dir", tmp_path / "base"]
    call("quantize", paths["quantize"], *flags, monkeypatch=monkeypatch)

    flags = ["--base", tmp_path / "base", "--train_file", SAMPLES / "train.jsonl", "--orientation", "ab"]
    flags += ["--output_dir", tmp_path / "{orientation}", "--max_steps", 3, "--max_length", 96]
    call("train", paths["train"], *flags, monkeypatch=monkeypatch)
    check_member(recipe, tmp_path / "ab", tmp_path / "base")
    micro_batches = 3 * settings["gradient_accumulation_steps"]
    assert settings["gradient_checkpointing"], "no recipe of this size fits a GPU without"
    assert observed["mlps"] == 2 * SMALL["num_hidden_layers"] * micro_batches  # forward, and again in backward
    assert settings["optim"] == "adamw_8bit" and observed["states"] == {torch.uint8}
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 16

    lines = (SAMPLES / "test.jsonl").read_text(encoding="utf-8").splitlines()[:6]
    (tmp_path / "battles.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    flags = ["--battles", tmp_path / "battles.jsonl", "--judge", tmp_path / "ab", "--output_dir", tmp_path / "out"]
    call("predict", paths["predict"], *flags, monkeypatch=monkeypatch)
    p_a = pd.read_parquet(tmp_path / "out" / "predictions.parquet")["p_a"]
    assert (p_a - 0.5).abs().min() > 1e-5 and p_a.std() > 1e-3 and p_a.nunique() == 6


def check_member(recipe: str, member: Path, base: Path) -> None:
    """All seven projections of both layers have trained adapters; head and tokenizer ids are the recipe's."""
    tensors = load_file(member / "adapter_model.safetensors")
    rank = read_recipe(recipe, "train")["lora_r"]
    found = {}
    for name, value in tensors.items():
        if match := re.search(r"layers\.(\d+)\.\w+\.(\w+)\.lora_(A|B)\.", name):
            found[match.groups()] = value
    assert found.keys() == {(layer, name, half) for layer in "01" for name in LORA_MODULES for half in "AB"}
    assert all(value.shape[0 if half == "A" else 1] == rank for (_, _, half), value in found.items())
    assert all(value.any() for (_, _, half), value in found.items() if half == "B")  # they begin at 0

    width = read_recipe(recipe, "quantize")["head_hidden_size"]
    weights = {name.split("score.")[1]: tuple(value.shape) for name, value in tensors.items() if "score" in name}
    labels = read_recipe(recipe, "quantize").get("num_labels", 2)
    linear = {"out.weight": (labels, 64), "out.bias": (labels,)}
    mlp = {"dense.weight": (width, 64), "dense.bias": (width,), "out.weight": (labels, width), "out.bias": (labels,)}
    assert weights == (mlp if width else linear) and bool(width) == (recipe != "r1-distill-qwen-7b")

    facts = read_member(member)
    assert len(facts.labels) == labels
    assert facts.head["head_hidden_size"] == width and facts.dtype == find_native_dtype(base)
    expected = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0}
    expected |= {"bos_token_id": None} if recipe == "qwen2.5-7b" else {}
    expected |= {"pad_token_id": 1} if recipe == "r1-distill-qwen-7b" else {}
    assert {name: facts.encoding[name] for name in expected} == expected
    model = load_base(find_base(str(base)), dtype="bfloat16")
    assert model.config.quantization_config.load_in_8bit and model.config.model_type.endswith("_preference")


@pytest.mark.parametrize("recipe", PACKAGED)
def test_a_recipe_for_packaged_weights_gives_a_member_that_judges(recipe, plain_backbone, tmp_path, monkeypatch):
    """2 steps of train, predict, on random weights with as many layers: all settings but paths are the recipe's."""
    config, layers = PACKAGED[recipe]
    set_seed(0)
    settings = config(**(SMALL | {"num_hidden_layers": layers}), initializer_range=0.3, eos_token_id=1)
    AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "backbone")
    AutoTokenizer.from_pretrained(plain_backbone).save_pretrained(tmp_path / "backbone")
    paths = {verb: CONFIGS / recipe / f"{verb}.yaml" for verb in ("train", "predict")}

    flags = ["--base", tmp_path / "backbone", "--train_file", SAMPLES / "train.jsonl"]
    flags += ["--output_dir", tmp_path / "{orientation}", "--max_steps", 2]
    call("train", paths["train"], *flags, monkeypatch=monkeypatch)
    train = read_recipe(recipe, "train")
    names = " ".join(load_file(tmp_path / "both" / "adapter_model.safetensors"))
    trained = {int(number) for number in re.findall(r"layers\.(\d+)\.", names)}
    assert trained == set(range(train["freeze_layers"], layers))
    said = f"of {layers} layers get" if train["freeze_layers"] else f"on all {layers} layers"
    assert said in (CONFIGS / recipe / "train.yaml").read_text(encoding="utf-8")
    assert not (tmp_path / "both" / "tokenizer.json").exists()

    flags = ["--battles", SAMPLES / "test.jsonl", "--judge", tmp_path / "both", "--output_dir", tmp_path / "out"]
    call("predict", paths["predict"], *flags, monkeypatch=monkeypatch)
    columns = pd.read_parquet(tmp_path / "out" / "predictions.parquet")
    assert {"p_a_both_ab", "p_a_both_ba"} <= set(columns) and columns["p_a"].std() > 1e-3


@pytest.mark.parametrize("recipe", PACKAGED)
def test_a_recipe_for_packaged_weights_names_them(recipe):
    for verb in ("train", "predict"):
        assert f"scripts/{verb}.py configs/{recipe}/{verb}.yaml" in read_header(recipe, verb)
    assert read_recipe(recipe, "train")["base"] in WEIGHTS
    assert read_recipe(recipe, "predict")["judge"] == [f"outputs/{recipe}/both"]


# --- the recipes' comments --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", BACKBONES)
@pytest.mark.parametrize("verb", ["quantize", "train", "predict"])
def test_a_header_is_the_command_and_the_files_belong_together(recipe, verb):
    assert f"scripts/{verb}.py configs/{recipe}/{verb}.yaml" in read_header(recipe, verb).replace("\\ ", "")
    values = read_recipe(recipe, verb)
    folder = f"outputs/{recipe}"
    expected = {
        "quantize": {"output_dir": f"{folder}/base", "quantization": "8bit"},
        "train": {"base": f"{folder}/base", "output_dir": f"{folder}/{{orientation}}"},
        "predict": {"judge": [f"{folder}/ab", f"{folder}/ba"], "output_dir": f"{folder}/predictions"},
    }[verb]
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize("recipe", BACKBONES)
def test_the_numbers_in_the_headers_are_those_of_the_full_size(recipe):
    """Counts on the meta device: trainable parameters, and the base's bytes in bf16 and in 8 bit, where embeddings and
    norms stay in bf16."""
    config, sizes, _, _ = BACKBONES[recipe]
    width = read_recipe(recipe, "quantize")["head_hidden_size"]
    assert width in (0, sizes["hidden_size"] // 2)
    family = find_family(config.model_type)
    labels = {"num_labels": read_recipe(recipe, "quantize").get("num_labels", 2)}
    plain = {**config(**sizes).to_dict(), "model_type": family.config_class.model_type}
    with torch.device("meta"):
        model = family(family.config_class.from_dict({**plain, **labels, "head_hidden_size": width}))
        body, head = (sum(p.numel() for p in part.parameters()) for part in (model.model, model.score))
        linears = [m for m in model.model.modules() if isinstance(m, nn.Linear)]
        eight = 2 * body - sum(m.weight.numel() for m in linears) + 4 * head
        trainable = add_adapters(model, r=64, alpha=4, dropout=0.05).get_nb_trainable_parameters()[0]
    train, quantize = read_header(recipe, "train"), read_header(recipe, "quantize")
    assert f"{trainable:,} trainable parameters: {trainable - head:,} of the adapter and {head:,} of the" in train
    for pattern, size in (
        (r"([\d.]+) GB of GPU memory", 2 * body + 4 * head),
        (r"([\d.]+) GB (?:afterwards|of the quantised one)", eight),
        (r"([\d.]+) GB for the base", eight),
    ):
        for number in re.findall(pattern, f"{train} {quantize}"):
            assert float(number) == pytest.approx(size / 1e9, abs=0.06), pattern
