"""Measures the default judge beside baselines, on the demo's battles and on real votes, part by part.

    python -m benchmarks.default_judge.results --votes battles_test.parquet --train outputs/default/train.parquet \\
        --work_dir outputs/default/results

It prints the tables of docs/results.md and writes benchmarks/results/default_judge.json.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from benchmarks import REPOSITORY
from modeling.data.battles import DEMO_FOLDER, TEXTS, hide_prompts, load_battles
from modeling.evaluation.baselines import ANSWERS_ALONE, TFIDF
from modeling.evaluation.report import PAIR, align_verdicts, build_report
from modeling.evaluation.text_report import format_estimate
from modeling.judging.judge import Judge

RESULTS = REPOSITORY / "benchmarks" / "results" / "default_judge.json"
BASELINES = ("always a", "longer wins", TFIDF, ANSWERS_ALONE)
LEAST_BATTLES = 100
METRICS = ("accuracy", "log_loss", "ece")


def measure_part(battles: Dataset, verdicts: Mapping[str, pd.DataFrame], rows: np.ndarray, train: Dataset) -> dict:
    """Accuracy, log loss and ECE on some of the battles, and each baseline's accuracy with the judge's lead over it."""
    part = battles.select(rows)
    read, blind = (verdicts[name].iloc[rows] for name in ("read", "hidden"))
    report = build_report(read, part, train_battles=train, answers_alone=blind)
    baselines = {name: report["baselines"][name] for name in BASELINES}
    return {name: report[name] for name in METRICS} | {"battles": report["decided"], "baselines": baselines}


def drop_repeats(battles: Dataset) -> Dataset:
    """Returns each battle once, the first time that it comes: some are read in several rounds."""
    first: dict[tuple, int] = {}
    for row, texts in enumerate(zip(*(battles[name][:] for name in TEXTS), strict=True)):
        first.setdefault(texts, row)
    return battles.select(first.values())


def find_parts(battles: Dataset) -> dict[str, np.ndarray]:
    """Row numbers of all battles, and of the parts that are told apart."""
    parts = {"all": np.arange(len(battles))}
    if PAIR in battles.column_names:
        paired = np.array([bool(pair) for pair in battles[PAIR][:]])
        parts |= {"in counterfactual pairs": np.flatnonzero(paired), "by themselves": np.flatnonzero(~paired)}
    for column in ("verdict", "language"):
        values = np.array(battles[column][:] if column in battles.column_names else [])
        parts |= {str(value): np.flatnonzero(values == value) for value in sorted(set(values.tolist()))}
    return parts


def read_battles(judge: Judge, battles: Dataset, work_dir: Path, name: str) -> dict[str, pd.DataFrame]:
    """The judge's verdicts with and without the prompts; those of an earlier run are taken from its files."""
    marks, found = "-".join(member.fingerprint[:8] for member in judge.members), {}
    for kind, rows in (("read", battles), ("hidden", hide_prompts(battles))):
        path = work_dir / f"{name}-{kind}-{marks}.parquet"
        if not path.is_file():
            judge.predict(rows, progress_dir=work_dir / f".{name}-{kind}-{marks}").to_parquet(path)
        found[kind] = align_verdicts(pd.read_parquet(path), battles, str(path))
    return found


def select_parts(parts: Mapping[str, Mapping]) -> dict[str, Mapping]:
    """The parts that are large enough to show."""
    return {name: found for name, found in parts.items() if found["battles"] >= LEAST_BATTLES}


def format_parts(parts: Mapping[str, Mapping]) -> str:
    """A Markdown table with a row per part."""
    header = "| | battles | accuracy [95%] | lead over longer wins | over TF-IDF | over answers alone |"
    lines = [header, "|---" * 6 + "|"]
    for name, found in parts.items():
        leads = [found["baselines"][other]["difference"] for other in BASELINES[1:]]
        cells = [name, f"{found['battles']:,}", *map(format_estimate, (found["accuracy"], *leads))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def format_metrics(parts: Mapping[str, Mapping]) -> str:
    """A Markdown table of log loss and ECE, and the baselines' own accuracies."""
    lines = ["| | log loss [95%] | ECE [95%] | longer wins | TF-IDF | answers alone |", "|---" * 6 + "|"]
    for name, found in parts.items():
        others = [f"{found['baselines'][other]['accuracy']['value']:.3f}" for other in BASELINES[1:]]
        cells = [name, format_estimate(found["log_loss"]), format_estimate(found["ece"]), *others]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", nargs="+", default=["default"])
    parser.add_argument("--votes", required=True, help="Battles with a column verdict, human or llm.")
    parser.add_argument("--train", required=True, help="The judge's training battles, for TF-IDF.")
    parser.add_argument("--work_dir", type=Path, required=True, help="For the verdicts, so that a second run is fast.")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    judge = Judge.from_pretrained(arguments.judge)
    train, results = drop_repeats(load_battles(arguments.train, require_labels=True)), {}
    for name, file in (("demo", str(DEMO_FOLDER / "test.jsonl")), ("votes", arguments.votes)):
        battles = load_battles(file, require_labels=True)
        verdicts = read_battles(judge, battles, arguments.work_dir, name)
        parts = find_parts(battles)
        results[name] = {part: measure_part(battles, verdicts, rows, train) for part, rows in parts.items()}
        shown = select_parts(results[name])
        print(f"{name}\n\n{format_parts(shown)}\n\n{format_metrics(shown)}\n")
    members = {member.name: member.fingerprint for member in judge.members}
    arguments.output.write_text(json.dumps({"members": members, "parts": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
