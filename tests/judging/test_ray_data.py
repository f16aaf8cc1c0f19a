"""A judge in Ray Data: what it refuses, and the verdicts of two real workers."""

import os

import pandas as pd
import pytest

from modeling.judging.ray_data import JudgeBatches
from tests.helpers import REPOSITORY

COLUMNS = ["id", "prompt", "response_a", "response_b"]


def assert_equal_verdicts(found: pd.DataFrame, expected: pd.DataFrame) -> None:
    """Asserts equal verdicts by id. Packs differ between batches, which moves a float32 probability by 1e-5 at most."""
    assert list(found) == list(expected) and set(found["id"]) == set(expected["id"]) and len(found) == len(expected)
    found = found.set_index("id").loc[expected["id"]].reset_index()
    for name in expected:
        if name.startswith(("p_", "raw_p")):
            assert (found[name] - expected[name]).abs().max() <= 1e-6, name
        else:
            assert (found[name] == expected[name]).all(), name


def test_a_batch_gets_the_verdicts_of_the_judge(members, judge, sample_battles):
    rows = sample_battles.to_pandas()[COLUMNS]
    batches = JudgeBatches([str(folder) for folder in members.values()], dtype="float32", readings="both")
    found = pd.concat([batches(rows[:7]), batches(rows[7:20])])
    assert_equal_verdicts(found, judge.predict(rows[:20].to_dict("records"), readings="both"))
    assert list(found["id"]) == list(rows["id"][:20])


def test_rows_that_are_no_battles_are_refused(members):
    batches = JudgeBatches(str(members["ab"]), dtype="float32")
    row = {"id": "x1", "prompt": "p", "response_a": "a", "response_b": "b"}
    with pytest.raises(ValueError, match=r"expected a column id, .*; found prompt, response_a, response_b\."):
        batches(pd.DataFrame([row])[COLUMNS[1:]])
    with pytest.raises(ValueError, match="missing column response_b"):
        batches(pd.DataFrame([row])[COLUMNS[:3]])
    for text in (None, " \n", float("nan"), 3):
        with pytest.raises(ValueError, match=r"battle 'x1': (prompt, response_a and )?response_b must"):
            batches(pd.DataFrame([row | {"response_b": text}]))


@pytest.mark.slow  # starting Ray takes half a minute
def test_two_workers_of_ray_give_the_judges_verdicts(members, judge, sample_battles, monkeypatch):
    """The pool in small batches, in whichever order they come back; the judge in workers of their own."""
    ray = pytest.importorskip("ray", reason="ray is not installed: pip install 'bothways[ray]'")
    data = pytest.importorskip("ray.data")
    monkeypatch.setenv("PYTHONPATH", f"{REPOSITORY}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    # A core more than the workers take, because both hold theirs until the end and the pool is read by tasks.
    ray.init(num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=100 << 20)
    try:
        rows = sample_battles.to_pandas()[COLUMNS]
        pool = data.from_pandas([rows[start : start + 12] for start in range(0, len(rows), 12)])
        found = pool.map_batches(
            JudgeBatches,
            fn_constructor_kwargs={"judge": [str(folder) for folder in members.values()], "dtype": "float32"},
            batch_format="pandas",
            batch_size=12,
            concurrency=2,
        ).to_pandas()
    finally:
        ray.shutdown()
    assert_equal_verdicts(found, judge.predict(sample_battles.to_list()))
