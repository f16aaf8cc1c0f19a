"""The metrics as the Trainer and the library `evaluate` take them.

Apart from `metrics.py`, so that predicting imports no module named `evaluate`: a user's folder may hold another one.
"""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from scipy.special import softmax
from transformers import EvalPrediction

from modeling.data.outcomes import list_mirrored
from modeling.evaluation.bootstrap import Resampler
from modeling.evaluation.metrics import compute_accuracy, compute_log_loss, estimate_metrics


def build_trainer_metrics(num_orders: int, cut: Sequence[bool]) -> Callable[[EvalPrediction], dict[str, float]]:
    """Builds the function for `Trainer(compute_metrics=...)`: all metrics, and the accuracy on cut and uncut battles.

    Args:
        num_orders: Passes of each battle, which follow each other in the evaluation set: 1, or 2 for ab and then ba.
            The two passes of a battle are averaged.
        cut: Whether tokens of each battle were cut, booleans in the order of the battles.
    """
    cut = np.asarray(cut, bool)

    def compute(evaluation: EvalPrediction) -> dict[str, float]:
        """Computes the metrics of one evaluation from logits and labels in slot order."""
        by_slot = softmax(evaluation.predictions.astype(float), axis=1)  # (battles * num_orders, labels)
        passes = by_slot.reshape(-1, num_orders, by_slot.shape[1])  # (battles, num_orders, labels)
        # The second pass shows b first, so its columns are mirrored before averaging. With one pass nothing needs
        # mirroring: predictions and labels are both in slot order, which gives the same metrics.
        passes[:, 1:] = passes[:, 1:, list_mirrored(by_slot.shape[1])]
        probabilities, labels = passes.mean(axis=1), evaluation.label_ids[::num_orders]
        results = PreferenceMetric().compute(predictions=probabilities, references=labels)
        for name, part in (("cut", cut), ("uncut", ~cut)):
            if part.any() and not part.all():
                accuracy = compute_accuracy(probabilities[part], labels[part])
                results |= {f"accuracy_{name}": accuracy.value, f"battles_{name}": accuracy.count}
        return results

    return compute


class PreferenceMetric(evaluate.Metric):
    """All metrics of `metrics.py` as an `evaluate.Metric`: `compute(predictions=probabilities, references=labels)`.

    Accuracy and log loss have the intervals of `compute_accuracy` and `compute_log_loss`. brier, ece and auc have none,
    and are left out if there is nothing to score.
    """

    # Construct this class directly: evaluate.load would look for the metric on the Hub and fails offline.

    def _info(self):
        rows = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Accuracy, log loss, Brier score, ECE and AUC of preference predictions.",
            citation="",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        accuracy, log_loss = (compute(predictions, references) for compute in (compute_accuracy, compute_log_loss))
        # One draw, because only the values are used: intervals by bootstrap would slow down each evaluation.
        others = estimate_metrics(Resampler(range(len(references)), draws=1), predictions, references)
        values = {name: others[name].value for name in ("brier", "ece", "auc")}
        return {
            "accuracy": accuracy.value,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "log_loss": log_loss.value,
            "log_loss_low": log_loss.low,
            "log_loss_high": log_loss.high,
            "battles": log_loss.count,
            **{name: value for name, value in values.items() if not np.isnan(value)},
        }
