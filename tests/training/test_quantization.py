"""scripts/quantize.py through the real command, on the tiny Gemma-2."""

import gc
import io
import json
import logging
import os
import re
import shutil
import weakref
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import Gemma2ForSequenceClassification, PreTrainedModel, Qwen2Config, Qwen2ForSequenceClassification

from modeling.judging.canaries import build_canary_encoder, load_canaries
from modeling.network import base as base_module
from modeling.network import precision
from modeling.network.base import BaseFiles, load_base, load_tokenizer
from modeling.network.lora import merge_adapter
from modeling.network.precision import set_dtype
from modeling.settings.arguments import QuantizeArguments
from modeling.training import quantization
from tests.helpers import SMALL, call, fail, make_batch

pytestmark = pytest.mark.usefixtures("quick")

QUANTIZATIONS = {
    "none": {"quantization": "none"},
    "8bit": {"quantization": "8bit"},
    "nf4": {"quantization": "4bit"},
    "fp4": {"quantization": "4bit", "bnb_4bit_quant_type": "fp4"},
    "nf4-double": {"quantization": "4bit", "bnb_4bit_use_double_quant": True},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, plain_backbone) -> dict[str, tuple[Path, str]]:
    """Per quantisation: the base that the command wrote for the tiny backbone, and what it logged.

    Computed in float32 on any machine, so that what is reported can be computed by hand."""
    found = {}
    for name, settings in QUANTIZATIONS.items():
        flags = [part for key, value in settings.items() for part in (f"--{key}", value)]
        folder = tmp_path_factory.mktemp("made") / name
        logger, said = logging.getLogger("bothways.quantize"), io.StringIO()
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(logger, "level", logging.INFO)
            monkeypatch.setattr(logger, "handlers", [logging.StreamHandler(said)])
            monkeypatch.setattr(precision, "_choose", lambda *_: ("float32", "float32", False))
            call("quantize", "--base", plain_backbone, *flags, "--output_dir", folder, monkeypatch=monkeypatch)
        found[name] = folder, said.getvalue()
    return found


def load_head(folder: Path) -> dict:
    tensors = load_file(folder / "model.safetensors")
    return {name.removeprefix("score."): value for name, value in tensors.items() if name.startswith("score.")}


