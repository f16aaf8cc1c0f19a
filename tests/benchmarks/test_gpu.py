"""The dry run of the GPU's measurements runs every line of them on a CPU, and nothing that fails ends the command."""

import json
import math
import sys
import time
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from transformers.models.gemma2 import modeling_gemma2

from benchmarks.speed.gpu import __main__ as command
from benchmarks.speed.gpu import kernels, measuring, models, steps
from benchmarks.speed.gpu.measuring import Clock, Setting, run_part
from benchmarks.speed.gpu.steps import measure_training
from benchmarks.speed.gpu.tables import compare_results, format_results
from modeling.encoding.packing import pack_sequences
from modeling.network.precision import set_dtype
from tests.helpers import REPOSITORY, succeed

CPU = torch.device("cpu")
PUBLISHED = (
    "round 2: notebook, 8bit, batches of 2",
    "round 2: notebook, 8bit, batches of 16",
    "round 2: ours, bf16, packed_flex",
    "round 2: ours, 8bit, packed_flex",
    "round 1: ours, 4bit, packed_flex",
    "round 1: ours, bf16, packed_eager",
)


def test_the_dry_run_measures_every_part(tmp_path):
    """Each kernel of each family agrees with eager attention; the ways read the same battles, ours fewer tokens."""
    said = succeed(sys.executable, "-m", "benchmarks.speed.gpu", "--output", tmp_path / "gpu.json", "--dry_run", "true")
    results = json.loads((tmp_path / "gpu.json").read_text())
    assert list(results) == list(command.BOXES) and format_results(results) in said
    for part, records in results.items():
        assert records and not {"error", "stopped"} & records.keys(), part
        for name, record in records.items():
            assert "error" not in record, (part, name, record)
            assert all(math.isfinite(value) for value in record.values() if isinstance(value, float)), name
    for name, record in results["correctness"].items():
        limit = {"bfloat16": 0.005, "float16": 1e-3, "float32": 1e-5}[name.partition(",")[0]]
        assert record["largest_difference"] <= limit < record["logits_std"], name
        assert record["gradient_cosine"] > 0.999, name
    rounds = {name: found for name, found in results["prediction"].items() if name.startswith("round 1")}
    assert len({(found["battles"], found["tokens"]) for found in rounds.values()}) == 1
    for name, found in rounds.items():
        assert (found["computed_tokens"] < found["tokens"]) == ("ours" in name), name
    assert all(found["times_notebook"] > 0 and found["matrix_share"] > 0 for found in rounds.values())


def test_ligers_kernels_are_measured_where_they_are_installed_and_change_no_later_model(monkeypatch):
    """With a stand-in for the package, whose own kernels need a GPU."""
    known, given = dict(vars(modeling_gemma2)), {}

    def patch(**options):
        given.update(options)
        modeling_gemma2.Gemma2RMSNorm = object

    setting = Setting(torch.device("cpu"), dry_run=True)
    name = "ours, 8bit, Liger's kernels"
    assert name not in dict(measure_training(setting))
    monkeypatch.setattr(steps, "find_spec", lambda package: package)
    monkeypatch.setitem(sys.modules, "liger_kernel", ModuleType("liger_kernel"))
    monkeypatch.setitem(sys.modules, "liger_kernel.transformers", stand_in := ModuleType("liger_kernel.transformers"))
    stand_in.apply_liger_kernel_to_gemma2 = patch
    record = dict(measure_training(setting))[name]()
    assert record["seconds"] > 0 and given["rms_norm"] and given["geglu"] and not given["cross_entropy"]
    assert dict(vars(modeling_gemma2)) == known


def test_a_failure_is_recorded_and_the_next_measurement_runs():
    """Also one in the generator, which ends its part only; and a time box that is over."""
    saved = []

    def measure_part(setting):
        yield "first", lambda: {"seconds": math.nan}
        yield "second", lambda: 1 / 0
        yield "third", lambda: {"seconds": 1.0}
        raise ValueError("no such\nmodel")

    def run(box, records):
        run_part(measure_part(None), box, records, Clock(time.time(), 60), lambda: saved.append(len(records)), CPU)
        return records

    found = run(60, {})
    assert found == {
        "first": {"seconds": "nan"},
        "second": {"error": "ZeroDivisionError: division by zero"},
        "third": {"seconds": 1.0},
        "error": "ValueError: no such model",
    }
    assert saved == [1, 2, 3, 4] and "| second |  | ZeroDivisionError: division by zero |" in format_results(
        {"x": found}
    )
    assert list(run(0, {})) == ["stopped"]


