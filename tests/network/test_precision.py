"""Precision: float32 computes in float32, no device has to emulate a precision, and members change precision within a
tolerance."""

import json
import logging
import math
from contextlib import contextmanager
from copy import deepcopy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from modeling.encoding.packing import pack_sequences
from modeling.judging import loading
from modeling.judging.judge import Judge
from modeling.judging.loading import load_judge
from modeling.judging.member import read_member
from modeling.network import precision
from modeling.network.base import BaseFiles, load_base, load_tokenizer, save_base
from modeling.network.classifier import find_family
from modeling.network.expansion import build_merged
from modeling.network.lora import add_adapters
from modeling.network.precision import TOLERANCES, choose_dtype, find_tolerance, measure_precisions
from tests.helpers import REPOSITORY, SAMPLES, call, fail
from tests.network.test_attention import FAMILIES

SIZES = SimpleNamespace(hidden_size=576, intermediate_size=1536)
CPU, CUDA = torch.device("cpu"), torch.device("cuda")
SEVERAL = ["float32", "bfloat16", "float16", "8bit", "4bit", "8bit of float16"]


class _SmallerDtypes(TorchDispatchMode):
    """Records every operation whose result is a floating-point tensor of fewer than 32 bits."""

    def __init__(self):
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype.itemsize < 4:
                self.found.add(f"{func}: {tensor.dtype}")
        return made


@contextmanager
def note_smaller_dtypes(model):
    """Collects the operations and module outputs that are not float32."""
    found: set[str] = set()

    def note(module, _, output):
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dtype != torch.float32:
                found.add(f"{type(module).__name__}: {tensor.dtype}")

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    with _SmallerDtypes() as mode:
        yield found
    found |= mode.found
    for hook in hooks:
        hook.remove()


@pytest.fixture(scope="module")
def any_base(bases, plain_backbone, tokenizer, tmp_path_factory):
    """Returns a base by its name; those saved in float16 are built here."""

    def find(name: str) -> BaseFiles:
        if name in bases:
            return bases[name]
        folder = tmp_path_factory.mktemp("float16") / "base"
        quantization = "8bit" if name.startswith("8bit") else "none"
        save_base(folder, load_base(BaseFiles(plain_backbone), dtype="float16", quantization=quantization), tokenizer)
        assert torch.float16 in {tensor.dtype for tensor in load_file(folder / "model.safetensors").values()}
        return BaseFiles(folder)

    return find


def build_batch() -> dict:
    return pack_sequences([[5, 9, 3, 44, 7, 1], [8, 2, 2, 90, 1], [5, 9, 3, 12, 1]]).to_batch()


# --- true float32 -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_a_base_read_in_bf16_and_then_in_float32_is_what_float32_reads(family, tmp_path):
    """Buffers too: Gemma-3's embeddings are multiplied by one, which bf16 rounds by 0.2%."""
    torch.manual_seed(0)
    config = deepcopy(FAMILIES[family])  # saving a model writes its dtype into the config
    find_family(config.model_type)(config).to(torch.bfloat16).save_pretrained(tmp_path)
    expected = load_base(BaseFiles(tmp_path), dtype="float32").eval()
    found = load_base(BaseFiles(tmp_path), dtype="bfloat16").eval()
    precision.set_dtype(found, "float32")
    batch = pack_sequences([[*range(20)], [*range(10, 40)]]).to_batch()
    assert (found(**batch).logits - expected(**batch).logits).abs().max() < 1e-6


@pytest.mark.parametrize("name", SEVERAL)
def test_float32_stores_and_computes_in_float32_on_every_base(name, any_base):
    model = add_adapters(load_base(any_base(name), dtype="float32"), r=4, alpha=4, dropout=0.1)
    held = {p.dtype for p in model.parameters() if p.is_floating_point()}
    held |= {b.dtype for b in model.buffers() if b.is_floating_point()}
    assert held == {torch.float32}
    labels = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    with note_smaller_dtypes(model) as found:
        model.train()(**build_batch(), labels=labels).loss.backward()
        with torch.inference_mode():
            model.eval()(**build_batch())
    assert found == set()
    merged = build_merged(model, "default", torch.float32)
    assert {p.dtype for p in merged.parameters()} == {torch.float32}
    with note_smaller_dtypes(merged) as found, torch.inference_mode():
        merged(**build_batch())
    assert found == set()


