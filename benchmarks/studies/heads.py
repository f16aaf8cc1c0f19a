"""Trains the project's head with the project's loss on the cached features of a frozen base.

It must not know what is studied.
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

BATCH = 32  # battles per step
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
    """Returns a head trained for the recipe's epochs, or for `steps`.

    Args:
        features: Shape (battles, orders, hidden).
        targets: True probabilities by label, shape (battles, labels), the same for every order.
        seed: Decides the initial weights, the order of battles, and dropout.
        recipe: learning_rate, epochs and head_dropout; optionally head_hidden_size (default: half of the hidden size;
            0 for a linear head) and batch (default: BATCH).
        orders: The orders that the features were computed in.
        teacher: A teacher's probabilities by label, shape (battles, labels).
        distillation: Weight and temperature of the teacher.
        steps: Optimiser steps, instead of the recipe's epochs.
    """
    torch.manual_seed(seed)
    hidden, batch = features.shape[-1], recipe.get("batch", BATCH)
    shape = {"hidden_size": hidden, "num_labels": len(LABELS), "head_dropout": recipe["head_dropout"]}
    shape |= {"head_hidden_size": recipe.get("head_hidden_size", hidden // 2), "head_bias": True}
    head = PreferenceHead(SimpleNamespace(**shape))
    # The classifier's own initialisation, without building a classifier.
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
    """Returns the number of optimiser steps in the recipe's epochs."""
    return math.ceil(recipe["epochs"] * len(features) / recipe.get("batch", BATCH))


def orient(labels: Tensor, orders: Sequence[str]) -> Tensor:
    """Returns values by label, shape (battles, labels), as values by slot, shape (battles * orders, labels)."""
    return torch.stack([labels if order == "ab" else labels.flip(-1) for order in orders], dim=1).flatten(0, 1)


@torch.inference_mode()
def predict_orders(head: PreferenceHead, features: Tensor, orders: Sequence[str] = ORIENTATIONS) -> Tensor:
    """Returns the probabilities by label of each pass, shape (battles, orders, labels)."""
    by_slot = torch.softmax(head(features), dim=-1)
    return torch.stack(
        [by_slot[:, place] if order == "ab" else by_slot[:, place].flip(-1) for place, order in enumerate(orders)], 1
    )


def predict(head: PreferenceHead, features: Tensor, orders: Sequence[str] = ORIENTATIONS) -> Tensor:
    """Returns the probabilities by label, averaged over the passes, shape (battles, labels)."""
    return predict_orders(head, features, orders).mean(1)
