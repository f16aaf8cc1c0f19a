"""The project's head, trained with the project's loss on features that a frozen base gave once.

For benchmarks/pseudolabels.py and benchmarks/study.py; it must not know what is studied.
"""

import math
from collections.abc import Sequence
from types import SimpleNamespace

import torch
import transformers
from torch import Tensor, nn

from modeling.data.battles import LABELS, ORIENTATIONS
from modeling.network.classifier import PreferenceHead, PreferenceMixin
from modeling.network.losses import Distillation, compute_preference_loss

BATCH = 32  # battles of a step
NO_TEACHER = Distillation()


def train_head(
    features: Tensor,
    targets: Tensor,
    seed: int,
    recipe: dict,
    *,
    orders: Sequence[str] = ORIENTATIONS,
    teacher: Tensor | None = None,
    distillation: Distillation = NO_TEACHER,
    steps: int | None = None,
) -> PreferenceHead:
    """A head trained for the recipe's epochs, or for `steps`; the seed decides its start, the order and dropout.

    Args:
        features: Shape (battles, orders, hidden).
        targets: True probabilities by label, shape (battles, labels), whatever the orders.
        recipe: learning_rate, epochs, head_dropout; head_hidden_size (0 for a linear head) and batch if they are others
            than half of the hidden size and BATCH.
        teacher: A teacher's probabilities by label, shape (battles, labels).
    """
    torch.manual_seed(seed)
    hidden, batch = features.shape[-1], recipe.get("batch", BATCH)
    shape = {"hidden_size": hidden, "num_labels": len(LABELS), "head_dropout": recipe["head_dropout"]}
    head = PreferenceHead(SimpleNamespace(**shape, head_hidden_size=recipe.get("head_hidden_size", hidden // 2)))
    for layer in (layer for layer in head.modules() if isinstance(layer, nn.Linear)):
        PreferenceMixin._init_weights(SimpleNamespace(score=head), layer)
    steps = steps or count_steps(features, recipe)
    optimizer = torch.optim.AdamW(head.parameters(), lr=recipe["learning_rate"], weight_decay=0.0)
    schedule = transformers.get_linear_schedule_with_warmup(optimizer, steps // 20, steps)
    order = torch.cat([torch.randperm(len(features)) for _ in range(math.ceil(steps * batch / len(features)))])
    for rows in order[: steps * batch].split(batch):
        taught = None if teacher is None else orient(teacher[rows], orders)
        logits = head(features[rows].flatten(0, 1))
        optimizer.zero_grad()
        compute_preference_loss(logits, orient(targets[rows], orders), taught, None, distillation).backward()
        nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return head.eval()


def count_steps(features: Tensor, recipe: dict) -> int:
    """Optimiser steps of the recipe's epochs."""
    return math.ceil(recipe["epochs"] * len(features) / recipe.get("batch", BATCH))


def orient(labels: Tensor, orders: Sequence[str]) -> Tensor:
    """Values by label, (battles, labels), by slot for each reading, (battles * orders, labels)."""
    return torch.stack([labels if order == "ab" else labels.flip(-1) for order in orders], dim=1).flatten(0, 1)


@torch.inference_mode()
def predict_orders(head: PreferenceHead, features: Tensor, orders: Sequence[str] = ORIENTATIONS) -> Tensor:
    """Probabilities by label of each reading, shape (battles, orders, labels)."""
    by_slot = torch.softmax(head(features), dim=-1)
    return torch.stack(
        [by_slot[:, place] if order == "ab" else by_slot[:, place].flip(-1) for place, order in enumerate(orders)], 1
    )


def predict(head: PreferenceHead, features: Tensor, orders: Sequence[str] = ORIENTATIONS) -> Tensor:
    """Probabilities by label, shape (battles, labels), the mean over the readings."""
    return predict_orders(head, features, orders).mean(1)