# --- what is written --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_base_loads_to_the_logits_of_what_was_quantised(name, made, plain_backbone):
    """Law 6: the folder gives what quantising the backbone in memory gives with the same head."""
    folder, _ = made[name]
    quantised = load_base(BaseFiles(plain_backbone), dtype="bfloat16", **QUANTIZATIONS[name])
    quantised.score.load_state_dict(load_head(folder))
    loaded = load_base(BaseFiles(folder), dtype="bfloat16")
    features, expected = (model.model(**make_batch()).last_hidden_state for model in (loaded, quantised))
    assert torch.equal(features, expected)
    # Not equal: the head's float32 sums differ in their last digit with where in memory its weights lie.
    assert (loaded(**make_batch()).logits - quantised(**make_batch()).logits).abs().max() <= 1e-7
    names = {path.name for path in folder.iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


def test_the_flags_decide_how_it_is_quantised(made):
    """The seed's 8 bit, and three kinds of 4 bit that are not the same numbers; one head for all, from one seed."""
    configs = {name: json.loads((folder / "config.json").read_text()) for name, (folder, _) in made.items()}
    assert "quantization_config" not in configs["none"]
    eight = configs["8bit"]["quantization_config"]
    assert eight["load_in_8bit"] and not eight["llm_int8_has_fp16_weight"]
    assert (eight["llm_int8_threshold"], eight["llm_int8_skip_modules"]) == (6.0, ["score"])
    assert not eight["llm_int8_enable_fp32_cpu_offload"]
    fours = {name: configs[name]["quantization_config"] for name in ("nf4", "fp4", "nf4-double")}
    assert all(four["load_in_4bit"] and four["bnb_4bit_compute_dtype"] == "bfloat16" for four in fours.values())
    found = {name: (four["bnb_4bit_quant_type"], four["bnb_4bit_use_double_quant"]) for name, four in fours.items()}
    assert found == {"nf4": ("nf4", False), "fp4": ("fp4", False), "nf4-double": ("nf4", True)}
    logits = [load_base(BaseFiles(folder), dtype="bfloat16")(**make_batch()).logits for folder, _ in made.values()]
    assert not any(torch.equal(one, other) for n, one in enumerate(logits) for other in logits[:n])
    heads = [load_head(folder) for folder, _ in made.values()]
    assert all(torch.equal(head[name], heads[0][name]) for head in heads for name in heads[0])


# --- what is reported -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_the_reported_change_is_what_one_computes_by_hand(name, made, plain_backbone):
    """Unquantised weights against the saved base, with the very same head, battle by battle."""
    folder, log = made[name]
    unquantised = load_base(BaseFiles(plain_backbone), dtype="bfloat16")  # rounded, as it is when it is quantised
    unquantised.score.load_state_dict(load_head(folder))
    set_dtype(unquantised, "float32")
    saved = load_base(BaseFiles(folder), dtype="float32")
    encoder = build_canary_encoder(load_tokenizer(folder))
    encoded = encoder.encode(encoder.clean_battles(load_canaries()), "ab")
    logit = probability = largest = 0.0
    with torch.no_grad():
        for battle in encoded:
            ids = torch.tensor([battle["input_ids"]])
            before, after = (model.eval()(input_ids=ids).logits for model in (unquantised, saved))
            logit = max(logit, (after - before).abs().max().item())
            probability = max(probability, (after.softmax(-1) - before.softmax(-1)).abs().max().item())
            largest = max(largest, before.abs().max().item())
    pattern = r"8 canary battles.*change of a logit (\S+) \(largest logit (\S+)\), of a probability (\S+)"
    reported = [float(number) for number in re.search(pattern, log).groups()]
    assert reported == pytest.approx([logit, largest, probability], rel=0.005)
    assert (logit == 0) is (name == "none")


@pytest.mark.parametrize("name", ["none", "8bit", "nf4"])
def test_the_reported_sizes_are_those_of_memory_and_disk(name, made):
    """By hand, for 2 layers of hidden size 64: 14 projections, the embeddings, norms of bf16, a head of float32.

    8 bit adds a float32 scale per output row and a byte that names the layout; nf4 a float32 scale per block of 64
    weights, a table of 16 float32 values and a description of each matrix, whose length is bitsandbytes' affair.
    """
    folder, log = made[name]
    shapes = 2 * [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]
    projections, rows = sum(out * inside for out, inside in shapes), sum(out for out, _ in shapes)
    rest = 2 * (400 * 64 + 2 * 4 * 64 + 64) + 4 * (64 * 32 + 32 + 32 * 2 + 2)
    expected = {
        "none": 2 * projections,
        "8bit": projections + 4 * rows + len(shapes),
        "nf4": projections // 2 + 4 * (projections // 64) + len(shapes) * 4 * 16,
    }
    numbers = re.search(r"Weights: (\S+) bytes in bfloat16, (\S+) as \w+ \(\S+\); files: (\S+) bytes", log).groups()
    before, after, files = (int(number.replace(",", "")) for number in numbers)
    assert before == rest + 2 * projections
    descriptions = after - rest - expected[name]
    assert 0 < descriptions < len(shapes) * 200 if name == "nf4" else descriptions == 0
    assert files == sum(path.stat().st_size for path in folder.iterdir())
    assert after < (folder / "model.safetensors").stat().st_size < after + 20_000  # its header


def test_one_full_model_is_held_at_a_time(plain_backbone, members, tmp_path, monkeypatch):
    """A 9B base fits the memory once: each model is gone before the next is loaded."""
    load, alive, counts = base_module.load_base, [], []

    def count(*arguments, **options):
        counts.append(sum(reference() is not None for reference in alive))
        model = load(*arguments, **options)
        alive.extend(weakref.ref(parameter) for parameter in model.model.parameters())
        return model

    for module in (base_module, quantization):
        monkeypatch.setattr(module, "load_base", count)
    gc.disable()  # what is found gone must have been let go of on purpose
    try:
        flags = ["--base", plain_backbone, "--merge_adapter", members["ab"], "--quantization", "8bit"]
        call("quantize", *flags, "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    finally:
        gc.enable()
    assert counts == [0, 0, 0]  # unquantised, quantised, as saved


# --- merging ----------------------------------------------------------------------------------------------------------


def make_adapter(folder: Path, model: PreTrainedModel, config=LoraConfig, **options):
    """A plain PEFT SEQ_CLS adapter whose LoRA matters, saved; the model with it."""
    torch.manual_seed(0)
    options = {"r": 4, "target_modules": ["q_proj", "down_proj"], **options} if config is LoraConfig else options
    model = get_peft_model(model, config(task_type="SEQ_CLS", modules_to_save=["score"], **options))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def three_labels(tmp_path_factory, plain_backbone):
    """What the seed starts from: an LMSYS-like adapter with a 3-label head, and its model merged by PEFT alone."""
    folder = tmp_path_factory.mktemp("lmsys")
    model = Gemma2ForSequenceClassification.from_pretrained(plain_backbone, num_labels=3, dtype=torch.float32)
    model = make_adapter(folder / "adapter", model)
    tensors = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert [tuple(value.shape) for name, value in tensors.items() if "score" in name] == [(3, 64)]
    model.merge_and_unload().save_pretrained(folder / "merged")
    return folder


def test_a_three_label_adapter_is_merged_before_the_base_is_quantised(
    three_labels, plain_backbone, made, tmp_path, monkeypatch
):
    """The seed's stage 1: merged in float32, the 3-label head thrown away, a fresh 2-label one, 8 bit."""
    flags = ["--base", plain_backbone, "--merge_adapter", three_labels / "adapter", "--quantization", "8bit"]
    call("quantize", *flags, "--dtype", "float32", "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    wanted = load_base(BaseFiles(three_labels / "merged"), dtype="float32", quantization="8bit")
    merged = load_base(BaseFiles(tmp_path / "base"), dtype="float32")
    unmerged = load_base(BaseFiles(plain_backbone), dtype="float32", quantization="8bit")
    features, expected, other = (m.model(**make_batch()).last_hidden_state for m in (merged, wanted, unmerged))
    assert torch.equal(features, expected) and not torch.allclose(features, other, atol=1e-2)
    assert merged(**make_batch()).logits.shape == (3, 2) and merged.config.num_labels == 2
    shapes = {name: tuple(v.shape) for name, v in load_head(tmp_path / "base").items()}
    assert shapes == {"dense.weight": (32, 64), "dense.bias": (32,), "out.weight": (2, 32), "out.bias": (2,)}
    assert not (tmp_path / "base" / "merged").exists()


@pytest.mark.parametrize("quantization", ["none", "8bit"])
@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_head_with_or_without_a_bias_can_be_asked_for(
    quantization, bias, plain_backbone, tmp_path, monkeypatch
):
    flags = ["--base", plain_backbone, "--quantization", quantization, "--head_hidden_size", 0, "--head_bias", bias]
    call("quantize", *flags, "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    assert set(load_head(tmp_path / "base")) == {"out.weight", *(["out.bias"] if bias else [])}
    assert json.loads((tmp_path / "base" / "config.json").read_text())["head_bias"] is bias


def test_a_member_merges_as_well_and_the_sum_is_rounded_once(plain_backbone, members, tmp_path, monkeypatch):
    """Float32 weights plus the adapter's, then bf16: rounding the weights first would give other numbers."""
    flags = ["--base", plain_backbone, "--merge_adapter", members["ab"], "--quantization", "none"]
    call("quantize", *flags, "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    expected = merge_adapter(load_base(BaseFiles(plain_backbone), dtype="float32"), str(members["ab"])).state_dict()
    found = load_file(tmp_path / "base" / "model.safetensors")
    assert json.loads((tmp_path / "base" / "config.json").read_text())["dtype"] == "bfloat16"
    for name, value in found.items():
        if not name.startswith("score."):
            assert torch.equal(value, expected[name].to(torch.bfloat16)), name


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def foreign(tmp_path_factory, plain_backbone, three_labels) -> dict[str, Path]:
    """Adapters that do not belong to the tiny backbone, by what is wrong with them."""
    folder = tmp_path_factory.mktemp("foreign")
    body = Gemma2ForSequenceClassification.from_pretrained(plain_backbone)
    for name, changes in (("shapes", {"hidden_size": 32}), ("layers", {"num_hidden_layers": 3})):
        config = type(body.config).from_dict({**body.config.to_dict(), "layer_types": None, **changes})
        make_adapter(folder / name, Gemma2ForSequenceClassification(config))
    make_adapter(folder / "bias", Qwen2ForSequenceClassification(Qwen2Config(**SMALL)), bias="lora_only")
    make_adapter(folder / "ia3", body, IA3Config, target_modules=["k_proj"], feedforward_modules=[])
    for name in ("names", "pickle", "torn"):
        shutil.copytree(three_labels / "adapter", folder / name)
    path = folder / "names" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "target_modules": ["c_attn"]}))
    (folder / "pickle" / "adapter_model.safetensors").rename(folder / "pickle" / "adapter_model.bin")
    os.truncate(folder / "torn" / "adapter_model.safetensors", 1000)
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("shapes", r"have another shape \(such as"),
        ("layers", r"4 belong to no layer \(such as base_model.model.model.layers.2"),
        ("bias", r"belong to no layer \(such as .*bias\)"),
        ("names", "expected LoRA on layers of .*; found other module names .*c_attn"),
        ("ia3", "expected LoRA; found IA3"),
        ("pickle", "expected adapter_model.safetensors; found none. Save it with PEFT, as safetensors"),
        ("torn", "expected a complete safetensors file; found"),
    ],
)
def test_a_foreign_adapter_is_refused_before_weights_are_loaded(
    name, expected, foreign, plain_backbone, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", Mock(side_effect=AssertionError("weights were loaded")))
    flags = ["--base", plain_backbone, "--merge_adapter", foreign[name], "--output_dir", tmp_path / "deep" / "out"]
    message = fail("quantize", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert re.search(f"Adapter {re.escape(str(foreign[name]))}: .*{expected}", message) and "\n" not in message
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("flags", [[], ["--quantization", "none"], ["--quantization", "4bit"], ["merge"]])
def test_a_base_is_not_quantised_twice(flags, bases, members, tmp_path, monkeypatch, caplog):
    """Nor merged into once quantised, nor passed off as unquantised; found before its weights are loaded."""
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", Mock(side_effect=AssertionError("weights were loaded")))
    more = ["--merge_adapter", members["ab"]] if flags == ["merge"] else flags
    flags = ["--base", bases["8bit"].folder, *more, "--output_dir", tmp_path / "out"]
    said = fail("quantize", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "expected unquantised weights; found quantised ones. Start from the original base" in said
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("setting", [{"bnb_4bit_quant_type": "fp4"}, {"bnb_4bit_use_double_quant": True}])
def test_settings_of_4_bit_are_refused_elsewhere(setting):
    with pytest.raises(ValueError, match="--bnb_4bit_use_double_quant: expected only with --quantization 4bit; found"):
        QuantizeArguments(base="base", output_dir="out", **setting)


def test_a_base_that_was_damaged_while_saved_replaces_nothing(plain_backbone, tmp_path, monkeypatch, caplog):
    """One int8 weight that comes back from the disk otherwise: the base that stood there stays."""
    flags = ["--base", plain_backbone, "--quantization", "8bit", "--output_dir", tmp_path / "base"]
    call("quantize", *flags, monkeypatch=monkeypatch)
    before, save = {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()}, base_module.save_base

    def damage(folder, *arguments):
        save(folder, *arguments)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.layers.0.self_attn.v_proj.weight"][0, 0] ^= 64
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    monkeypatch.setattr(quantization, "save_base", damage)
    said = fail("quantize", *flags, "--seed", 1, monkeypatch=monkeypatch, caplog=caplog)
    assert "Base as saved: expected the logits that it had before it was saved, within 1e-05; found a change of" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "base").iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["base"]
