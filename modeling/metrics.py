"""How good predictions are: accuracy and log loss with intervals, and the baselines to stand beside them.

Pure functions over arrays of shape (battles, labels); no model, no files. Every figure comes with its 95% interval,
because an accuracy over 49 battles is uncertain by 13 points either way.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

Z_95 = 1.959963984540054  # the normal distribution's 97.5% point
SMALLEST_PROBABILITY = 1e-7  # keeps the log loss finite


@dataclass(frozen=True)
class Estimate:
    """A figure with the ends of its 95% interval, over `count` battles."""

    value: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] on {self.count}"


def compute_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> Estimate:
    """Share of battles whose likelier label is the predicted one, with Wilson's interval (1927).

    Battles that favour no label, ties, are left out: no prediction could be right on them. A prediction that favours
    none counts as the first label.

    Args:
        probabilities: Predicted, shape (battles, labels).
        labels: True probabilities, shape (battles, labels).

    Returns:
        NaN with count 0 where nothing is left.
    """
    probabilities, labels = _check(probabilities, labels)
    decided = (labels == labels.max(axis=1, keepdims=True)).sum(axis=1) == 1
    hits = probabilities[decided].argmax(axis=1) == labels[decided].argmax(axis=1)
    n = len(hits)
    if n == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    share = hits.mean()
    center = (share + Z_95**2 / (2 * n)) / (1 + Z_95**2 / n)
    half = Z_95 * np.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2)) / (1 + Z_95**2 / n)
    # At 0 and 1 the ends are 0 and 1, but for rounding.
    return Estimate(float(share), float(max(center - half, 0)), float(min(center + half, 1)), n)


def compute_log_loss(probabilities: np.ndarray, labels: np.ndarray) -> Estimate:
    """Mean cross-entropy in nats, ties and soft labels included, with the normal interval of a mean."""
    probabilities, labels = _check(probabilities, labels)
    if len(labels) == 0:
        return Estimate(np.nan, np.nan, np.nan, 0)
    losses = -(labels * np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1))).sum(axis=1)
    half = Z_95 * losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else np.inf
    mean = float(losses.mean())
    return Estimate(mean, float(mean - half), float(mean + half), len(losses))


def compute_baselines(
    responses_a: Sequence[str], responses_b: Sequence[str], labels: np.ndarray
) -> dict[str, Estimate]:
    """Accuracy of always choosing the first label, and of choosing the longer answer (characters)."""
    always = np.tile([1.0, 0.0], (len(labels), 1))
    longer = np.array([[len(a), len(b)] for a, b in zip(responses_a, responses_b, strict=True)], float).reshape(-1, 2)
    return {"always a": compute_accuracy(always, labels), "longer wins": compute_accuracy(longer, labels)}


def _check(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels, float)
    if probabilities.shape != labels.shape or probabilities.ndim != 2:
        raise ValueError(
            f"Metrics: expected predictions and labels of one shape (battles, labels); found {probabilities.shape} and "
            f"{labels.shape}."
        )
    if np.isnan(probabilities).any() or np.isnan(labels).any():
        raise ValueError("Metrics: expected numbers; found NaN. Predict these battles again.")
    return probabilities, labels


def build_trainer_metrics(num_orders: int, cut: Sequence[bool]) -> Callable[[EvalPrediction], dict[str, float]]:
    """`Trainer(compute_metrics=...)`: the metric on the softmax of the logits, and on the battles that were cut alone.

    Args:
        num_orders: Readings of each battle, one after the other in the evaluation set: 1, or 2 (ab and ba), of which
            the second is turned back and both are averaged. With 1, by slot or by label is the same.
        cut: Whether tokens of a battle were left out.
    """
    cut = np.asarray(cut, bool)

    def compute(evaluation: EvalPrediction) -> dict[str, float]:
        """Figures of one evaluation, from logits and labels by slot, shape (battles * num_orders, labels)."""
        logits = evaluation.predictions.astype(float)
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        readings = (odds / odds.sum(axis=1, keepdims=True)).reshape(-1, num_orders, logits.shape[1])
        readings[:, 1:] = readings[:, 1:, ::-1]
        probabilities, labels = readings.mean(axis=1), evaluation.label_ids[::num_orders]
        figures = PreferenceMetric().compute(predictions=probabilities, references=labels)
        for name, part in (("cut", cut), ("uncut", ~cut)):
            if part.any() and not part.all():
                accuracy = compute_accuracy(probabilities[part], labels[part])
                figures |= {f"accuracy_{name}": accuracy.value, f"battles_{name}": accuracy.count}
        return figures

    return compute


class PreferenceMetric(evaluate.Metric):
    """Accuracy and log loss as an `evaluate.Metric`: `compute(predictions=probabilities, references=labels)`.

    Used as a class: `evaluate.load` would look for it on the Hub.
    """

    def _info(self):
        rows = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Accuracy and log loss of preference predictions, with 95% intervals.",
            citation="",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        accuracy, log_loss = (compute(predictions, references) for compute in (compute_accuracy, compute_log_loss))
        return {
            "accuracy": accuracy.value,
            "accuracy_low": accuracy.low,
            "accuracy_high": accuracy.high,
            "log_loss": log_loss.value,
            "log_loss_low": log_loss.low,
            "log_loss_high": log_loss.high,
            "battles": log_loss.count,
        }
