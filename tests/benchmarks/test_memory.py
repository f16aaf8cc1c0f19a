"""The pages' tables of memory on GPUs are those that were computed, and are computed again in part."""

import json

import pytest

from benchmarks.speed.memory import plan_prediction, plan_training
from tests.helpers import REPOSITORY
from tests.test_readme import list_rows, read_page

RECORDS = json.loads((REPOSITORY / "benchmarks/results/memory.json").read_text(encoding="utf-8"))["records"]


def find(what: str, **values) -> dict:
    (record,) = (each for each in RECORDS if each["what"] == what and values.items() <= each.items())
    return record


def test_the_table_of_training_is_what_was_computed():
    rows = [cells for cells in list_rows(read_page("training"), "Memory") if cells[0] != "SmolLM2-135M"]
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
