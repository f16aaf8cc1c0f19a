"""Merging the adapters that people have: every kind that is accepted gives what PEFT's own merge gives."""

import re

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    set_seed,
)

from modeling.network.base import BaseFiles, load_base
from modeling.network.lora import check_adapter, merge_adapter
from tests.helpers import SMALL, call, make_batch

LINEAR = ["q_proj", "down_proj"]


def load_plain(folder, task: str = "SEQ_CLS", vocabulary: int = 400):
    """The backbone as transformers alone loads it, with a head of three labels or a language model's."""
    set_seed(5)
    if task == "CAUSAL_LM":
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3, dtype=torch.float32)
    if vocabulary != 400:
        model.resize_token_embeddings(vocabulary)
    return model


def make_adapter(folder, plain, task="SEQ_CLS", vocabulary=400, save_embedding_layers="auto", **options) -> PeftModel:
    """Saves an adapter with random weights, as if it were trained; returns the model with it."""
    options = {"r": 4, "lora_alpha": 8, "target_modules": LINEAR, **options}
    model = get_peft_model(load_plain(plain, task, vocabulary), LoraConfig(task_type=task, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, save_embedding_layers=save_embedding_layers)
    return model.eval()


def assert_merged_as_peft_does(plain, folder, task="SEQ_CLS", vocabulary=400):
    """All weights below the head are those of PEFT's own merge into the same base."""
    check_adapter(str(folder), BaseFiles(plain))
    found = merge_adapter(load_base(BaseFiles(plain), dtype="float32"), str(folder))
    expected = PeftModel.from_pretrained(load_plain(plain, task, vocabulary), folder).merge_and_unload()
    weights = found.model.state_dict()
    assert weights.keys() == expected.model.state_dict().keys() and found.config.vocab_size == vocabulary
    for name, weight in expected.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-6, atol=1e-6, msg=name)
    return found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"task": "CAUSAL_LM", "use_dora": True},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"task": "CAUSAL_LM", "bias": "all"},
        {"init_lora_weights": "gaussian"},
        {"init_lora_weights": "eva"},
        {"init_lora_weights": "orthogonal"},
        {"init_lora_weights": "pissa"},
        {"task": "CAUSAL_LM", "init_lora_weights": "olora"},
        {"target_modules": ["q_proj", "score"]},
        {"target_modules": r".*\.q_proj|score"},
        {"task": "CAUSAL_LM", "target_modules": "all-linear"},
        {"task": "CAUSAL_LM", "trainable_token_indices": [5, 6]},
        {"task": "CAUSAL_LM", "target_modules": ["q_proj", "embed_tokens"]},
        {"task": "CAUSAL_LM", "modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]},
        {"task": "CAUSAL_LM", "save_embedding_layers": True},
        {"task": "CAUSAL_LM", "save_embedding_layers": True, "vocabulary": 403},
        {"save_embedding_layers": True, "vocabulary": 403},
        {"task": "CAUSAL_LM", "save_embedding_layers": True, "vocabulary": 403, "modules_to_save": ["embed_tokens"]},
    ],
    ids=str,
)
def test_an_adapter_is_merged_as_peft_does(options, plain_backbone, tmp_path):
    trained = make_adapter(tmp_path, plain_backbone, **options)
    where = {name: options[name] for name in ("task", "vocabulary") if name in options}
    merged = assert_merged_as_peft_does(plain_backbone, tmp_path, **where)
    # And as the model was that was trained, which no later loading has touched.
    expected = trained.get_base_model().model(**make_batch()).last_hidden_state
    assert torch.allclose(merged.model(**make_batch()).last_hidden_state, expected, atol=1e-5)


def test_lora_on_the_old_head_is_left_out_and_said(tmp_path, tokenizer, caplog):
    """peft #577: `score` is among the target modules as well as among those saved whole."""
    caplog.set_level("INFO")
    set_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMALL, initializer_range=0.3)).save_pretrained(tmp_path / "plain")
    tokenizer.save_pretrained(tmp_path / "plain")
    make_adapter(tmp_path / "adapter", tmp_path / "plain", target_modules=["q_proj", "v_proj", "score"])
    assert_merged_as_peft_does(tmp_path / "plain", tmp_path / "adapter")
    assert f"Adapter {tmp_path / 'adapter'}: left out its score, which the base's fresh head replaces" in caplog.text


