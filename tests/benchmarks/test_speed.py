"""Ways run in alternating rounds, each in its own process, and give the same answers: only then do times compare."""

import importlib
import json
import os
import re
import time
from functools import partial
from itertools import pairwise

import numpy as np
import pytest

from benchmarks import REPOSITORY, RESULTS
from benchmarks.speed import notebook
from benchmarks.speed.arguments import RECIPE, BenchmarkArguments
from benchmarks.speed.growth import _fit_exponent, _lengthen
from benchmarks.speed.prediction import build_our_predictor, compare_answers
from benchmarks.speed.rounds import run_in_rounds, summarise_rounds
from benchmarks.speed.second_pass import SHARES, build_selective
from benchmarks.speed.tables import format_results
from benchmarks.speed.training import build_our_trainer
from benchmarks.speed.ways import OURS, draw_slices
from modeling.judging import loading
from modeling.judging.judge import Judge
from modeling.settings import parsing
from modeling.settings.parsing import parse_arguments
from tests.helpers import SAMPLES

TEST = str(SAMPLES / "test.jsonl")
PAGES = "\n".join(
    path.read_text(encoding="utf-8") for path in [REPOSITORY / "README.md", *REPOSITORY.glob("docs/*.md")]
)


def build_clock(tokens):
    """A way that reports when and in which process it ran."""
    process = os.getpid()

    def run(number):
        assert os.getpid() == process
        start = time.monotonic()
        time.sleep(0.02)
        found = {"start": start, "end": time.monotonic(), "process": process, "round": number}
        return found | {"seconds": 0.02, "tokens": tokens, "battles": 1}

    return run


def build_failure():
    raise ValueError("no such judge")


def test_ways_alternate_in_processes_of_their_own():
    found = run_in_rounds({"slow": partial(build_clock, 10), "fast": partial(build_clock, 30)}, 3)
    order = sorted((each["start"], each["end"], name) for name, rounds in found.items() for each in rounds)
    assert [name for *_, name in order] == ["slow", "fast"] * 3
    assert all(first[1] <= second[0] for first, second in pairwise(order))
    processes = {name: {each["process"] for each in rounds} for name, rounds in found.items()}
    assert all(map(len, processes.values())) and len(processes["slow"] | processes["fast"] | {os.getpid()}) == 3
    assert [each["round"] for each in found["fast"]] == [0, 1, 2]
    assert all(0 < each["peak_memory"] < 20e9 for each in found["fast"])
    with pytest.raises(ValueError, match="no such judge"):
        run_in_rounds({"broken": build_failure}, 1)


def test_ratios_are_taken_within_a_round():
    """A machine that becomes three times slower between two rounds changes no ratio."""
    each = {"tokens": 100, "battles": 4, "peak_memory": 2e9}
    results = {
        "a": [{**each, "seconds": 1.0}, {**each, "seconds": 3.0}],
        "b": [{**each, "seconds": 0.5}, {**each, "seconds": 1.5, "peak_memory": 3e9}],
    }
    found = summarise_rounds(results, "a")
    assert found["b"]["tokens_ratio"] == found["b"]["battles_ratio"] == [2.0, 2.0, 2.0]
    assert found["a"]["tokens_ratio"] == [1.0, 1.0, 1.0] and found["b"]["peak_memory_gb"] == 3.0
    assert found["b"]["tokens_per_second"] == (200 + 100 / 1.5) / 2


@pytest.mark.parametrize("readings", ["own", "both"])
def test_the_notebooks_way_and_ours_give_the_same_answers(readings, members):
    """In float32, with a judge whose adapters matter. Both also count the same tokens."""
    names, slices = [str(member) for member in members.values()], draw_slices(TEST, 12, 2)
    ways = [
        notebook.build_predictor(names, slices, readings, 2, "float32"),
        build_our_predictor(names, slices, readings, "always", "float32"),
        build_our_predictor(names, slices, readings, "never", "float32"),
    ]
    (theirs, *ours) = [[way(number) for number in range(2)] for way in ways]
    judge = Judge.from_pretrained(names, dtype="float32")
    expected = judge.predict(slices[0] + slices[1], readings=readings)["p_a"]
    for found in ours:
        answers = compare_answers(theirs, found)
        assert answers["largest_dp"] <= 1e-5 and answers["other_winners"] == 0 and answers["spread"] > 0.02
        assert [each["tokens"] for each in found] == [each["tokens"] for each in theirs]
        assert np.abs(np.concatenate([each["p_a"] for each in found]) - expected).max() <= 1e-5


