"""The one training loss. Plain tensors in, a scalar out; knows nothing of battles or models."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Distillation:
    """How much of the loss is learning a teacher's probabilities, and how far these are flattened before."""

    weight: float = 0.0
    temperature: float = 1.0


def soft_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy between target probabilities and the softmax of the logits, averaged over battles.

    A one-hot target gives exactly `F.cross_entropy` of its index. Never binary cross-entropy on each logit:
    the probabilities are read with a softmax, so they are trained with one.

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
    """Mean over battles of w * T^2 * KL(teacher_T || student_T) + (1 - w) * CE(target, student), each times its weight.

    T^2 keeps the two parts' gradients of one size. Source: Hinton, Vinyals, Dean 2015, section 2.

    Args:
        logits: The student's, shape (battles, labels), any float dtype; computed in float32.
        targets: Probabilities, shape (battles, labels), rows sum to 1.
        teacher: Probabilities at temperature 1, shape (battles, labels); a row of NaN has no teacher and takes the
            cross-entropy alone. None: no battle has.
        weights: Shape (battles,); None weighs all alike. The sum is divided by the number of battles and not by the
            weights', so that a batch in two halves gives the same gradient.
        distillation: w and T.

    Returns:
        Loss in nats, scalar float32.

    Raises:
        ValueError: If the shapes differ.
    """
    losses = _cross_entropies(logits, targets)
    if teacher is not None and distillation.weight:
        known = ~teacher.isnan().any(dim=-1)
        # NaN is replaced before anything is computed from it: its gradient would be NaN even where it is not chosen.
        teacher = torch.where(known[:, None], teacher.float(), 1 / teacher.shape[-1])
        distances = compute_teacher_distances(logits, teacher, distillation.temperature)
        mixed = distillation.weight * distances + (1 - distillation.weight) * losses
        losses = torch.where(known, mixed, losses)
    return (losses if weights is None else losses * weights.float()).mean()


def compute_teacher_distances(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 * KL(teacher_T || student_T) of each battle, where p_T is p^(1/T), normalised.

    Args:
        logits: The student's, shape (battles, labels).
        teacher: Probabilities, shape (battles, labels); zeros are allowed.
        temperature: Above 1 flattens both distributions.

    Returns:
        Nats, shape (battles,), float32; 0 where teacher and student agree.

    Raises:
        ValueError: If the shapes differ.
    """
    _check_shapes(logits, teacher)
    flat = teacher.float() ** (1 / temperature)
    flat = flat / flat.sum(dim=-1, keepdim=True)
    student = torch.log_softmax(logits.float() / temperature, dim=-1)
    return temperature**2 * (torch.xlogy(flat, flat) - flat * student).sum(dim=-1)


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Labels mixed with the uniform distribution: (1 - smoothing) * label + smoothing / num_labels.

    Source: Szegedy et al. 2016, section 7; on hard labels the same as `F.cross_entropy(label_smoothing=smoothing)`.

    Args:
        labels: Probabilities, shape (..., labels).
        smoothing: 0 changes nothing.
    """
    return (1 - smoothing) * labels + smoothing / labels.shape[-1]


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each battle in nats, shape (battles,), float32."""
    _check_shapes(logits, targets)
    return -(targets.float() * torch.log_softmax(logits.float(), dim=-1)).sum(dim=-1)


def _check_shapes(logits: Tensor, targets: Tensor) -> None:
    if logits.shape != targets.shape:
        raise ValueError(
            f"soft_cross_entropy: expected targets of the logits' shape {tuple(logits.shape)} (battles, labels), "
            f"found {tuple(targets.shape)}. Give one probability per label, not a class index."
        )