def test_the_check_detects_a_smaller_dtype(bases):
    model = load_base(bases["8bit"], dtype="bfloat16")
    with note_smaller_dtypes(model) as found, torch.inference_mode():
        model(**build_batch())
    assert any("mm" in operation and "bfloat16" in operation for operation in found)
    assert any("Embedding" in operation for operation in found)


@pytest.mark.parametrize("name", ["8bit", "4bit"])
def test_quantised_bases_in_float32_do_not_depend_on_the_rest_of_the_batch(name, bases):
    """Within 1e-5, as on unquantised bases."""
    model = load_base(bases[name], dtype="float32").eval()
    sequences = [[5, 9, 3, 44, 7, 1], [8, 2, 2, 90, 1] * 9, [5, 9, 3, 12, 1]]
    with torch.inference_mode():
        together = model(**pack_sequences(sequences).to_batch()).logits
        alone = torch.cat([model(input_ids=torch.tensor([ids])).logits for ids in sequences])
    assert alone.std() > 1e-3
    torch.testing.assert_close(together.softmax(-1), alone.softmax(-1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SEVERAL)
def test_lower_precisions_stay_within_the_tolerance_of_float32_on_every_base(name, any_base):
    files = any_base(name)
    answers = {}
    for dtype in ("float32", "bfloat16", "float16"):
        with torch.inference_mode():
            answers[dtype] = load_base(files, dtype=dtype).eval()(**build_batch()).logits.softmax(-1)
    for dtype, answer in answers.items():
        assert answer.dtype == torch.float32
        assert (answer - answers["float32"]).abs().max() <= find_tolerance(dtype, "float32")
    assert not torch.equal(answers["float32"], answers["bfloat16"])


# --- choosing a precision ---------------------------------------------------------------------------------------------


def pretend(monkeypatch, device: torch.device, has_bf16: bool = False, **speeds: float) -> None:
    """Pretends that the device has the given speeds relative to float32; 0 means that it lacks the precision."""
    found = {"float32": 1.0, **{name: 1 / speed if speed else math.inf for name, speed in speeds.items()}}
    monkeypatch.setattr(precision, "measure_precisions", lambda *_: found)
    monkeypatch.setattr(precision, "describe_device", lambda _: f"a {device.type}")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_bf16 or including_emulation)


@pytest.mark.parametrize(
    ("machine", "device", "speeds", "trains_in", "reads_in"),
    [
        ("a laptop's CPU with AVX2 alone", CPU, {"bfloat16": 0.04, "float16": 0.05}, "float32", "float32"),
        ("a CPU with AVX-512 and no BF16", CPU, {"bfloat16": 0.23, "float16": 0.03}, "float32", "float32"),
        ("a CPU with AVX512_BF16", CPU, {"bfloat16": 2.1, "float16": 0.03}, "bfloat16", "bfloat16"),
        ("a CPU with AMX", CPU, {"bfloat16": 9.0, "float16": 9.0}, "bfloat16", "bfloat16"),
        ("an Apple laptop without bf16", torch.device("mps"), {"bfloat16": 0, "float16": 1.6}, "float32", "float16"),
        ("a T4", CUDA, {"bfloat16": 0.4, "float16": 6.0}, "float32", "float16"),
        ("an H200", CUDA, {"has_bf16": True, "bfloat16": 8.3, "float16": 8.3}, "bfloat16", "bfloat16"),
        ("a busy H200", CUDA, {"has_bf16": True, "bfloat16": 0.45, "float16": 0.5}, "bfloat16", "bfloat16"),
    ],
)
def test_auto_chooses_a_precision_that_the_machine_computes_natively(
    machine, device, speeds, trains_in, reads_in, monkeypatch, caplog
):
    """The supported kinds of machine, with measured or published speeds."""
    caplog.set_level(logging.INFO)
    pretend(monkeypatch, device, **speeds)
    assert choose_dtype("auto", device, SIZES, training=True) == trains_in
    assert choose_dtype("auto", device, SIZES, training=False) == reads_in
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert f"Precision: {trains_in} on a {device.type}: bfloat16 is " in caplog.text


