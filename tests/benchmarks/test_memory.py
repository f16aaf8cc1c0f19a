"""The pages' numbers of memory on GPUs are those that were computed, and are computed again in part."""

import json
import re

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


def show(size: float, digits: int = 1) -> str:
    return f"{size / 1e9:.{digits}f}"


# --- the pages --------------------------------------------------------------------------------------------------------


def test_the_table_of_training_is_what_was_computed():
    rows = [cells for cells in list_rows(read_page("training"), "Memory") if cells[0] in BASES]
    assert len(rows) == 9
    for base, quantization, *sizes in rows:
        for launcher, size in zip(("single_gpu", "ddp", "zero2", "zero3"), sizes, strict=True):
            if size == "refused":
                assert launcher == "zero3" and quantization != "none"
            else:
                record = find("table", base=base, quantization=quantization, launcher=launcher)
                assert size == show(record["bytes"]), (base, quantization, launcher)


def test_the_table_of_prediction_is_what_was_computed():
    rows = list_rows(read_page("prediction"), "Memory")
    assert len(rows) == 4
    for base, reads_in, tokens, *sizes in rows:
        dtype, plain = reads_in.partition(",")[::2]
        record = find("prediction", quantization=base.replace(" ", ""), dtype=dtype)
        assert record["tokens"] == int(tokens.replace(",", "")) and (record["kernel"] == "packed_eager") == bool(plain)
        assert sizes == [show(record["bytes"][way]) for way in ("merged", "expanded", "stored")]
    t4 = find("prediction", quantization="8bit", dtype="float16")["bytes"]["stored"]
    assert f"Gemma-2-9B in 8 bit take {show(t4)} GB" in read_page("kaggle")


def test_what_is_said_below_the_tables_was_computed():
    said = " ".join(read_page("training").split())
    for what, text, digits in (
        ("plain matrix products", "Gemma-2-9B in 8 bit needs {} GB", 1),
        ("no checkpointing, no dropout", "Without checkpointing and without LoRA dropout it needs {} GB", 0),
        ("not reentrant", "it needs {} GB, because bitsandbytes holds", 0),
        ("step on an H200", "where the plan says {}.", 1),
    ):
        assert text.format(show(find(what)["bytes"], digits)) in said, what


def test_the_heads_of_the_recipes_say_what_was_computed():
    nine = find("table", base="Gemma-2-9B", quantization="8bit", launcher="single_gpu")["bytes"]
    four = find("table", base="Gemma-2-9B", quantization="4bit", launcher="single_gpu")["bytes"]
    halves = {base: find("half the batch", base=base)["bytes"] for base in BASES}
    recipes = {base: find("recipe", base=base)["bytes"] for base in ("Gemma-2-2B", "Qwen2.5-7B")}
    for folder, texts in {
        "gemma2-9b": [f"says {show(nine)} GB", f"with {show(four)} GB", f"at {show(halves['Gemma-2-9B'], 0)} GB"],
        "fsfairx-gemma2-rm": [f"says {show(nine)} GB", f"at {show(halves['Gemma-2-9B'], 0)} GB"],
        "lmsys": [f"at {show(halves['Gemma-2-9B'], 0)} GB"],
        "gemma2-2b": [
            f"says {show(recipes['Gemma-2-2B'], 0)} GB",
            f"{show(find('recipe on a T4')['bytes'])} GB",
            f"at {show(halves['Gemma-2-2B'], 0)} GB",
        ],
        "qwen2.5-7b": [f"says {show(recipes['Qwen2.5-7B'], 0)} GB", f"at {show(halves['Qwen2.5-7B'], 0)} GB"],
        "r1-distill-qwen-7b": [f"says {show(recipes['Qwen2.5-7B'], 0)} GB", f"at {show(halves['Qwen2.5-7B'], 0)} GB"],
    }.items():
        said = (REPOSITORY / "configs" / folder / "train.yaml").read_text(encoding="utf-8")
        said = " ".join(re.sub(r"^# ?", "", said, flags=re.M).split())
        assert [text for text in texts if text not in said] == [], folder


def test_the_same_numbers_come_out_again():
    record = find("table", base="Gemma-2-2B", quantization="4bit", launcher="single_gpu")
    assert plan_training("Gemma-2-2B", "4bit", "single_gpu", record["kernel"]) == record["bytes"]
    record = find("prediction", quantization="4bit", dtype="float16")
    found = plan_prediction("Gemma-2-9B", "4bit", "float16", record["tokens"], record["kernel"])
    assert found == record["bytes"]


# --- cards ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("quantization", "card"), [("4bit", 24e9), ("8bit", 40e9)])
def test_the_originals_step_fits_its_cards(quantization, card):
    """16 battles of up to 2,200 tokens, in two forward passes of 8, all layers with rank 64."""
    record = find("table", base="Gemma-2-9B", quantization=quantization, launcher="single_gpu")
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
    assert peak < find("step on an H200")["bytes"] < 1.15 * peak


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
    peak = H200["prediction"][f"round 1: {measured}"]["peak_gb"] * 1e9
    assert peak < computed < 1.15 * peak
