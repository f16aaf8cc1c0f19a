"""Times the evaluation of 100,000 synthetic predictions, with style and few votes: seconds of each step, and memory.

    python -m benchmarks.speed.evaluation               # writes benchmarks/results/evaluation.json

Every battle has its own prompt. There are ten languages, ten sources, twenty models, four passes and all features of
style, so that the report has all of its tables. A twentieth of the battles has a vote. The 1,000
bootstrap draws are the default.
"""

import json
import os
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from benchmarks import RESULTS
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.plots import draw_figures
from modeling.evaluation.report import build_report, combine_votes, group_prompts, remove_style

BATTLES, VOTES, DRAWS = 100_000, 5000, 1000
WORDS = ("rain", "mountains", "answer", "question", "people", "judge")
WORDS += ("prefer", "shorter", "longer", "reason", "battle")


def build_inputs(rng: np.random.Generator) -> tuple[pd.DataFrame, Dataset]:
    """Returns predictions and battles. Outcomes follow from hidden odds, of which the predictions know a noisy half."""
    prompts = [f"{number}: {' '.join(rng.choice(WORDS, 8))}" for number in range(BATTLES)]
    odds = rng.normal(size=BATTLES)
    a_wins = rng.random(BATTLES) < 1 / (1 + np.exp(-odds))
    label = np.where(rng.random(BATTLES) < 0.1, 0.5, a_wins.astype(float))
    models = rng.permuted(np.tile(np.arange(20), (BATTLES, 1)), axis=1)[:, :2]
    battles = {
        "id": [f"battle-{number}" for number in range(BATTLES)],
        "prompt": prompts,
        **{f"response_{side}": _write_answers(rng) for side in "ab"},
        "label": np.column_stack([label, 1 - label]).tolist(),
        **{name: [f"{name} {n}" for n in rng.integers(0, 10, BATTLES)] for name in ("language", "source")},
        **{f"model_{side}": [f"model {n}" for n in models[:, column]] for column, side in enumerate("ab")},
    }
    passes = {
        f"p_a_{m}_{o}": _squash(odds / 2 + rng.normal(size=BATTLES) / 2) for m in ("x", "y") for o in ("ab", "ba")
    }
    verdicts = pd.DataFrame({"id": battles["id"], "p_a": np.mean(list(passes.values()), axis=0), **passes})
    cuts = rng.random((BATTLES, len(CUT_COLUMNS))) < 0.05
    return verdicts.assign(**dict(zip(CUT_COLUMNS, cuts.astype(int).T, strict=True))), Dataset.from_dict(battles)


def _write_answers(rng: np.random.Generator) -> list[str]:
    """Answers of random lengths with random headers, bold, lists and code blocks."""
    marks = ("\n# head\n", " **bold** ", "\n- item\n", "\n```\ncode\n```\n")
    counts = zip(rng.integers(1, 900, BATTLES), rng.poisson(1, (BATTLES, len(marks))), strict=True)
    return ["x" * n + "".join(mark * times for mark, times in zip(marks, row, strict=True)) for n, row in counts]


def _squash(odds: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-odds))


def main() -> None:
    verdicts, battles = build_inputs(np.random.default_rng(0))
    seconds = {}
    start = time.perf_counter()
    groups, grouping = group_prompts(battles["prompt"][:])
    seconds["of which prompts are grouped"] = time.perf_counter() - start
    start = time.perf_counter()
    Resampler(groups, DRAWS)
    seconds["of which prompts are drawn"] = time.perf_counter() - start
    start, used = time.perf_counter(), time.process_time()
    report = build_report(verdicts, battles, draws=DRAWS)
    seconds["report"] = time.perf_counter() - start
    seconds["report, of all cores together"] = time.process_time() - used
    start, used = time.perf_counter(), time.process_time()
    combine_votes(verdicts, battles, battles.select(range(VOTES)), draws=DRAWS)
    remove_style(verdicts, battles)
    seconds["votes and style control"] = time.perf_counter() - start
    seconds["votes and style control, of all cores together"] = time.process_time() - used
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        draw_figures(report, Path(folder))
    seconds["figures"] = time.perf_counter() - start
    results = {
        "battles": BATTLES,
        "prompts": report["prompts"],
        "votes": VOTES,
        "grouping": grouping,
        "draws": DRAWS,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    text = json.dumps(results, indent=2)
    (RESULTS / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
