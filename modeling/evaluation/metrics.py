"""How good predictions are: accuracy, log loss, Brier score, calibration, ranking, and baselines to stand beside them.

Pure functions over arrays of shape (battles, labels); no model, no files. Every figure comes with its 95% interval,
because an accuracy over 49 battles is uncertain by 13 points either way. Labels may be soft: [0.8, 0.2] says that four
of five people prefer a, [0.5, 0.5] is a tie.

    accuracy    over battles that favour a label, ties left out: is the likelier label the predicted one
    log loss    over all battles: mean cross-entropy against the soft label, in nats
    Brier       over all battles: mean of (p_a - label_a)^2, from 0 to 1; for always 1/2 on hard labels it is 1/4
    ECE         over all battles, by the probability of the favoured answer in five bins of 0.1 from 0.5 to 1: mean
                distance between it and the share of people (by soft label) who favour that answer too
    AUC         over battles that favour a label: how often p_a is higher where a won than where b won

`compute_` functions take battles as independent and are quick, for the Trainer; `estimate_metrics` takes a `Resampler`,
which knows the battles of one prompt.
"""

from collections.abc import Callable, Sequence

import datasets
import evaluate
import numpy as np
from scipy import stats
from scipy.special import softmax
from transformers import EvalPrediction

from modeling.evaluation.bootstrap import UNKNOWN, Z_95, Estimate, Resampler, bound_draws, bound_share

SMALLEST_PROBABILITY = 1e-7  # keeps the log loss finite
BINS = 5  # of the favoured answer's probability, from 1/2 to 1


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
    probabilities, labels = check_arrays(probabilities, labels)
    hits = find_hits(probabilities, labels)[find_decided(labels)]
    if len(hits) == 0:
        return UNKNOWN
    return Estimate(float(hits.mean()), *bound_share(hits.mean(), len(hits)), len(hits))


def compute_log_loss(probabilities: np.ndarray, labels: np.ndarray) -> Estimate:
    """Mean cross-entropy in nats, ties and soft labels included, with the normal interval of a mean."""
    probabilities, labels = check_arrays(probabilities, labels)
    if len(labels) == 0:
        return UNKNOWN
    losses = find_losses(probabilities, labels)
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


