"""Accuracy of several judges on the same battles, part by part: what more training, or more battles, brought.

    python scripts/predict.py --judge JUDGE --readings both --battles BATTLES --output_dir DIR  # on both files
    python -m benchmarks.default_judge.curve --votes battles_test.parquet --judge NAME DEMO_DIR VOTES_DIR ...

It prints the table of docs/results.md and writes benchmarks/results/default_judge_curve.json.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from datasets import Dataset

from benchmarks import REPOSITORY
from benchmarks.default_judge.results import find_parts
from modeling.data.battles import DEMO_FOLDER, load_battles
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import find_decided, find_hits
from modeling.evaluation.report import align_verdicts, group_battles, read_labels, stack_probabilities
from modeling.evaluation.text_report import format_estimate
from modeling.judging.predictions import PREDICTIONS_FILE

RESULTS = REPOSITORY / "benchmarks" / "results" / "default_judge_curve.json"
# The parts that are shown, in order: of the demo's battles, and of the votes.
PARTS = {"demo": {"all": "demo", "in counterfactual pairs": "its pairs"}, "votes": {"human": "people", "llm": "models"}}


def measure_parts(battles: Dataset, folder: Path, shown: dict[str, str]) -> dict[str, dict]:
    """The accuracy on some parts of the battles, by the name in the table, of the predictions in a folder."""
    path = folder / PREDICTIONS_FILE
    p = stack_probabilities(align_verdicts(pd.read_parquet(path), battles, str(path)))
    labels, parts, found = read_labels(battles), find_parts(battles), {}
    for name, title in shown.items():
        rows = parts[name]
        resampler = Resampler(group_battles(battles.select(rows))[0])  # as in the tables of results.py
        hits, decided = find_hits(p[rows], labels[rows]), find_decided(labels[rows])
        (accuracy,) = resampler.estimate_means(hits[:, None], decided[:, None], shares=[0])
        found[title] = accuracy.to_dict()
    return found


def format_curve(rows: Sequence[dict]) -> str:
    """A Markdown table with a row per judge."""
    titles = [title for shown in PARTS.values() for title in shown.values()]
    lines = ["| | " + " | ".join(f"{title}, {rows[0][title]['count']}" for title in titles) + " |"]
    lines.append("|---" * (len(titles) + 1) + "|")
    lines += [
        f"| {row['name']} | " + " | ".join(format_estimate(row[title]) for title in titles) + " |" for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", required=True, help="Battles with a column verdict, human or llm.")
    parser.add_argument(
        "--judge",
        nargs=3,
        action="append",
        required=True,
        metavar=("NAME", "DEMO_DIR", "VOTES_DIR"),
        help="A row: its name, and the folders of the judge's predictions on the demo's test battles and on --votes.",
    )
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    files = {"demo": str(DEMO_FOLDER / "test.jsonl"), "votes": arguments.votes}
    battles = {name: load_battles(file, require_labels=True) for name, file in files.items()}
    rows = []
    for name, *folders in arguments.judge:
        row = {"name": name}
        for folder, (part, shown) in zip(folders, PARTS.items(), strict=True):
            row |= measure_parts(battles[part], Path(folder), shown)
        rows.append(row)
    print(format_curve(rows))
    arguments.output.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
