"""What the arms of a study are worth: figures with intervals by a bootstrap of prompts, and paired differences.

For benchmarks/pseudolabels.py and benchmarks/study.py; it must not know what is studied.
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
    """Figures of each arm, the mean over its seeds; differences of those in `pairs`, first minus second.

    Args:
        found: By arm, its training battles and the probabilities of the scored ones, shape (seeds, battles, labels).
        truth: The label that won, shape (battles,).

    Returns:
        By arm: battles, scored, accuracy_by_seed; accuracy and log_loss as [value, low, high]; against, the differences
        by the other arm's name.
    """

    def estimate(values: np.ndarray) -> list[float]:
        (of_all,) = resampler.estimate_means(values[:, None].astype(float))
        return [round(number, 4) for number in (of_all.value, of_all.low, of_all.high)]

    values = {
        "accuracy": {arm: (p.argmax(-1) == truth).mean(0) for arm, (_, p) in found.items()},
        "log_loss": {arm: -np.log(p[:, np.arange(len(truth)), truth]).mean(0) for arm, (_, p) in found.items()},
    }
    figures = {arm: {"battles": size, "scored": len(truth)} for arm, (size, _) in found.items()}
    for arm, (_, p) in found.items():
        figures[arm]["accuracy_by_seed"] = (p.argmax(-1) == truth).mean(1).round(4).tolist()
        figures[arm] |= {figure: estimate(of_arm[arm]) for figure, of_arm in values.items()}
    for arm, other in pairs:
        differences = {figure: estimate(of_arm[arm] - of_arm[other]) for figure, of_arm in values.items()}
        figures[arm].setdefault("against", {})[other] = differences
    return figures
