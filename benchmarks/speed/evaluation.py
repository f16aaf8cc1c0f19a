"""What a report of 100,000 predictions costs: seconds of each step and the memory, on made-up battles.

    python benchmarks/evaluation.py                     # writes benchmarks/evaluation.json

The battles have a prompt each, ten languages, sources and quarters of length, twenty models and four readings, so that
every table of the report is there; the 1,000 draws are those of the default.
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

from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.plots import draw_figures
from modeling.evaluation.report import build_report, group_prompts

REPOSITORY = Path(__file__).resolve().parent.parent
BATTLES, DRAWS = 100_000, 1000
WORDS = (
    "rain",
    "mountains",
    "answer",
    "question",
    "people",
    "judge",
    "prefer",
    "shorter",
    "longer",
    "reason",
    "battle",
)


def build_inputs(rng: np.random.Generator) -> tuple[pd.DataFrame, Dataset]:
    """Battles whose outcomes follow from a hidden quality, and predictions that know half of it."""
    prompts = [f"{number}: {' '.join(rng.choice(WORDS, 8))}" for number in range(BATTLES)]
    odds = rng.normal(size=BATTLES)
    a_wins = rng.random(BATTLES) < 1 / (1 + np.exp(-odds))
    label = np.where(rng.random(BATTLES) < 0.1, 0.5, a_wins.astype(float))
    models = rng.permuted(np.tile(np.arange(20), (BATTLES, 1)), axis=1)[:, :2]
    battles = {
        "id": [f"battle-{number}" for number in range(BATTLES)],
        "prompt": prompts,
        **{f"response_{side}": ["x" * n for n in rng.integers(1, 900, BATTLES)] for side in "ab"},
        "label": np.column_stack([label, 1 - label]).tolist(),
        **{name: [f"{name} {n}" for n in rng.integers(0, 10, BATTLES)] for name in ("language", "source")},
        **{f"model_{side}": [f"model {n}" for n in models[:, column]] for column, side in enumerate("ab")},
    }
    readings = {
        f"p_a_{m}_{o}": _squash(odds / 2 + rng.normal(size=BATTLES) / 2) for m in ("x", "y") for o in ("ab", "ba")
    }
    verdicts = pd.DataFrame({"id": battles["id"], "p_a": np.mean(list(readings.values()), axis=0), **readings})
    cuts = rng.random((BATTLES, len(CUT_COLUMNS))) < 0.05
    return verdicts.assign(**dict(zip(CUT_COLUMNS, cuts.astype(int).T, strict=True))), Dataset.from_dict(battles)


def _squash(odds: np.ndarray) -> np.ndarray:
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
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        draw_figures(report, Path(folder))
    seconds["figures"] = time.perf_counter() - start
    figures = {
        "battles": BATTLES,
        "prompts": report["prompts"],
        "grouping": grouping,
        "draws": DRAWS,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "cores": len(os.sched_getaffinity(0)),
        "load": round(os.getloadavg()[0], 1),
    }
    text = json.dumps(figures, indent=2)
    (REPOSITORY / "benchmarks" / "evaluation.json").write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