@pytest.mark.parametrize("kind", ["old head", "language model's output layer"])
def test_lora_tensors_of_the_old_head_are_left_out(kind, plain_backbone, tmp_path, caplog):
    """With tied embeddings PEFT's merge would also change the embeddings, which the training did not."""
    caplog.set_level("INFO")
    name = "score" if kind == "old head" else "lm_head"
    task = "SEQ_CLS" if kind == "old head" else "CAUSAL_LM"
    trained = make_adapter(tmp_path, plain_backbone, task, target_modules=["q_proj", "lm_head"])
    if kind == "old head":
        tensors = load_file(tmp_path / "adapter_model.safetensors")
        more = {
            f"base_model.model.score.lora_{part}.weight": torch.ones(shape)
            for part, shape in (("A", (4, 64)), ("B", (3, 4)))
        }
        save_file(tensors | more, tmp_path / "adapter_model.safetensors")
    check_adapter(str(tmp_path), BaseFiles(plain_backbone))
    merged = merge_adapter(load_base(BaseFiles(plain_backbone), dtype="float32"), str(tmp_path))
    expected = trained.get_base_model().model(**make_batch()).last_hidden_state
    assert torch.allclose(merged.model(**make_batch()).last_hidden_state, expected, atol=1e-5)
    assert f"left out its {name}, which the base's fresh head replaces" in caplog.text


def test_a_resized_vocabulary_stays_in_the_base_that_is_written(plain_backbone, tmp_path, monkeypatch, caplog):
    """Quantised and loaded again; quantize.py compares the logits before and after by itself."""
    caplog.set_level("INFO")
    make_adapter(tmp_path / "a", plain_backbone, "CAUSAL_LM", vocabulary=403, save_embedding_layers=True)
    flags = ["--base", plain_backbone, "--merge_adapter", tmp_path / "a", "--quantization", "8bit"]
    call("quantize", *flags, "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    embeddings = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    expected = load_file(tmp_path / "a" / "adapter_model.safetensors")["base_model.model.model.embed_tokens.weight"]
    assert torch.equal(embeddings, expected.to(torch.bfloat16)) and len(embeddings) == 403
    assert "vocabulary of 400 resized to the adapter's 403" in caplog.text


def test_what_cannot_be_merged_exactly_is_refused_in_one_line(plain_backbone, tmp_path):
    lost = "expected an initialisation that can be repeated on the base; found {}, whose changes .* not in the adapter"
    for kind in ("pissa_niter_4", "loftq", "corda", "lora_ga"):
        model = get_peft_model(load_plain(plain_backbone), LoraConfig(task_type="SEQ_CLS", r=4, target_modules=LINEAR))
        model.peft_config["default"].init_lora_weights = kind
        model.peft_config["default"].loftq_config = {"loftq_bits": 4, "loftq_iter": 1} if kind == "loftq" else {}
        model.save_pretrained(tmp_path / kind)
    make_adapter(tmp_path / "smaller", plain_backbone, vocabulary=390, save_embedding_layers=True)
    make_adapter(tmp_path / "head", plain_backbone, target_modules=["q_proj"])
    tensors = load_file(tmp_path / "head" / "adapter_model.safetensors")
    save_file({k: v for k, v in tensors.items() if "score" in k}, tmp_path / "head" / "adapter_model.safetensors")
    make_adapter(tmp_path / "config", plain_backbone)
    (tmp_path / "config" / "adapter_config.json").write_text('{"peft_type": "LORA", "init_lora_weights": "loftq"}')
    expected = {
        **{kind: f"{lost.format(kind)}. Merge it with PEFT" for kind in ("pissa_niter_4", "loftq", "corda", "lora_ga")},
        "smaller": "expected embeddings for the 400 tokens of .*; found a vocabulary resized to 390. Use it",
        "head": "expected weights of layers below the head; found the old head's alone.* Leave out --merge_adapter",
        "config": "expected adapter_config.json as PEFT writes it; found .*loftq_config.* Save it again",
    }
    for name, message in expected.items():
        with pytest.raises(ValueError) as error:
            check_adapter(str(tmp_path / name), BaseFiles(plain_backbone))
        assert re.search(message, str(error.value)) and "\n" not in str(error.value)
        assert str(tmp_path / name) in str(error.value)
