"""Metrics of predictions: accuracy, log loss, Brier score, calibration error, AUC and McNemar's test.

Pure functions over arrays of shape (battles, labels); they must not know models or files. Accuracy and log loss always
have a 95% interval, because an accuracy over 49 battles is uncertain by 13 points either way. Labels may be soft:
[0.8, 0.2] means that four of five people prefer a, [0.5, 0.5] is a tie.

    accuracy    Share of correct winners, over decided battles, which are those whose label is not a tie.
    log loss    Mean cross-entropy against the soft label in nats, over all battles.
    Brier       Mean of (p_a - label_a)^2, over all battles; from 0 to 1, and 1/4 for always 1/2 on hard labels.
    ECE         Mean gap between the favoured answer's probability and people's share for it, over all battles, in five
                bins of the probability from 0.5 to 1.
    AUC         How often p_a is higher for a battle that a won than for one that b won, over decided battles.

With three labels a tie is an outcome like the others: its label is [0, 0, 1], and it counts as decided. Then the Brier
score sums the squares of all three labels, from 0 to 2 (as scikit-learn's does), the ECE is of the likeliest label, in
five bins from 1/3 to 1, and the AUC compares p_a + p_tie / 2 of the battles that a or b won.

The `compute_` functions are fast and treat battles as independent; the Trainer uses them. `estimate_metrics` takes a
`Resampler`, which knows the battles that share a prompt.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from scipy import stats

from modeling.data.outcomes import LABELS, halve_ties
from modeling.evaluation.bootstrap import UNKNOWN, Z_95, Estimate, Resampler, bound_draws, bound_share
from modeling.runtime.choices import HIGHER_IS_BETTER

SMALLEST_PROBABILITY = 1e-7  # keeps the log loss finite
BINS = 5  # bins of the favoured answer's probability, from 1/2 to 1


def compute_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> Estimate:
    """Computes the share of decided battles whose winner was predicted, with Wilson's interval (1927).

    Ties are left out, because no prediction could be right on them. A prediction of equal probabilities counts as the
    first label.

    Args:
        probabilities: Predicted probabilities, shape (battles, labels).
        labels: True probabilities, shape (battles, labels).

    Returns:
        The estimate; `UNKNOWN` if there is no decided battle.

    Raises:
        ValueError: If the shapes differ or a number is NaN.
    """
    probabilities, labels = check_arrays(probabilities, labels)
    hits = find_hits(probabilities, labels)[find_decided(labels)]
    if len(hits) == 0:
        return UNKNOWN
    return Estimate(float(hits.mean()), *bound_share(hits.mean(), len(hits)), len(hits))


def compute_log_loss(probabilities: np.ndarray, labels: np.ndarray) -> Estimate:
    """Computes the mean cross-entropy in nats, ties and soft labels included, with the normal interval of a mean.

    Arguments, result and errors are those of `compute_accuracy`.
    """
    probabilities, labels = check_arrays(probabilities, labels)
    if len(labels) == 0:
        return UNKNOWN
    losses = find_losses(probabilities, labels)
    # A single battle says nothing about the spread of losses, so its interval is unbounded.
    half = Z_95 * losses.std(ddof=1) / np.sqrt(len(losses)) if len(losses) > 1 else np.inf
    mean = float(losses.mean())
    return Estimate(mean, float(mean - half), float(mean + half), len(losses))


def compute_baselines(
    responses_a: Sequence[str], responses_b: Sequence[str], labels: np.ndarray
) -> dict[str, Estimate]:
    """Computes the accuracy of always choosing the first label, and of choosing the answer with more characters."""
    no_tie = [-1.0] * (np.shape(labels)[1] - len(LABELS))  # a score below all others: no rule predicts ties
    always = np.tile([1.0, 0.0, *no_tie], (len(labels), 1))
    longer = np.array([[len(a), len(b), *no_tie] for a, b in zip(responses_a, responses_b, strict=True)], float)
    longer = longer.reshape(always.shape)
    return {"always a": compute_accuracy(always, labels), "longer wins": compute_accuracy(longer, labels)}


def check_arrays(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Converts both to arrays of floats; raises a ValueError if their shapes differ or a number is NaN."""
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
    """Returns which battles are decided, that is, have one most probable label; booleans of shape (battles,)."""
    return (labels == labels.max(axis=1, keepdims=True, initial=0)).sum(axis=1) == 1