def test_after_the_device_has_failed_a_part_goes_on_where_it_stopped(monkeypatch):
    alive = iter([True, False])
    monkeypatch.setattr(measuring, "is_alive", lambda device: next(alive, True))
    records, ran = {}, []

    def measure_part():
        for name in ("first", "second", "third"):
            yield name, lambda name=name: ran.append(name) or {"seconds": 1.0}

    for expected in (["first", "second"], ["first", "second", "third"]):
        run_part(measure_part(), 60, records, Clock(time.time(), 60), lambda: None, CPU)
        assert ran == expected
        assert ("stopped" in records) == (expected[-1] == "second")


def test_the_check_of_a_kernel_finds_a_wrong_one():
    """With the real heads, each mistake moves a logit by several times what the rounding of bf16 does."""
    fields, sequences = {"model_type": "gemma2", **kernels.FAMILIES["gemma2"]}, kernels._build_sequences(1)

    def read(dtype="float32", **mistake):
        model = models.build_random(models.build_config(fields, **mistake), CPU, "float32")
        set_dtype(model, dtype)
        return kernels._run_packed(model, sequences, "packed_eager")[0]

    expected = read()
    noise = (read("bfloat16") - expected).abs().max()
    for mistake in ({"attn_logit_softcapping": None}, {"sliding_window": 4096}, {"sliding_window": 65}):
        assert (read(**mistake) - expected).abs().max() > 3 * noise, mistake


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_the_check_of_a_kernel_finds_a_lost_token(family):
    """Also where nothing is capped and no window hides anything: one key of a shared prefix is missing."""
    config = models.build_config({"model_type": family, **kernels.FAMILIES[family]})
    sequences = kernels._build_sequences(1)
    model = models.build_random(config, CPU, "float32")
    expected, _ = kernels._run_unpadded(model, sequences)
    batch = pack_sequences(sequences).to_batch()
    model.config._attn_implementation = "packed_eager"
    batch["segments"] = [
        replace(each, before=((each.before[0][0] + 1, each.before[0][1]), *each.before[1:])) if each.before else each
        for each in batch["segments"]
    ]
    wrong = model(**batch).logits
    set_dtype(model, "bfloat16")
    model.zero_grad()
    noise = (kernels._run_unpadded(model, sequences)[0] - expected).abs().max()
    assert (wrong - expected).abs().max() > 3 * noise


def test_a_quantised_copy_shares_what_is_not_quantised_and_leaves_the_original():
    config = models.build_config(models.GEMMA2_9B, **models.TINY)
    base = models.build_random(config, CPU, "bfloat16")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    ids = torch.arange(3, 40)[None]
    expected = base(input_ids=ids).logits
    for quantization, limit in (("8bit", 0.02), ("4bit", 0.2)):
        copy = models.quantize(base, quantization)
        assert copy.get_input_embeddings().weight is base.get_input_embeddings().weight
        assert "Linear" + {"8bit": "8bitLt", "4bit": "4bit"}[quantization] in str(copy.list_layers())
        assert 0 < (copy(input_ids=ids).logits - expected).abs().max() < limit
    assert all(torch.equal(before[name], tensor) for name, tensor in base.state_dict().items())


def test_operations_are_counted_from_the_shape():
    """A token passes 2 layers of 64 x (64 + 32 + 32 + 64) + 3 x 64 x 96 weights; a pair 4 heads of 16 numbers."""
    base = models.build_random(models.build_config(models.GEMMA2_9B, **models.TINY), CPU, "float32")
    weights = 2 * (64 * (64 + 32 + 32 + 64) + 3 * 64 * 96)
    assert models.count_flops(base, [10, 20]) == 2 * weights * 30 + 2 * (2 * 4 * 16) * (100 + 400)
    base.config.sliding_window = 4  # of the first layer: 10 queries see 4 keys each, the first ones fewer
    assert models.count_flops(base, [10]) == 2 * weights * 10 + 4 * 4 * 16 * (50 + 10 * 4 - 8)


def test_battles_have_real_lengths_and_their_orders_share_the_prompt():
    battles = models.draw_battles(400, 256_000)
    lengths = sorted(len(ids) for ids, _ in battles)
    assert 400 < lengths[200] < 530 and lengths[-1] == 2200 and 550 < sum(lengths) / 400 < 750
    for first, second in battles:
        prompt = max(16, round(0.15 * len(first)))
        assert sorted(first) == sorted(second) and first[:prompt] == second[:prompt] and first != second


