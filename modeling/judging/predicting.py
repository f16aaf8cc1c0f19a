"""What predict.py does around its judge: loads a cascade, keeps to a time budget, compares with known outcomes."""

import time

import numpy as np
import pandas as pd
from datasets import Dataset

from modeling.data.battles import LABELS
from modeling.encoding.encoder import CUT_COLUMNS
from modeling.evaluation.metrics import compute_accuracy, compute_baselines, compute_log_loss
from modeling.judging.cascade import Cascade
from modeling.judging.judge import Judge
from modeling.judging.predictions import RAW
from modeling.settings.arguments import PredictArguments, parse_duration

WRITING = 1.0  # seconds


def load_judges(arguments: PredictArguments) -> Judge | Cascade:
    """The judge, or the cascade that begins with it."""
    judge = Judge.from_pretrained(arguments.judge, **arguments.loading)
    if not arguments.cascade:
        return judge
    later = [Judge.from_pretrained(name, **arguments.loading) for name in arguments.cascade]
    return Cascade([judge, *later], arguments.cascade_shares)


def find_deadline(time_budget: str, start: float) -> float:
    """When to have read all, on the clock of `time.monotonic()`: a part of the budget is kept for writing.

    Raises:
        ValueError: If loading has taken all of it.
    """
    seconds = parse_duration("--time_budget", time_budget)
    spent, kept = time.monotonic() - start, max(WRITING, 0.01 * seconds)
    if spent + kept >= seconds:
        raise ValueError(
            f"--time_budget {time_budget}: expected more time than it takes to load battles and judge ({spent:.1f} s) "
            f"and to write verdicts ({kept:.1f} s); found {seconds:.1f} s. Give more."
        )
    return start + seconds - kept


def compare(verdicts: pd.DataFrame, battles: Dataset) -> str:
    """A table: accuracy and log loss of the judge, on cut battles and on whole ones, of each reading and baseline."""
    labels = np.array(battles["label"][:])
    p = verdicts[[f"p_{label}" for label in LABELS]].to_numpy()
    everything = np.full(len(p), True)
    rows = [("judge", p, everything)]
    if RAW in verdicts:
        rows.append(("judge, not calibrated", np.column_stack([verdicts[RAW], 1 - verdicts[RAW]]), everything))
    cut = verdicts[list(CUT_COLUMNS)].to_numpy().any(axis=1)
    if cut.any() and not cut.all():
        rows += [("judge, cut battles", p, cut), ("judge, whole battles", p, ~cut)]
    for name in (name for name in verdicts if name.startswith("p_a_")):
        rows.append((name, np.column_stack([verdicts[name], 1 - verdicts[name]]), verdicts[name].notna().to_numpy()))
    lines = [f"{'':<24}{'accuracy [95%]':<34}log loss [95%]"]
    for name, each, part in rows:
        accuracy, log_loss = (compute(each[part], labels[part]) for compute in (compute_accuracy, compute_log_loss))
        lines.append(f"{name:<24}{accuracy!s:<34}{log_loss}")
    baselines = compute_baselines(battles["response_a"], battles["response_b"], labels)
    return "\n".join([*lines, *(f"{name:<24}{accuracy}" for name, accuracy in baselines.items())])
