"""Ways take turns in processes of their own, and give the same answers: else their times could not be compared."""

import json
import os
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.speed import notebook
from benchmarks.speed.growth import _fit_exponent, _lengthen
from benchmarks.speed.second_readings import SHARES, build_selective
from benchmarks.speed.speed import OURS, build_our_predictor, build_our_trainer, compare_answers, draw_slices
from benchmarks.speed.tables import format_figures
from benchmarks.speed.turns import run_in_turns, summarise_turns
from modeling.judging.judge import Judge
from tests.helpers import DEMO_DATA, REPOSITORY

TEST = str(DEMO_DATA / "test.jsonl")
PAGE = (REPOSITORY / "docs" / "performance.md").read_text(encoding="utf-8")


def build_clock(tokens):
    """A way that says when it ran and where."""
    process = os.getpid()

    def run(turn):
        assert os.getpid() == process
        start = time.monotonic()
        time.sleep(0.02)
        found = {"start": start, "end": time.monotonic(), "process": process, "turn": turn}
        return found | {"seconds": 0.02, "tokens": tokens, "battles": 1}

    return run


def build_failure():
    raise ValueError("no such judge")


def test_ways_take_turns_in_processes_of_their_own():
    found = run_in_turns({"slow": partial(build_clock, 10), "fast": partial(build_clock, 30)}, 3)
    order = sorted((turn["start"], turn["end"], name) for name, turns in found.items() for turn in turns)
    assert [name for *_, name in order] == ["slow", "fast"] * 3
    assert all(first[1] <= second[0] for first, second in pairwise(order))
    assert {name: {turn["process"] for turn in turns} for name, turns in found.items()}["slow"] != os.getpid()
    assert [turn["turn"] for turn in found["fast"]] == [0, 1, 2]
    assert all(0 < turn["peak_memory"] < 20e9 for turn in found["fast"])
    with pytest.raises(ValueError, match="no such judge"):
        run_in_turns({"broken": build_failure}, 1)


def test_ratios_are_those_of_neighbouring_turns():
    """A machine that becomes three times slower between two turns changes no ratio."""
    turn = {"tokens": 100, "battles": 4, "peak_memory": 2e9}
    results = {
        "a": [{**turn, "seconds": 1.0}, {**turn, "seconds": 3.0}],
        "b": [{**turn, "seconds": 0.5}, {**turn, "seconds": 1.5, "peak_memory": 3e9}],
    }
    found = summarise_turns(results, "a")
    assert found["b"]["tokens_ratio"] == found["b"]["battles_ratio"] == [2.0, 2.0, 2.0]
    assert found["a"]["tokens_ratio"] == [1.0, 1.0, 1.0] and found["b"]["peak_memory_gb"] == 3.0
    assert found["b"]["tokens_per_second"] == (200 + 100 / 1.5) / 2


@pytest.mark.parametrize("readings", ["own", "both"])
def test_the_notebooks_way_and_ours_give_the_same_answers(readings, members):
    """In float32, on a judge whose adapters matter; and both count the same tokens."""
    names, slices = [str(member) for member in members.values()], draw_slices(TEST, 12, 2)
    ways = [
        notebook.build_predictor(names, slices, readings, 2, "float32"),
        build_our_predictor(names, slices, readings, "always", "float32"),
        build_our_predictor(names, slices, readings, "never", "float32"),
    ]
    (theirs, *ours) = [[way(turn) for turn in range(2)] for way in ways]
    judge = Judge.from_pretrained(names, dtype="float32")
    expected = judge.predict(slices[0] + slices[1], readings=readings)["p_a"]
    for found in ours:
        answers = compare_answers(theirs, found)
        assert answers["largest_dp"] <= 1e-5 and answers["other_winners"] == 0 and answers["spread"] > 0.02
        assert [turn["tokens"] for turn in found] == [turn["tokens"] for turn in theirs]
        assert np.abs(np.concatenate([turn["p_a"] for turn in found]) - expected).max() <= 1e-5


def test_a_turns_battles_are_its_own():
    slices = draw_slices(TEST, 12, 3)
    ids = [row["id"] for rows in slices for row in rows]
    assert len(set(ids)) == 36
    with pytest.raises(ValueError, match=r"--count 60 --repeats 3: expected 180 battles in .*; found"):
        draw_slices(TEST, 60, 3)


def test_both_ways_train_on_the_same_battles_in_the_same_order(bases, demo_battles):
    """So that what is learned is the same, and only the padding goes."""
    base, slices = str(bases["bfloat16"].folder), [demo_battles.select(range(16))]
    lora = {"r": 4, "alpha": 4, "dropout": 0.0, "freeze_layers": 0}
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "learning_rate": 1e-3}
    shared = (base, slices, lora, 128, options, "bfloat16")
    builds = (notebook.build_trainer, build_our_trainer)
    found = [notebook.build_training(build, *shared)(0) for build in builds]
    assert found[0]["tokens"] == found[1]["tokens"] > 16 * 30 and found[0]["battles"] == found[1]["battles"] == 16
    assert abs(found[0]["loss"] - found[1]["loss"]) < 0.01 and found[0]["loss"] > 0.1


def test_the_curve_ends_where_reading_all_together_does(members, demo_battles):
    names, rows = [str(member) for member in members.values()], demo_battles.select(range(24)).to_list()
    found = build_selective(names, rows, "both")(0)
    judge = Judge.from_pretrained(names, dtype="float32")
    for share in (0.0, 0.4, 1.0):
        p_a = found["p_a"][SHARES.index(share)]
        expected = judge.predict(rows, readings="both", second_reading=share)["p_a"]
        assert np.abs(p_a - expected).max() <= 1e-5
    assert np.abs(found["p_a"][-1] - found["p_together"]).max() <= 1e-5
    assert found["seconds"] == sorted(found["seconds"])


def test_exponents_and_long_battles(demo_battles):
    assert _fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    rows = demo_battles.to_list()
    long = [_lengthen(rows, n, 500) for n in range(4)]
    assert all(len(row["response_b"]) >= 1500 for row in long) and len({row["prompt"][:40] for row in long}) == 4


@pytest.mark.parametrize("what", ["prediction", "prediction_avx2", "training", "second_readings", "growth"])
def test_the_documented_tables_are_the_measured_ones(what):
    results = REPOSITORY / "benchmarks" / "results"
    figures = json.loads((results / f"{what}.json").read_text())
    for table in format_figures(figures).split("\n\n"):
        assert table in PAGE, table
    assert f"benchmarks/results/{what}.json" in PAGE and OURS in (*figures.get("ways", ()), OURS)
    assert (results / f"{what}.png").is_file()
