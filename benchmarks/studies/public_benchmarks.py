"""How does a judge do on public benchmarks? On the part of LLMBar that is at hand: its battles among the votes.

    python -m benchmarks.studies.public_benchmarks --votes battles_test.parquet --work_dir outputs/public_benchmarks

Writes them in LLMBar's own format to --work_dir, reads them as `evaluate.py --benchmark llmbar` does, and prints the
table of docs/results.md. Writes benchmarks/results/public_benchmarks.json. Votes whose prompts the judge was trained on
must not be among them.
"""

import argparse
import json
import re
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset

from benchmarks import RESULTS
from modeling.data.battles import load_battles
from modeling.data.benchmarks import load_benchmark
from modeling.evaluation.benchmarks import BASELINES, FLIPS, JUDGE, score_benchmark
from modeling.evaluation.bootstrap import format_estimate
from modeling.judging.judge import Judge, describe_members
from modeling.judging.ranking import score_all_pairs

SOURCE = re.compile(r"llmbar::llmbar/(Natural|Adversarial/\w+)")  # the other parts of that source are not LLMBar's own


def write_llmbar(votes: Dataset, folder: Path) -> None:
    """Writes the votes that come from LLMBar as its authors do, one dataset.json for each subset."""
    parts: dict[str, list[dict]] = {}
    for vote in votes:
        if found := SOURCE.fullmatch(vote["source"]):
            label = 1 if vote["label"][0] > 0.5 else 2
            row = {"input": vote["prompt"], "output_1": vote["response_a"], "output_2": vote["response_b"]}
            parts.setdefault(found[1], []).append(row | {"label": label})
    for name, rows in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "dataset.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")


def format_table(found: Mapping) -> str:
    """Returns a Markdown table with a row per number of a benchmark."""
    names = (JUDGE, *BASELINES, FLIPS)
    lines = [f"| {found['name']} | questions | {' | '.join(names)} |", "|---" * (len(names) + 2) + "|"]
    for row in found["rows"]:
        cells = [row["name"], f"{row[JUDGE]['count']:,}", *(format_estimate(row[name]) for name in names)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--votes", required=True, help="Battles with a column source.")
    parser.add_argument("--judge", nargs="+", default=["default"], help="Members or judges.")
    parser.add_argument("--work_dir", type=Path, required=True, help="For the benchmarks' files.")
    parser.add_argument("--output", type=Path, default=RESULTS / "public_benchmarks.json", help="Result file.")
    arguments = parser.parse_args()
    write_llmbar(load_battles(arguments.votes, require_labels=True), arguments.work_dir / "LLMBar")
    battles = load_benchmark("llmbar", str(arguments.work_dir / "LLMBar"))
    judge = Judge.from_pretrained(arguments.judge)
    verdicts = judge.predict(battles, progress_dir=arguments.work_dir / "progress")
    found = score_benchmark("llmbar", battles, verdicts, score_all_pairs)
    print(format_table(found))
    results = {"members": describe_members(judge.members), "benchmarks": [found]}
    arguments.output.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
