"""The one training loss. Plain tensors in, a scalar out; knows nothing of battles or models."""

import torch
from torch import Tensor


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
    if logits.shape != targets.shape:
        raise ValueError(
            f"soft_cross_entropy: expected targets of the logits' shape {tuple(logits.shape)} (battles, labels), "
            f"found {tuple(targets.shape)}. Give one probability per label, not a class index."
        )
    log_probabilities = torch.log_softmax(logits.float(), dim=-1)
    return -(targets.float() * log_probabilities).sum(dim=-1).mean()


def smooth_labels(labels: Tensor, smoothing: float) -> Tensor:
    """Labels mixed with the uniform distribution: (1 - smoothing) * label + smoothing / num_labels.

    Source: Szegedy et al. 2016, section 7; on hard labels the same as `F.cross_entropy(label_smoothing=smoothing)`.

    Args:
        labels: Probabilities, shape (..., labels).
        smoothing: 0 changes nothing.
    """
    return (1 - smoothing) * labels + smoothing / labels.shape[-1]