def test_the_published_tables_are_those_that_were_measured():
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "gpu.json").read_text())
    page = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    section = page.partition("## On a GPU\n")[2].partition("\n## ")[0]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in section.splitlines() if line[:2] == "| "]
    numbers = [row for row in rows if row[0][0].isdigit()]
    expected = [results["prediction"][name] for name in PUBLISHED]
    assert numbers[: len(expected)] == [
        [
            f"{found['tokens_per_second']:,.0f}",
            f"{found['battles_per_second']:.1f}",
            f"{found['times_notebook']:.2f}",
            f"{found['matrix_share']:.0%}",
            f"{found['peak_gb']:.1f}",
        ]
        for found in expected
    ]
    timed = [found for found in results["attention"].values() if "forward_ms" in found]
    layers = [[f"{found['forward_ms']:.1f}", f"{found['forward_backward_ms']:.1f}"] for found in timed]
    layers_end = len(expected) + len(layers)
    assert numbers[len(expected) : layers_end] == layers
    cosines = [found["gradient_cosine"] for name, found in results["correctness"].items() if "packed" in name]
    assert f"{min(cosines):.4f}" == "0.9997"


def test_the_published_training_and_float16_are_what_was_measured():
    results = json.loads((REPOSITORY / "benchmarks" / "results" / "gpu_training.json").read_text())
    page = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")
    section = page.partition("## On a GPU\n")[2].partition("\n## ")[0]
    tables = [part.splitlines() for part in section.split("\n\n") if part.startswith("| ")]
    rows = [[[cell.strip() for cell in line.split("|")[2:-1]] for line in table[2:]] for table in tables]
    assert rows[2] == [
        [
            f"{found['seconds']:.2f}",
            f"{found['tokens_per_second']:,.0f}",
            f"{found['times_notebook']:.2f}",
            f"{found['matrix_share']:.0%}",
            f"{found['peak_gb']:.1f}",
        ]
        for found in results["training"].values()
        if isinstance(found, dict)
    ]
    t4 = results["t4"]
    assert rows[3] == [
        [
            f"{found['peak_gb']:.1f}",
            f"{found['battles_per_second']:.1f}",
            f"{found['largest_difference']:.4f}",
            f"{t4[name.partition(',')[0] + ', bfloat16']['largest_difference']:.4f}",
        ]
        for name, found in t4.items()
        if ", float16" in name
    ]
    assert f"{t4['8bit, bfloat16']['margin_std']:.4f}" in section
    assert all(t4[name]["peak_gb"] < 15 - 3 for name in t4 if name.startswith("8bit, float16"))
    assert f"{results['machine']['matrix product']['tflops']:.0f}" in section
    assert f"reached: {results['training']['ours, 8bit']['times_notebook']:.2f} times in 8 bit**" in section


def test_rates_are_compared_within_a_round():
    rate = {"tflops": 5.0, "tokens_per_second": 10.0}
    results = {
        "machine": {"matrix product": {"tflops": 10.0}},
        "prediction": {
            "round 1: notebook, 8bit": dict(rate),
            "round 1: ours": rate | {"tokens_per_second": 30.0},
            "round 2: notebook, 8bit": rate | {"tokens_per_second": 20.0},
            "round 2: ours": rate | {"tokens_per_second": 30.0},
            "stopped": "tflops",
        },
    }
    compare_results(results)
    assert results["prediction"]["round 1: ours"]["times_notebook"] == 3.0
    assert results["prediction"]["round 2: ours"] == rate | {
        "tokens_per_second": 30.0,
        "matrix_share": 0.5,
        "times_notebook": 1.5,
    }


def test_without_a_gpu_the_command_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", str(tmp_path / "gpu.json")])
    with pytest.raises(ValueError, match=r"expected a GPU; found none\. Pass --dry_run true"):
        command.main()


def test_the_machine_is_measured_first_and_unknown_parts_are_refused(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", "gpu.json", "--parts", "t4,small", "--dry_run"])
    flags = command.parse_flags()
    assert flags.parts == ["machine", "t4", "small"] and flags.dry_run == "true"
    monkeypatch.setattr(sys, "argv", ["gpu", "--output", "gpu.json", "--parts", "t4,kernels"])
    with pytest.raises(SystemExit):
        command.parse_flags()
    assert "found kernels." in capsys.readouterr().err


def test_the_setting_picks_by_dry_run():
    assert Setting(CPU).pick(1, 2) == 1 and Setting(CPU, dry_run=True).pick(1, 2) == 2
