"""The training loss: soft cross-entropy, distillation and label smoothing, as pure functions on tensors.

It must not know battles, models or training arguments.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from modeling.data.outcomes import list_mirrored


@dataclass(frozen=True)
class Distillation:
    """Share of the loss that comes from a teacher's probabilities, and the temperature that flattens them first."""

    weight: float = 0.0
    temperature: float = 1.0


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the cross-entropy between target probabilities and the softmax of the logits, averaged over battles.

    A one-hot target gives exactly `F.cross_entropy` of its index. It is not binary cross-entropy per logit: prediction
    applies a softmax to the logits, so training must too.

    Args:
        logits: Unnormalised scores, shape (battles, labels), any float dtype; computed in float32.
        targets: Probabilities, shape (battles, labels), rows sum to 1.

    Returns:
        Mean loss in nats, scalar float32.

    Raises:
        ValueError: If the shapes differ.
    """
    return _cross_entropies(logits, targets).mean()


def compute_preference_loss(
    logits: Tensor,
    targets: Tensor,
    teacher: Tensor | None = None,
    weights: Tensor | None = None,
    distillation: Distillation = Distillation(),
) -> Tensor:
    """Computes the weighted mean over battles of w * T^2 * KL(teacher_T || student_T) + (1 - w) * CE(target, student).

    T^2 keeps the gradients of both parts at the same scale. Source: Hinton, Vinyals, Dean 2015, section 2.

    Args:
        logits: Logits of the student, shape (battles, labels), any float dtype; computed in float32.
        targets: Probabilities, shape (battles, labels), rows sum to 1.
        teacher: Probabilities at temperature 1, shape (battles, labels). A row of NaN has no teacher: its loss is the
            cross-entropy alone. None if no battle has a teacher.
        weights: Weight of each battle, shape (battles,); None weighs all equally.
        distillation: The weight w and the temperature T.

    Returns:
        Loss in nats, scalar float32.

    Raises:
        ValueError: If the shapes differ.
    """
    losses = _cross_entropies(logits, targets)
    if teacher is not None and distillation.weight:
        known = ~teacher.isnan().any(dim=-1)
        # Replace NaN before computing with it: torch.where passes a NaN gradient on even for rows it does not choose.
        teacher = torch.where(known[:, None], teacher.float(), 1 / teacher.shape[-1])
        distances = compute_teacher_distances(logits, teacher, distillation.temperature)
        mixed = distillation.weight * distances + (1 - distillation.weight) * losses
        losses = torch.where(known, mixed, losses)
    # Divided by the number of battles, not by the sum of weights: so a batch in two halves gives the same gradient.
    return (losses if weights is None else losses * weights.float()).mean()


def average_orders(logits: Tensor) -> Tensor:
    """Averages the logits of each battle's two passes, by the first pass's slots.

    Args:
        logits: Shape (2 * battles, labels), each battle's passes one after the other, the second with the slots
            swapped.

    Returns:
        Shape (battles, labels). What either pass adds to a slot whatever is in it cancels out; a tie's two logits are
        averaged.
    """
    num_labels = logits.shape[-1]
    first, second = logits.reshape(-1, 2, num_labels).unbind(dim=1)
    return (first + second[:, list_mirrored(num_labels)]) / 2


def compute_teacher_distances(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Computes T^2 * KL(teacher_T || student_T) for each battle, where p_T is p^(1/T), normalised.

    Args:
        logits: Logits of the student, shape (battles, labels).
        teacher: Probabilities, shape (battles, labels); zeros are allowed.
        temperature: A value above 1 flattens both distributions.

    Returns:
        Distances in nats, shape (battles,), float32; 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(logits, teacher)
    flat = teacher.float() ** (1 / temperature)
    flat = flat / flat.sum(dim=-1, keepdim=True)
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    # xlogy makes 0 * log 0 equal 0, as a sure teacher needs; the product would be NaN.
    return temperature**2 * (torch.xlogy(flat, flat) - flat * student).sum(dim=-1)


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Mixes labels with the uniform distribution: (1 - smoothing) * label + smoothing / num_labels.

    On hard labels this equals `F.cross_entropy(label_smoothing=smoothing)`. Source: Szegedy et al. 2016, section 7.

    Args:
        labels: Probabilities, shape (..., labels).
        smoothing: Share of the uniform distribution, from 0 (none) to 1.
    """
    return (1 - smoothing) * labels + smoothing / labels.shape[-1]


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Computes the cross-entropy of each battle in nats, shape (battles,), float32."""
    _check_shapes(logits, targets)
    return -(targets.float() * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def _check_shapes(logits: Tensor, targets: Tensor) -> None:
    """Raises a ValueError if the shapes differ."""
    # Other shapes would broadcast without an error, class indices of shape (battles, 1) for example.
    if logits.shape != targets.shape:
        raise ValueError(
            f"soft_cross_entropy: expected targets of the logits' shape {tuple(logits.shape)} (battles, labels), "
            f"found {tuple(targets.shape)}. Give one probability per label, not a class index."
        )