def find_hits(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns whose winner was predicted, booleans of shape (battles,); meaningless for undecided battles."""
    return probabilities.argmax(axis=1) == labels.argmax(axis=1)


def find_losses(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Computes each battle's cross-entropy in nats, shape (battles,); a probability of 0 counts as 1e-7."""
    return -(labels * np.log(np.clip(probabilities, SMALLEST_PROBABILITY, 1))).sum(axis=1)


def find_favoured(probabilities: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the favoured answer's probability, and the label's share for that answer, shape (battles,) each."""
    favoured = probabilities.max(axis=1, initial=0)
    # Equal probabilities favour none of their labels, so they share: of exactly 1/2 and 1/2 both numbers are 1/2.
    likeliest = probabilities == favoured[:, None]
    return favoured, (labels * likeliest).sum(axis=1) / likeliest.sum(axis=1)


# --- metrics with bootstrap intervals ---------------------------------------------------------------------------------


def estimate_metrics(
    resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray, part: np.ndarray | None = None
) -> dict[str, Estimate]:
    """Estimates accuracy, log_loss, brier, ece and auc, as defined at the top of this module.

    Args:
        resampler: Resampler of the same battles, grouped by prompt.
        probabilities: Predicted probabilities, shape (battles, labels).
        labels: True probabilities, shape (battles, labels).
        part: Booleans that select battles; None selects all.

    Raises:
        ValueError: If the shapes differ or a number is NaN.
    """
    probabilities, labels = check_arrays(probabilities, labels)
    part = np.full(len(labels), True) if part is None else part
    decided = part & find_decided(labels)
    squares = ((probabilities - labels) ** 2).sum(axis=1) / (2 if labels.shape[1] == len(LABELS) else 1)
    values = [find_hits(probabilities, labels), find_losses(probabilities, labels), squares]
    parts = np.column_stack([decided, part, part])
    accuracy, log_loss, brier = resampler.estimate_means(np.column_stack(values), parts, shares=[0])
    ece = _estimate_ece(resampler, probabilities, labels, part)
    won = decided & (labels.argmax(axis=1) < len(LABELS))  # by a or by b
    auc = resampler.estimate_auc(halve_ties(probabilities)[:, 0], labels[:, 0] > labels[:, 1], won)
    return {"accuracy": accuracy, "log_loss": log_loss, "brier": brier, "ece": ece, "auc": auc}


def _estimate_ece(resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray, part: np.ndarray) -> Estimate:
    """Estimates the expected calibration error: the mean over bins of the absolute gap, weighted by battles."""
    # Chance makes an ECE larger, never smaller, and resampling adds to that. So percentiles of the draws give only the
    # high end. The low end is the value minus the 97.5% point of |drawn gaps - found gaps|, which by the triangle
    # inequality bounds the error. In simulations 95% to 100% of these intervals hold the true value.
    if not part.any():
        return UNKNOWN
    favoured, share = find_favoured(probabilities, labels)
    in_bin = _find_bins(favoured, labels.shape[1])[:, None] == np.arange(BINS)
    columns = np.column_stack([in_bin * (favoured - share)[:, None], np.ones(len(labels))])
    total, sums = columns[part].sum(axis=0), resampler.draw_sums(columns, part)
    gaps = total[:-1] / total[-1]
    with np.errstate(invalid="ignore"):  # a draw may have no battle of a small part
        drawn = sums[:, :-1] / sums[:, -1:]
    value, num_groups = float(np.abs(gaps).sum()), resampler.count_groups(part)
    _, error = bound_draws(np.abs(drawn - gaps).sum(axis=1), num_groups)
    _, high = bound_draws(np.abs(drawn).sum(axis=1), num_groups)
    low = value - min(error, value)  # NaN if there are too few groups
    return Estimate(value, low, max(high, value), int(part.sum()))


def _find_bins(favoured: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns each probability's bin; a bin includes its lower end, and the last bin includes 1."""
    least = 1 / num_labels
    # Plus 1e-9, so that 0.6 is in its own bin even if its last bit was rounded down.
    return np.clip(np.floor((favoured - least) / (1 - least) * BINS + 1e-9), 0, BINS - 1).astype(int)


def estimate_reliability(resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Returns the bins behind the ECE, empty ones left out: ends, mean probability, people's share and battles."""
    favoured, share = find_favoured(*check_arrays(probabilities, labels))
    bins, least = _find_bins(favoured, labels.shape[1]), 1 / labels.shape[1]
    shares = resampler.estimate_means(
        np.tile(share[:, None], BINS), bins[:, None] == np.arange(BINS), shares=range(BINS)
    )
    rows = []
    for number, estimate in enumerate(shares):
        if estimate.count:
            low, high = (round(least + place * (1 - least) / BINS, 3) for place in (number, number + 1))
            row = {"low": low, "high": high, "mean_p": float(favoured[bins == number].mean())}
            ends = estimate.to_dict()
            row |= {"share": ends["value"], "share_low": ends["low"], "share_high": ends["high"]}
            rows.append(row | {"battles": estimate.count})
    return rows


def estimate_selective(resampler: Resampler, probabilities: np.ndarray, labels: np.ndarray) -> list[dict]:
    """Estimates the accuracy on the most confident 10% of the decided battles, on 20%, and so on up to 100%."""
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


def check_bounds(estimates: Mapping[str, Mapping], bounds: Mapping[str, float]) -> list[dict]:
    """Returns for each bound its metric, the bound itself, and whether the metric's value is at least as good.

    A metric without a value passes no bound: nothing shows that it is good enough.

    Args:
        estimates: {metric: result of `Estimate.to_dict`}.
        bounds: {metric: bound}.
    """
    rows = []
    for metric, bound in bounds.items():
        value, sign = estimates[metric]["value"], 1 if metric in HIGHER_IS_BETTER else -1
        rows.append({"metric": metric, "bound": bound, "passed": value is not None and sign * value >= sign * bound})
    return rows


def compute_mcnemar(hits: np.ndarray, other_hits: np.ndarray) -> dict[str, float]:
    """Computes McNemar's exact test (1947) of whether two predictions are right equally often on the same battles.

    It treats battles as independent, even those on one prompt.

    Args:
        hits: Whether the first prediction is right, booleans of shape (battles,).
        other_hits: Whether the second prediction is right, in the same order.

    Returns:
        only_first and only_second, the numbers of battles that only one of them gets right, and the two-sided p_value.
    """
    # If both are equally good, each battle that only one gets right is a fair coin.
    first, second = int((hits & ~other_hits).sum()), int((other_hits & ~hits).sum())
    p_value = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    return {"only_first": first, "only_second": second, "p_value": float(p_value)}
