"""The pages' tables of memory on GPUs are those that were computed, and are computed again in part."""

import json

import pytest

from benchmarks.speed.memory import BASES, plan_prediction, plan_training
from modeling.judging.predictor import TOKENS_PER_BATCH
from tests.helpers import REPOSITORY
from tests.test_readme import list_rows, read_page

CUDA = 1e9  # bytes that CUDA itself takes, and what its allocator cannot use
H200 = json.loads((REPOSITORY / "benchmarks/results/gpu.json").read_text(encoding="utf-8"))
RECORDS = json.loads((REPOSITORY / "benchmarks/results/memory.json").read_text(encoding="utf-8"))["records"]


def find(what: str, **values) -> dict:
    (record,) = (each for each in RECORDS if each["what"] == what and values.items() <= each.items())
    return record


def test_the_table_of_training_is_what_was_computed():
    rows = [cells for cells in list_rows(read_page("training"), "Memory") if cells[0] in BASES]
    assert len(rows) == 9
    for base, quantization, *sizes in rows:
        for launcher, size in zip(("single_gpu", "ddp", "zero2", "zero3"), sizes, strict=True):
            if size == "refused":
                assert launcher == "zero3" and quantization != "none"
            else:
                record = find("training", base=base, quantization=quantization, launcher=launcher)
                assert size == f"{record['bytes'] / 1e9:.1f}", (base, quantization, launcher)


def test_the_table_of_prediction_is_what_was_computed():
    rows = list_rows(read_page("prediction"), "Memory")
    assert len(rows) == 4
    for base, reads_in, tokens, *sizes in rows:
        dtype, plain = reads_in.partition(",")[::2]
        record = find("prediction", quantization=base.replace(" ", ""), dtype=dtype)
        assert record["tokens"] == int(tokens.replace(",", "")) and (record["kernel"] == "packed_eager") == bool(plain)
        assert sizes == [f"{record['bytes'][way] / 1e9:.1f}" for way in ("merged", "expanded", "stored")]


def test_the_same_numbers_come_out_again():
    record = find("training", base="Gemma-2-2B", quantization="4bit", launcher="single_gpu")
    assert plan_training("Gemma-2-2B", "4bit", "single_gpu", record["kernel"]) == record["bytes"]
    record = find("prediction", quantization="4bit", dtype="float16")
    found = plan_prediction("Gemma-2-9B", "4bit", "float16", record["tokens"], record["kernel"])
    assert found == pytest.approx(record["bytes"], rel=1e-9)


@pytest.mark.parametrize(("quantization", "card"), [("4bit", 24e9), ("8bit", 40e9)])
def test_the_originals_step_fits_its_cards(quantization, card):
    """16 battles of up to 2,200 tokens, in two forward passes of 8, all layers with rank 64."""
    record = find("training", base="Gemma-2-9B", quantization=quantization, launcher="single_gpu")
    assert record["bytes"] < card - CUDA


def test_two_members_on_gemma2_9b_read_on_a_t4():
    """In float16, with plain matrix products, if a T4 should have no better kernel."""
    for quantization in ("8bit", "4bit"):
        record = find("prediction", quantization=quantization, dtype="float16")
        assert record["tokens"] == TOKENS_PER_BATCH["small"][1]
        assert record["bytes"]["stored"] < 16e9 - CUDA < record["bytes"]["expanded"] < record["bytes"]["merged"]


def test_the_computed_memory_of_a_step_is_near_what_a_card_took():
    """Gemma-2-9B in 8 bit: 16 battles in two parts of up to 8,192 tokens."""
    peak = H200["training"]["ours, 8bit"]["peak_gb"] * 1e9
    assert peak < find("measured step")["bytes"] < 1.15 * peak


@pytest.mark.parametrize(
    ("measured", "quantization", "way"),
    [
        ("ours, bf16, packed_flex", "8bit", "expanded"),
        ("ours, 8bit, packed_flex", "8bit", "stored"),
        ("ours, 4bit, packed_flex", "4bit", "stored"),
    ],
)
def test_the_computed_memory_of_a_prediction_is_near_what_a_card_took(measured, quantization, way):
    """The card's run had no adapters, so their weights are left out here; what they compute is counted."""
    computed = find("prediction", quantization=quantization, dtype="bfloat16")["bytes"][way] - 2 * 4 * 222_500_098
    assert computed == pytest.approx(H200["prediction"][f"round 1: {measured}"]["peak_gb"] * 1e9, rel=0.1)