def check_arrays(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both as arrays of floats; a ValueError if their shapes differ or a number is NaN."""
    probabilities, labels = np.asarray(probabilities, float), np.asarray(labels, float)
    if probabilities.shape != labels.shape or probabilities.ndim != 2:
        raise ValueError(
            f"Metrics: expected predictions and labels of one shape (battles, labels); found {probabilities.shape} and "
            f"{labels.shape}."
        )
    if np.isnan(probabilities).any() or np.isnan(labels).any():
        raise ValueError("Metrics: expected numbers; found NaN. Predict these battles again.")
    return probabilities, labels


# --- one number per battle --------------------------------------------------------------------------------------------


def find_decided(labels: np.ndarray) -> np.ndarray:
    """Which battles favour one label, booleans of shape (battles,)."""
    return (labels == labels.max(axis=1, keepdims=True, initial=0)).sum(axis=1) == 1


def find_hits(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Which battles' likelier label is the predicted one, booleans; means nothing where none is likelier."""
    return probabilities.argmax(axis=1) == labels.argmax(axis=1)


def find_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cross-entropy of each battle, in nats; a probability of 0 is read as 1e-7."""
    return -(labels * np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1))).sum(axis=1)


def find_favoured(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Probability of the answer that each prediction favours, and the label's share for it, shape (battles,) each.

    A prediction of exactly 1/2 favours neither: both are 1/2.
    """
    favoured = probabilities.max(axis=1, initial=0)
    share = labels[np.arange(len(labels)), probabilities.argmax(axis=1)]
    return favoured, np.where(probabilities[:, 0] == probabilities[:, 1], 0.5, share)


# --- figures with the bootstrap's intervals ---------------------------------------------------------------------------


def estimate_metrics(
    resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray, part: np.ndarray | None = None
) -> dict[str, Estimate]:
    """accuracy, log_loss, brier, ece and auc, as the head of this module defines them.

    Args:
        resampler: Of the same battles, grouped by prompt.
        probabilities: Predicted, shape (battles, 2).
        labels: True probabilities, shape (battles, 2).
        part: Which battles count, booleans; all if left out.

    Raises:
        ValueError: If a number is NaN, or the shapes differ.
    """
    probabilities, labels = check_arrays(probabilities, labels)
    part = np.full(len(labels), True) if part is None else part
    decided = part & find_decided(labels)
    squares = (probabilities[:, 0] - labels[:, 0]) ** 2
    values = [find_hits(probabilities, labels), find_losses(probabilities, labels), squares]
    parts = np.column_stack([decided, part, part])
    accuracy, log_loss, brier = resampler.estimate_means(np.column_stack(values), parts, shares=[0])
    ece = _estimate_ece(resampler, probabilities, labels, part)
    auc = resampler.estimate_auc(probabilities[:, 0], labels[:, 0] > labels[:, 1], decided)
    return {"accuracy": accuracy, "log_loss": log_loss, "brier": brier, "ece": ece, "auc": auc}


def _estimate_ece(resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray, part: np.ndarray) -> Estimate:
    """Mean gap between probability and share, by bin, without its sign.

    Chance makes the ECE larger, never smaller, and drawing again makes it larger once more. So percentiles of the draws
    give the high end alone; the low end is the value less the 97.5% point of |gaps drawn - gaps found|, which by the
    triangle inequality is no less than the error. Simulated, 95% to 100% of the intervals hold the truth.
    """
    if not part.any():
        return UNKNOWN
    favoured, share = find_favoured(probabilities, labels)
    in_bin = _find_bins(favoured)[:, None] == np.arange(BINS)
    columns = np.column_stack([in_bin * (favoured - share)[:, None], np.ones(len(labels))])
    total, sums = columns[part].sum(axis=0), resampler.draw_sums(columns, part)
    gaps = total[:-1] / total[-1]
    with np.errstate(invalid="ignore"):  # a draw may have no battle of a small part
        drawn = sums[:, :-1] / sums[:, -1:]
    value, num_groups = float(np.abs(gaps).sum()), resampler.count_groups(part)
    _, error = bound_draws(np.abs(drawn - gaps).sum(axis=1), num_groups)
    _, high = bound_draws(np.abs(drawn).sum(axis=1), num_groups)
    low = value - min(error, value)  # NaN where there are too few groups
    return Estimate(value, low, max(high, value), int(part.sum()))


def _find_bins(favoured: np.ndarray) -> np.ndarray:
    """Bin of each probability; the ends of bins count up, 1 to the last. 1e-9: 0.6 is 0.6 whatever its last bit."""
    return np.clip(np.floor((favoured - 0.5) * 2 * BINS + 1e-9), 0, BINS - 1).astype(int)


def estimate_reliability(resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
    """What the ECE is made of: of each bin that is not empty its ends, its mean probability, and the people's share."""
    favoured, share = find_favoured(*check_arrays(probabilities, labels))
    bins = _find_bins(favoured)
    shares = resampler.estimate_means(
        np.tile(share[:, None], BINS), bins[:, None] == np.arange(BINS), shares=range(BINS)
    )
    rows = []
    for number, estimate in enumerate(shares):
        if estimate.count:
            low, high = (round(0.5 + place / 2 / BINS, 3) for place in (number, number + 1))
            row = {"low": low, "high": high, "mean_p": float(favoured[bins == number].mean())}
            ends = estimate.to_dict()
            row |= {"share": ends["value"], "share_low": ends["low"], "share_high": ends["high"]}
            rows.append(row | {"battles": estimate.count})
    return rows


def estimate_selective(resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Accuracy on the tenth of battles, without ties, that the prediction is surest of, on two tenths, and so on."""
    probabilities, labels = check_arrays(probabilities, labels)
    decided = np.flatnonzero(find_decided(labels))
    surest = decided[np.argsort(-probabilities[decided].max(axis=1, initial=0), kind="stable")]
    shares = np.arange(1, 11) / 10
    parts = np.full((len(labels), len(shares)), False)
    for column, share in enumerate(shares):
        parts[surest[: round(share * len(surest))], column] = True
    hits = np.tile(find_hits(probabilities, labels)[:, None], len(shares))
    estimates = resampler.estimate_means(hits, parts, shares=range(len(shares)))
    rows = zip(shares.tolist(), estimates, strict=True)
    return [{"share": share, "accuracy": e.to_dict(), "battles": e.count} for share, e in rows if e.count]


def compute_mcnemar(hits: np.ndarray, other_hits: np.ndarray) -> dict[str, float]:
    """McNemar's exact test (1947) of whether two predictions are right equally often on the same battles.

    Of the battles that only one of them gets right, each is as likely to be the first's if both are equally good. Takes
    battles as independent, also those of one prompt.

    Returns:
        only_first, only_second: battles that only one gets right; p_value: two-sided.
    """
    first, second = int((hits & ~other_hits).sum()), int((other_hits & ~hits).sum())
    p_value = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    return {"only_first": first, "only_second": second, "p_value": float(p_value)}


# --- in training ------------------------------------------------------------------------------------------------------


def build_trainer_metrics(num_orders: int, cut: Sequence[bool]) -> Callable[[EvalPrediction], dict[str, float]]:
    """`Trainer(compute_metrics=...)`: the metric on the softmax of the logits, and on the battles that were cut alone.

    Args:
        num_orders: PassSchedule of each battle, one after the other in the evaluation set: 1, or 2 (ab and ba), of which
            the second is turned back and both are averaged. With 1, by slot or by label is the same.
        cut: Whether tokens of a battle were left out.
    """
    cut = np.asarray(cut, bool)

    def compute(evaluation: EvalPrediction) -> dict[str, float]:
        """Figures of one evaluation, from logits and labels by slot, shape (battles * num_orders, labels)."""
        by_slot = softmax(evaluation.predictions.astype(float), axis=1)
        readings = by_slot.reshape(-1, num_orders, by_slot.shape[1])
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
    """All figures of this module as an `evaluate.Metric`: `compute(predictions=probabilities, references=labels)`.

    Accuracy and log loss have the quick intervals of `compute_accuracy` and `compute_log_loss`; brier, ece and auc come
    without, and are left out where there is nothing to score. Used as a class: `evaluate.load` would look for it on
    the Hub.
    """

    def _info(self):
        rows = datasets.Sequence(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description="Accuracy, log loss, Brier score, ECE and AUC of preference predictions.",
            citation="",
            features=datasets.Features({"predictions": rows, "references": rows}),
        )

    def _compute(self, predictions, references):
        accuracy, log_loss = (compute(predictions, references) for compute in (compute_accuracy, compute_log_loss))
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
