"""The outcomes of a battle (a wins, b wins, a tie), and conversions between labels over two and over three of them.

A label is one probability for each of `LABELS` or of `WITH_TIE`. With two labels a tie is [0.5, 0.5], and with three it
is [0, 0, 1]. This module must not know rows, models or files.
"""

from collections.abc import Iterable, Sequence

import numpy as np

LABELS = ("a", "b")
TIE = "tie"
WITH_TIE = (*LABELS, TIE)
LABEL_SETS = (LABELS, WITH_TIE)
SLOTS = ("first", "second", TIE)  # the same outcomes for a model, which knows an answer by its place in the text
MIRRORED = (1, 0, 2)  # where each outcome goes when the two answers swap places


def find_labels(num_labels: int) -> tuple[str, ...]:
    """Returns the outcomes of a model with this number of labels.

    Raises:
        ValueError: If no model has so many.
    """
    for labels in LABEL_SETS:
        if len(labels) == num_labels:
            return labels
    known = " or ".join(f"{len(labels)} ({', '.join(labels)})" for labels in LABEL_SETS)
    raise ValueError(f"--num_labels {num_labels}: expected {known}; found another number.")


def list_mirrored(num_labels: int) -> list[int]:
    """Returns the place that each label takes when the two answers swap places: a tie stays where it is."""
    return list(MIRRORED[:num_labels])


def mirror_label(values: Sequence) -> list:
    """Returns values by label for the same battle with its answers swapped. It is its own inverse.

    Example: `mirror_label([0.5, 0.2, 0.3])` is `[0.2, 0.5, 0.3]`.
    """
    return [values[place] for place in list_mirrored(len(values))]


def is_tie(label: Sequence[float]) -> bool:
    """Returns whether a label says that nobody won: a and b are equally likely, or neither is likelier than a tie.

    A verdict with p_a = p_b, unlike such a label, goes to model_a; see `name_winners`.
    """
    return label[0] == label[1] or any(p >= max(label[:2]) for p in label[2:])


def find_outcome(label: Sequence[float]) -> str:
    """Returns who won, "a" or "b", or "tie" if nobody did."""
    return TIE if is_tie(label) else LABELS[int(label[1] > label[0])]


def widen_labels(labels: np.ndarray) -> np.ndarray:
    """Adds the probability of a tie to labels that have none: an even label is a tie, and every other has none.

    Args:
        labels: Shape (battles, 2); with three labels they are returned as they are.

    Returns:
        Shape (battles, 3).
    """
    if labels.shape[1] == len(WITH_TIE):
        return labels
    ties = (labels[:, 0] == labels[:, 1])[:, None]
    return np.where(ties, [0.0, 0.0, 1.0], np.pad(labels, ((0, 0), (0, 1))))


def halve_ties(probabilities: np.ndarray) -> np.ndarray:
    """Gives half of each tie to a and half to b.

    Args:
        probabilities: Shape (battles, 3); with two labels they are returned as they are.

    Returns:
        Shape (battles, 2): what each answer can expect, where a tie is half a win.
    """
    return probabilities[:, :2] + probabilities[:, 2:].sum(axis=1, keepdims=True) / 2


def match_labels(labels: np.ndarray, num_labels: int) -> np.ndarray:
    """Returns labels with this number of outcomes: ties are halved for two, and even labels are ties for three."""
    return halve_ties(labels) if num_labels == len(LABELS) else widen_labels(labels)


def name_winners(p_a: Iterable[float], p_tie: Iterable[float] | None = None) -> list[str]:
    """Returns the winner strings of a submission: tie where it is likelier than either answer, else the likelier one.

    Equal probabilities give model_a.

    Args:
        p_a: Probabilities that a wins.
        p_tie: Probabilities of a tie; None where the judge predicts none.
    """
    if p_tie is None:
        return ["model_a" if p >= 0.5 else "model_b" for p in p_a]
    p_a, p_tie = np.array(list(p_a), float), np.array(list(p_tie), float)
    # Rounded, because 1 - p_a - p_tie is not p_b to the last digit.
    p = np.column_stack([p_a, 1 - p_a - p_tie, p_tie]).round(12)
    return np.array(["model_a", "model_b", TIE])[p.argmax(axis=1)].tolist()
