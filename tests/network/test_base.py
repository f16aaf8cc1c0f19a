"""Bases that would be loaded without some of their weights are refused, whatever the reason."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling.network.base import BaseFiles, load_base
from modeling.runtime.paths import check_base
from tests.helpers import call, fail

WEIGHTS = "model.safetensors"


@pytest.fixture
def damage(plain_backbone, tmp_path):
    """Copies the plain Gemma-2 with a change to its tensors."""

    def make(change) -> BaseFiles:
        shutil.copytree(plain_backbone, folder := tmp_path / "backbone")
        save_file(change(load_file(folder / WEIGHTS)), folder / WEIGHTS, metadata={"format": "pt"})
        return BaseFiles(folder)

    return make


@pytest.mark.parametrize("prefix", ["pretrained_model.", "_orig_mod.", "module.", "model.model."])
def test_tensors_under_a_foreign_prefix_are_refused(prefix, damage):
    files = damage(lambda tensors: {f"{prefix}{name}": value for name, value in tensors.items()})
    with pytest.raises(ValueError, match=r"expected a tensor for each weight; found none for \d+ .*save it without"):
        load_base(files, dtype="float32")


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        ("model.layers.1.", r"none for \d+ \(such as model\.layers\.1\."),
        ("model.layers.0.self_attn.k_proj.weight", r"none for 1 \(such as model\.layers\.0\.self_attn\.k_proj\.weight"),
        ("model.embed_tokens.weight", r"none for 1 \(such as model\.embed_tokens\.weight"),
        ("model.norm.weight", r"none for 1 \(such as model\.norm\.weight"),
    ],
)
def test_a_lost_tensor_is_named(lost, expected, damage):
    files = damage(lambda tensors: {name: value for name, value in tensors.items() if not name.startswith(lost)})
    with pytest.raises(ValueError, match=f"found {expected}.*download or save it again"):
        load_base(files, dtype="float32")


def test_a_layer_too_many_is_named(damage):
    extra = {"model.layers.2.self_attn.k_proj.weight": torch.ones(32, 64)}
    with pytest.raises(ValueError, match=r"found 1 that belong to no layer \(such as model\.layers\.2\."):
        load_base(damage(lambda tensors: tensors | extra), dtype="float32")


def test_what_a_base_does_not_need_may_be_there_and_changes_nothing(damage, plain_backbone):
    """A language model's output layer, a value head, a reward model's score."""
    extra = {name: torch.ones(1, 64) for name in ("lm_head.weight", "v_head.summary.weight", "score.weight")}
    plain = load_base(BaseFiles(plain_backbone), dtype="float32").model.state_dict()
    found = load_base(damage(lambda tensors: tensors | extra), dtype="float32").model.state_dict()
    assert plain.keys() == found.keys() and all(plain[name].equal(found[name]) for name in plain)


@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
def test_quantize_answers_in_one_line_and_writes_nothing(quantization, damage, tmp_path, monkeypatch, caplog):
    files = damage(lambda tensors: {f"_orig_mod.{name}": value for name, value in tensors.items()})
    flags = ["--base", files.folder, "--quantization", quantization, "--output_dir", tmp_path / "out"]
    said = fail("quantize", *flags, monkeypatch=monkeypatch, caplog=caplog)
    assert "Its tensors' names begin with '_orig_mod.': save it without that prefix." in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantised_base_that_lost_a_layer_is_refused(quantization, plain_backbone, tmp_path, monkeypatch):
    flags = ["--base", plain_backbone, "--quantization", quantization, "--output_dir", tmp_path / "base"]
    call("quantize", *flags, monkeypatch=monkeypatch)
    tensors = load_file(tmp_path / "base" / WEIGHTS)
    kept = {name: value for name, value in tensors.items() if "layers.1." not in name}
    assert len(kept) < len(tensors)
    save_file(kept, tmp_path / "base" / WEIGHTS, metadata={"format": "pt"})
    assert json.loads((tmp_path / "base" / "config.json").read_text())["num_hidden_layers"] == 2
    with pytest.raises(ValueError, match=r"found none for a quantised one\. Its weights are incomplete"):
        load_base(BaseFiles(tmp_path / "base"), dtype="float32")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
            "found a git-lfs pointer.*git lfs pull",
        ),
        ("x" * 100, "expected a complete safetensors file; found .*download or save it again"),
        ("", "expected a complete safetensors file; found .*download or save it again"),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(content, expected, plain_backbone, tmp_path):
    shutil.copytree(plain_backbone, tmp_path / "backbone")
    (tmp_path / "backbone" / WEIGHTS).write_text(content)
    with pytest.raises(ValueError, match=expected):
        load_base(BaseFiles(tmp_path / "backbone"), dtype="float32")


@pytest.mark.parametrize(
    ("lost", "expected"),
    [
        (WEIGHTS, r"expected weights in \*\.safetensors; found none"),
        ("tokenizer.json", r"expected a tokenizer \(.*\); found none"),
        ("config.json", "expected a model folder with config.json; found none"),
    ],
)
def test_a_base_without_a_needed_file_is_refused_before_anything_is_loaded(lost, expected, plain_backbone, tmp_path):
    shutil.copytree(plain_backbone, tmp_path / "backbone")
    (tmp_path / "backbone" / "tokenizer_config.json").unlink()
    (tmp_path / "backbone" / lost).unlink()
    with pytest.raises(ValueError, match=expected):
        check_base(str(tmp_path / "backbone"))


def test_weights_in_another_format_are_named(plain_backbone, tmp_path):
    shutil.copytree(plain_backbone, tmp_path / "backbone")
    (tmp_path / "backbone" / WEIGHTS).rename(tmp_path / "backbone" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"found pytorch_model\.bin\. Download the whole model, or save it"):
        check_base(str(tmp_path / "backbone"))