def test_rounds_do_not_overlap():
    slices = draw_slices(TEST, 12, 3)
    ids = [row["id"] for rows in slices for row in rows]
    assert len(set(ids)) == 36
    with pytest.raises(ValueError, match=r"--count 60 --repeats 3: expected 180 battles in .*; found"):
        draw_slices(TEST, 60, 3)


def test_both_ways_train_on_the_same_battles_in_the_same_order(bases, sample_battles):
    """They learn the same; only the padding is gone."""
    base, slices = str(bases["bfloat16"].folder), [sample_battles.select(range(16))]
    lora = {"r": 4, "alpha": 4, "dropout": 0.0, "freeze_layers": 0}
    options = {"gradient_accumulation_steps": 2, "num_train_epochs": 1, "learning_rate": 1e-3}
    shared = (base, slices, lora, 128, options, "bfloat16")
    builds = (notebook.build_trainer, build_our_trainer)
    found = [notebook.build_training(build, *shared)(0) for build in builds]
    assert found[0]["tokens"] == found[1]["tokens"] > 16 * 30 and found[0]["battles"] == found[1]["battles"] == 16
    assert abs(found[0]["loss"] - found[1]["loss"]) < 0.01 and found[0]["loss"] > 0.1


def test_the_curve_ends_at_the_result_of_every_pass_at_once(members, sample_battles, monkeypatch):
    monkeypatch.setattr(loading, "choose_dtype", lambda *_, **__: "float32")  # bf16 differs between packs
    names, rows = [str(member) for member in members.values()], sample_battles.select(range(24)).to_list()
    found = build_selective(names, rows, "both")(0)
    judge = Judge.from_pretrained(names, dtype="float32")
    for share in (0.0, 0.4, 1.0):
        p_a = found["p_a"][SHARES.index(share)]
        expected = judge.predict(rows, readings="both", second_reading=share)["p_a"]
        assert np.abs(p_a - expected).max() <= 1e-5
    assert np.abs(found["p_a"][-1] - found["p_together"]).max() <= 1e-5
    assert found["seconds"] == sorted(found["seconds"])


def test_exponents_and_long_battles(sample_battles):
    assert _fit_exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    rows = sample_battles.to_list()
    long = [_lengthen(rows, n, 500) for n in range(4)]
    assert all(len(row["response_b"]) >= 1500 for row in long) and len({row["prompt"][:40] for row in long}) == 4


@pytest.mark.parametrize("what", ["prediction", "prediction_avx2", "training", "second_readings", "growth"])
def test_the_published_tables_are_the_measured_ones(what):
    results = json.loads((RESULTS / f"{what}.json").read_text())
    for table in format_results(results).split("\n\n"):
        assert table in PAGES, table
    assert f"{what}.json" in PAGES and OURS in (*results.get("ways", ()), OURS)
    assert (RESULTS / f"{what}.png").is_file()


def test_the_default_recipe_parses_and_another_file_keeps_its_judge(monkeypatch):
    """Timing other battles still takes the recipe's judge and base."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr(parsing, "check_paths", lambda arguments: None)
    options = {"verb": "benchmark", "default_recipe": RECIPE}
    (found,) = parse_arguments(BenchmarkArguments, **options, argv=["--battles", "mine.jsonl"])
    assert (found.battles, found.judge) == (["mine.jsonl"], ["outputs/demo/ab", "outputs/demo/ba"])
    with pytest.raises(ValueError, match="expected one file for prediction; found 2"):
        parse_arguments(BenchmarkArguments, **options, argv=["--battles", "mine.jsonl", "other.jsonl"])


COMMANDS = ["speed", "speed.app", "speed.checkpoints", "speed.evaluation", "speed.gpu", "speed.members"]
COMMANDS += ["speed.profile_pack", "studies.study", "studies.pseudolabels", "studies.selection"]
PACKAGES = ("speed", "speed.gpu")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_listed_and_its_module_imports(name):
    """benchmarks/README.md lists it; importing it finds all that it needs."""
    listed = (REPOSITORY / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert re.search(rf"python -m benchmarks\.{re.escape(name)}[ `]", listed)
    module = importlib.import_module(f"benchmarks.{name}{'.__main__' if name in PACKAGES else ''}")
    assert callable(module.main) and f"python -m benchmarks.{name}" in module.__doc__
