"""Study of what the prompt is worth: 720 battles that the answers alone do not decide, in 18 languages.

    python -m benchmarks.studies.prompt_use --judge outputs/demo/ab outputs/demo/ba

Half of the battles are counterfactual pairs: two prompts with the same two answers in the same order, each of which is
better once. A judge that reads only the answers is right on exactly one battle of a pair. In the other half the losing
answer is as fluent and as long as the winning one. The battles (prompt_use.jsonl) were written for this project, and
nothing is trained on them. Prints a table and writes benchmarks/results/prompt_use.json.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
from datasets import Dataset

from benchmarks import RESULTS
from benchmarks.speed.machine import describe_machine
from modeling.data.battles import hide_prompts, load_battles
from modeling.evaluation.baselines import predict_tfidf
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import find_hits
from modeling.judging.judge import Judge
from modeling.runtime.files import write_json
from modeling.runtime.text_tables import format_table

BATTLES = Path(__file__).with_suffix(".jsonl")
TRAINING = BATTLES.with_name("prompt_training.jsonl")  # 1,800 more of the same kind, for whoever trains on them
FOLDS = 5
JUDGE, BLIND, TFIDF = "judge", "judge without prompts", "tf-idf of the answers"


def number_groups(battles: Dataset) -> np.ndarray:
    """Returns a group number for each battle: the two of a pair share it, since their answers are the same."""
    names = [pair or id for pair, id in zip(battles["counterfactual_pair"], battles["id"], strict=True)]
    return np.unique(names, return_inverse=True)[1]


def predict_without_prompts(battles: Dataset, groups: np.ndarray) -> np.ndarray:
    """Returns the TF-IDF baseline's probabilities, each battle's from folds without its group, shape (battles, 2)."""
    folds = np.random.default_rng(0).permutation(groups.max() + 1)[groups] % FOLDS
    p = np.empty((len(battles), 2))
    for fold in range(FOLDS):
        held_out = np.flatnonzero(folds == fold)
        p[held_out] = predict_tfidf(battles.select(np.flatnonzero(folds != fold)), battles.select(held_out))
    return p


def select_parts(battles: Dataset) -> dict[str, np.ndarray]:
    """Returns the rows of each part of the battles, as booleans."""
    paired, reasons = (
        np.array([pair is not None for pair in battles["counterfactual_pair"]]),
        np.array(battles["reason"][:]),
    )
    parts = {"all": np.full(len(battles), True), "counterfactual pairs": paired, "the others": ~paired}
    return parts | {f"decided by: {reason}": reasons == reason for reason in sorted(set(reasons))}


def measure(battles: Dataset, predictions: dict[str, np.ndarray]) -> dict[str, dict]:
    """Returns the accuracy of each way to predict on each part, with intervals by a bootstrap of pairs.

    Args:
        predictions: Probabilities by label, shape (battles, 2), by the name of the way.
    """
    labels, resampler = np.array(battles["label"][:]), Resampler(number_groups(battles))
    hits = np.column_stack([find_hits(p, labels) for p in predictions.values()]).astype(float)
    # What the prompt is worth is a difference on the same battles, and so has an interval of its own.
    columns = np.column_stack([hits, hits[:, 0] - hits[:, 1]])
    results = {}
    for part, rows in select_parts(battles).items():
        estimates = resampler.estimate_means(columns, rows[:, None], shares=range(len(predictions)))
        values = [[each.value, each.low, each.high] for each in estimates]
        results[part] = dict(zip([*predictions, "difference"], values, strict=True)) | {"battles": int(rows.sum())}
    return results


def format_results(results: dict[str, dict]) -> str:
    """Returns the table that is printed and documented."""
    ways = [name for name in next(iter(results.values())) if name != "battles"]
    rows = [("", "battles", *ways)]
    for part, result in results.items():
        rows.append((part, result["battles"], *("{:.3f} [{:.3f}, {:.3f}]".format(*result[name]) for name in ways)))
    return format_table(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", nargs="+", required=True, help="Members or a judge: folders or Hub ids.")
    parser.add_argument("--output", default=str(RESULTS / "prompt_use.json"), help="Result file.")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    battles, judge = load_battles(BATTLES), Judge.from_pretrained(arguments.judge)
    parts = ((JUDGE, battles), (BLIND, hide_prompts(battles)))
    p = {name: judge.predict(each, readings="both") for name, each in parts}
    predictions = {name: verdicts[["p_a", "p_b"]].to_numpy() for name, verdicts in p.items()}
    predictions[TFIDF] = predict_without_prompts(battles, number_groups(battles))
    results = measure(battles, predictions)
    print(format_results(results))
    write_json(Path(arguments.output), {"parts": results, "machine": describe_machine()})


if __name__ == "__main__":
    main()
