"""What only README.md says: its tree, its scripts, and its table of results."""

import json
import re

import pytest

from modeling import PACKAGES
from modeling.data.battles import load_battles
from modeling.evaluation.text_report import format_estimate
from tests.helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "benchmarks" / "results"


def read_page(name: str) -> str:
    return (REPOSITORY / "docs" / f"{name}.md").read_text(encoding="utf-8")


def list_rows(text: str, heading: str) -> list[list[str]]:
    """The cells of the table under a heading, without its first two lines."""
    lines = [line for line in text.split(f"\n## {heading}\n")[1].split("\n## ")[0].splitlines() if line[:1] == "|"]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_tree_has_the_ten_packages_and_every_script():
    tree = README.split("## The tree")[1].split("```")[1]
    assert tuple(re.findall(r"^modeling/(\w+)/ ", tree, re.M)) == PACKAGES
    verbs = re.search(r"scripts/ +one verb per file: (.*)", tree)[1].split(", ")
    scripts = {path.stem for path in (REPOSITORY / "scripts").glob("*.py")}
    assert set(verbs) == scripts == set(re.findall(r"^\| \[`scripts/(\w+)\.py`\]", README, re.M))


def test_the_front_page_is_a_front_page():
    assert len(README.splitlines()) <= 250


def format_lead(lead: dict) -> str:
    return "{value:+.3f} [{low:+.3f}, {high:+.3f}]".format(**lead)


def measure_rate(turns: list[dict]) -> float:
    """Requests per second of all turns together."""
    return sum(turn["requests"] for turn in turns) / sum(turn["seconds"] for turn in turns)


def test_the_results_are_the_measured_ones():
    study, prediction, training = (
        json.loads((RESULTS / f"{name}.json").read_text()) for name in ("study", "prediction", "training")
    )
    best = list(study["judges"].values())[-1]
    arms = study["tables"]["heads and orders"]
    swapped = arms["two members, both orders (four readings)"]["against"]["two members, each its own order"]
    ours = prediction["ways"]["ours"]
    gpu = json.loads((RESULTS / "gpu.json").read_text())["prediction"]
    gpu_training = json.loads((RESULTS / "gpu_training.json").read_text())["training"]
    parts = json.loads((RESULTS / "default_judge.json").read_text())["parts"]
    demo, votes = parts["demo"], parts["votes"]
    app = json.loads((RESULTS / "app.json").read_text())
    expected = [
        format_estimate(demo["all"]["accuracy"]),
        format_lead(demo["all"]["baselines"]["tf-idf"]["difference"]),
        format_estimate(demo["in counterfactual pairs"]["accuracy"]),
        format_estimate(votes["human"]["accuracy"]),
        format_lead(votes["human"]["baselines"]["longer wins"]["difference"]),
        format_estimate(votes["llm"]["accuracy"]),
        format_estimate(votes["all"]["ece"]),
        format_estimate(best["before"]["accuracy"]),
        format_estimate(best["after"]["ece"]),
        format_estimate(study["baselines"]["tf-idf"]["accuracy"]),
        format_estimate(study["baselines"]["longer wins"]["accuracy"]),
        "{:+.3f} [{:+.3f}, {:+.3f}]".format(*swapped["accuracy"]),
        "{:.2f} ({:.2f} to {:.2f})".format(*ours["tokens_ratio"]),
        f"{ours['answers']['largest_dp']:.3f}",
        f"{gpu['round 2: ours, bf16, packed_flex']['times_notebook']:.2f}",
        f"{gpu_training['ours, 8bit']['times_notebook']:.2f}",
        f"{training['ways']['ours']['tokens_ratio'][0]:.2f}",
        f"{measure_rate(app['now']) / measure_rate(app['before']):.2f}",
        "3.10 GB",  # of no file: docs/training.md has its command
        "0",
    ]
    assert [cells[1] for cells in list_rows(README, "Results")] == expected
    assert "| zero3, 2 processes | none | 4 | 2.14 | 3.10 |" in read_page("training")
    assert "with ZeRO-3, estimated 2.14 GB | 3.10 GB |" in README


def test_the_apps_load_is_the_measured_one():
    """The table of docs/app.md, two turns each."""
    app = json.loads((RESULTS / "app.json").read_text())
    rows = list_rows(read_page("app"), "Load")
    fields = (
        "requests_per_second",
        "latency_median_seconds",
        "latency_95_percent_seconds",
        "one_client_median_seconds",
    )
    for row, field, digits in zip(rows, fields, (2, 1, 1, 2), strict=False):
        for cell, name in zip(row[1:3], ("before", "now"), strict=True):
            assert cell == ", ".join(f"{turn[field]:.{digits}f}" for turn in app[name])
    memory = [max(app[name], key=lambda turn: turn["memory_mb"]["end"])["memory_mb"] for name in ("before", "now")]
    assert rows[4][1:3] == [f"{each['after_a_third']:,} and {each['end']:,}" for each in memory]
    assert all(turn["errors"] == 0 for turns in (app["before"], app["now"]) for turn in turns)


def test_a_goal_that_was_missed_is_called_so():
    missed = {cells[2].split(",")[0] for cells in list_rows(README, "Results") if "missed" in cells[2]}
    assert missed == {"0.80", "0.70", "0.68", "0.03", "1.8", "0.01", "4", "within 25%"}


def test_memory_is_that_of_the_page_on_training():
    rows = list_rows(read_page("training"), "Memory")
    measured = {cells[2]: cells[5] for cells in rows if cells[1] == "cpu"}
    computed = {tuple(cells[:2]): cells[2] for cells in rows if cells[0] != "SmolLM2-135M"}
    for base, *sizes in list_rows(README, "Bases and memory"):
        base = base.split(",")[0]
        for quantization, size in zip(("8bit", "4bit", "none"), sizes, strict=True):
            known = measured.get(quantization, "") if base == "SmolLM2-135M" else computed[base, quantization]
            assert size == known, (base, quantization)


def test_machines_are_those_of_the_page_on_performance():
    ours = [cells[0] for cells in list_rows(README, "Machines")]
    theirs = [cells[0] for cells in list_rows(read_page("performance"), "Precision")]
    assert all(theirs[place].startswith(name) for place, name in enumerate(ours)) and len(ours) == 6


def test_battles_are_packaged_with_the_code():
    assert load_battles(REPOSITORY / "modeling/data/demo/train.jsonl").num_rows == 2268


@pytest.mark.parametrize("folder", ["demo", "gemma2-9b"])
def test_a_recipe_says_the_command_that_runs_it(folder):
    for path in (REPOSITORY / "configs" / folder).glob("*.yaml"):
        header = path.read_text(encoding="utf-8").split("\n\n")[0]
        assert f"scripts/{path.stem}.py" in header, path
