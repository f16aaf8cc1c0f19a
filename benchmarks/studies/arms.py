"""Scores the arms of a study: accuracy and log loss with bootstrap intervals over prompts, and paired differences.

It must not know what is studied.
"""

from collections.abc import Iterable, Mapping

import numpy as np

from modeling.evaluation.bootstrap import Resampler


def measure_arms(
    found: Mapping[str, tuple[int, np.ndarray]],
    pairs: Iterable[tuple[str, str]],
    truth: np.ndarray,
    resampler: Resampler,
) -> dict:
    """Returns each arm's metrics, averaged over its seeds, and the differences of the arms in `pairs`.

    Args:
        found: By arm, the number of training battles and the test probabilities, shape (seeds, battles, labels).
        pairs: Two arms each; the difference is the first minus the second.
        truth: Index of the label that won, shape (battles,).
        resampler: Draws prompts.

    Returns:
        By arm: battles, scored, accuracy_by_seed; accuracy and log_loss as [value, low, high]; against, the differences
        by the other arm's name.
    """

    def estimate(values: np.ndarray) -> list[float]:
        (mean,) = resampler.estimate_means(values[:, None].astype(float))
        return [round(number, 4) for number in (mean.value, mean.low, mean.high)]

    # Averaged over the seeds per battle, so that an interval covers the choice of prompts and not of seeds.
    values = {
        "accuracy": {arm: (p.argmax(-1) == truth).mean(0) for arm, (_, p) in found.items()},
        "log_loss": {arm: -np.log(p[:, np.arange(len(truth)), truth]).mean(0) for arm, (_, p) in found.items()},
    }
    results = {arm: {"battles": size, "scored": len(truth)} for arm, (size, _) in found.items()}
    for arm, (_, p) in found.items():
        results[arm]["accuracy_by_seed"] = (p.argmax(-1) == truth).mean(1).round(4).tolist()
        results[arm] |= {metric: estimate(by_arm[arm]) for metric, by_arm in values.items()}
    for arm, other in pairs:
        differences = {metric: estimate(by_arm[arm] - by_arm[other]) for metric, by_arm in values.items()}
        results[arm].setdefault("against", {})[other] = differences
    return results