def test_a_requested_precision_is_used_and_its_cost_is_logged(monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    pretend(monkeypatch, CPU, bfloat16=0.05, float16=0)
    assert choose_dtype("bfloat16", CPU, SIZES, training=True) == "bfloat16"
    assert caplog.records[-1].levelname == "WARNING"
    assert "bfloat16, as requested, is emulated on a cpu: bfloat16 is 20.0 times slower than float32" in caplog.text
    assert choose_dtype("float32", CPU, SIZES, training=True) == "float32"
    with pytest.raises(ValueError, match=r"--dtype float16: expected a precision that a cpu can compute in; found"):
        choose_dtype("float16", CPU, SIZES, training=False)
    with pytest.raises(ValueError, match=r"--dtype float16: expected a precision for training; found one for pred"):
        choose_dtype("float16", CPU, SIZES, training=True)
    with pytest.raises(ValueError, match=r"--dtype: expected one of auto, bfloat16, float16, float32; found 'half'"):
        choose_dtype("half", CPU, SIZES, training=True)


def test_measuring_this_machine_agrees_with_its_instructions():
    """Every CPU known so far either has bf16 instructions or emulates bf16 at less than half of float32's speed. If
    variables make torch use an older CPU's instructions, this measures those."""
    ratios = measure_precisions(CPU, SIZES.hidden_size, SIZES.intermediate_size)
    assert list(ratios) == ["bfloat16", "float16", "float32"] and all(map(math.isfinite, ratios.values()))
    assert ratios["float32"] == 1
    native = torch.backends.cpu.get_cpu_capability() == "AVX512" and has_bf16_instructions()
    assert ratios["bfloat16"] < 2 if native else ratios["bfloat16"] > 2
    expected = "bfloat16" if ratios["bfloat16"] < 1 else "float32"
    assert choose_dtype("auto", CPU, SIZES, training=True) == expected


def has_bf16_instructions() -> bool:
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        return "avx512_bf16" in file.read()


def test_measuring_does_not_change_the_number_of_threads():
    before = torch.get_num_threads()
    measure_precisions.cache_clear()
    measure_precisions(CPU, 64, 128)
    assert torch.get_num_threads() == before


# --- members between precisions ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", ["bfloat16", "float32"])
def test_a_member_predicts_in_every_precision_within_the_tolerance(
    trained, bases, make_member, tmp_path, sample_battles, caplog
):
    make_member(tmp_path / "ab", bases["8bit"], "ab", dtype=trained)
    rows, answers = sample_battles.select(range(12)), {}
    for dtype in ("float32", "bfloat16", "float16"):
        with caplog.at_level(logging.INFO, "modeling.judging.loaded"):
            judge = Judge.from_pretrained(tmp_path / "ab", dtype=dtype)
        assert judge.members[0].dtype == dtype
        answers[dtype] = judge.predict(rows)["p_a"].to_numpy()
        (said,) = (message for message in caplog.messages if "canary probabilities changed by at most" in message)
        caplog.clear()
        moved = float(said.partition("by at most ")[2].split()[0])
        assert moved <= find_tolerance(trained, dtype)
    for dtype, answer in answers.items():
        assert np.abs(answer - answers["float32"]).max() <= find_tolerance(dtype, "float32")
    assert set(TOLERANCES) == {tuple(sorted(pair)) for pair in TOLERANCES} and len(TOLERANCES) == 6


@pytest.fixture
def overflowing(bases, make_member, tmp_path):
    """A member on a base whose first layer exceeds float16's largest number, but not float32's."""
    make_member(tmp_path / "plain", bases["float32"], "ab")
    base = tmp_path / "base"
    save_base(base, load_base(bases["float32"], dtype="float32"), load_tokenizer(bases["float32"].folder))
    weights = load_file(base / "model.safetensors")
    name = next(name for name in weights if "layers.0.mlp.down_proj" in name)
    save_file(weights | {name: weights[name] * 1e6}, base / "model.safetensors", metadata={"format": "pt"})
    make_member(tmp_path / "ab", BaseFiles(base), "ab")
    return tmp_path / "ab"


def test_a_float16_overflow_is_a_clear_error_and_auto_falls_back_to_float32(
    overflowing, sample_battles, monkeypatch, caplog
):
    """As on a T4, where auto chooses float16 for prediction."""
    with pytest.raises(ValueError, match=r"expected finite logits; .*65,504: pass --dtype float32"):
        Judge.from_pretrained(overflowing, dtype="float16", merge="never")
    monkeypatch.setattr(loading, "choose_dtype", lambda *_, **__: "float16")
    judge = Judge.from_pretrained(overflowing, dtype="auto")
    assert judge.members[0].dtype == "float32" and "Precision: float32 instead of float16" in caplog.text
    monkeypatch.undo()
    expected = Judge.from_pretrained(overflowing, dtype="float32").predict(sample_battles.select(range(4)))
    assert list(judge.predict(sample_battles.select(range(4)))["p_a"]) == list(expected["p_a"])


def test_an_overflow_without_canaries_stops_the_prediction(overflowing, sample_battles):
    judge = Judge.from_pretrained(overflowing, dtype="float16", skip_probes=True)
    with pytest.raises(ValueError, match=r"expected finite probabilities; found NaN.*--dtype float32"):
        judge.predict(sample_battles.select(range(4)))


def test_a_member_predicts_in_its_own_precision_by_default(members):
    (member,) = load_judge([str(members["ab"])])
    assert member.dtype == json.loads((members["ab"] / "member.json").read_text())["dtype"] == "float32"


# --- training runs ----------------------------------------------------------------------------------------------------


def build_run(bases, output, *flags) -> list:
    run = ["configs/demo/train.yaml", "--orientation", "ab", "--base", bases["8bit"].folder, "--freeze_layers", 0]
    run += ["--train_file", SAMPLES / "test.jsonl", "--max_length", 96, "--max_steps", 2]
    return [*run, "--save_strategy", "steps", "--save_steps", 1, "--output_dir", output, *flags]


def test_a_resumed_run_keeps_its_precision_on_another_machine(bases, tmp_path, monkeypatch, caplog):
    """The run starts in bf16 and resumes where auto would choose another precision."""
    monkeypatch.chdir(REPOSITORY)
    output = tmp_path / "ab"
    call("train", *build_run(bases, output, "--dtype", "bfloat16"), monkeypatch=monkeypatch)
    assert read_member(output).dtype == "bfloat16"
    monkeypatch.setattr(precision, "_choose", lambda *_: pytest.fail("measured, though the run has its precision"))
    caplog.set_level(logging.INFO)
    call("train", *build_run(bases, output), monkeypatch=monkeypatch)
    assert "Precision: bfloat16, as the interrupted run had it" in caplog.text
    assert read_member(output).dtype == "bfloat16"
    said = fail("train", *build_run(bases, output, "--dtype", "float32"), monkeypatch=monkeypatch, caplog=caplog)
    assert "dtype: bfloat16 there, float32 here" in said


def test_a_member_is_saved_before_its_canaries_are_recorded(bases, tmp_path, monkeypatch, caplog, sample_battles):
    """Hours of training are not lost if the canaries fail; the member then has none."""
    monkeypatch.chdir(REPOSITORY)

    def fail_to_read(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr("modeling.training.finished_run.record_canaries", fail_to_read)
    with pytest.raises(RuntimeError, match="out of memory"):
        call("train", *build_run(bases, tmp_path / "ab"), monkeypatch=monkeypatch)
    judge = Judge.from_pretrained(tmp_path / "ab")
    assert "its canary battles are not replayed (training stopped before they were recorded)" in caplog.text
    assert len(judge.predict(sample_battles.select(range(2)))) == 2


def test_float16_training_and_a_launcher_of_another_precision_are_clear_errors(bases, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(REPOSITORY)
    run = build_run(bases, tmp_path / "ab", "--dtype", "float16")
    said = fail("train", *run, monkeypatch=monkeypatch, caplog=caplog)
    assert "--dtype float16: expected a precision for training; found one for prediction only" in said
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    run = build_run(bases, tmp_path / "ab", "--dtype", "float32")
    said = fail("train", *run, monkeypatch=monkeypatch, caplog=caplog)
    assert "--dtype float32, launched with mixed precision fp16: expected the same or none" in said
    assert not any(tmp_path.iterdir())


def test_the_documented_tolerances_are_those_of_the_code():
    page = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    table = page.split("| | float32 | float16 | bfloat16 |\n")[1].split("\n\n")[0].splitlines()[1:]
    for row in table:
        name, *values = (cell.strip() for cell in row.strip("|").split("|"))
        expected = [find_tolerance(name, other) for other in ("float32", "float16", "bfloat16")]
        assert [float(value) for value in values] == expected
    assert len(table) == 3
