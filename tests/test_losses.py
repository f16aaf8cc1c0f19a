"""The training loss: one softmax cross-entropy for hard and soft labels."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from modeling.losses import soft_cross_entropy


@pytest.mark.parametrize("num_labels", [2, 3])
def test_hard_labels_give_cross_entropy_and_its_gradient(num_labels):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(64, num_labels, generator=generator)).requires_grad_()
    classes = torch.randint(num_labels, (64,), generator=generator)
    losses = soft_cross_entropy(logits, F.one_hot(classes, num_labels)), F.cross_entropy(logits, classes)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses), rtol=1e-5, atol=1e-8)


def test_soft_labels_give_the_mean_derived_by_hand():
    """softmax(ln 3, 0) = (3/4, 1/4), so targets (1/2, 1/2) cost (ln 4/3 + ln 4) / 2 = ln(16/3) / 2 = 0.8370. A sure and
    right answer costs 0, however far apart its logits. Mean: 0.4185. Gradient: (softmax - target) / 2 battles."""
    logits = torch.tensor([[log(3), 0.0], [1e4, -1e4]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert loss.item() == pytest.approx(log(16 / 3) / 4, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 8, -1 / 8], [0, 0]]))


def test_soft_labels_never_meet_binary_cross_entropy():
    """Seed fault 9: trained with BCE on each logit, read with softmax. Where softmax(logits) = target, here (3/4, 1/4),
    training must rest, at the target's entropy, 3/4 ln 4/3 + 1/4 ln 4 = 0.5623; BCE would still pull at the second
    logit by (sigmoid(0) - 1/4) / 2 = 1/8. And adding a number to all logits, which softmax cannot see, is free."""
    logits, targets = torch.tensor([[log(3), 0.0]], requires_grad=True), torch.tensor([[0.75, 0.25]])
    losses = soft_cross_entropy(logits, targets), F.binary_cross_entropy_with_logits(logits, targets)
    ours, binary = (torch.autograd.grad(loss, logits)[0] for loss in losses)
    assert ours.abs().max() < 1e-7 and binary[0, 1].item() == pytest.approx(1 / 8)
    loss = soft_cross_entropy(logits + 100, targets)
    assert loss.item() == pytest.approx(0.75 * log(4 / 3) + 0.25 * log(4), rel=1e-4)


def test_bf16_logits_give_a_float32_loss():
    logits = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    targets = torch.tensor([[0.3, 0.7]]).expand(1000, 2)
    loss = soft_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32 and torch.equal(loss, soft_cross_entropy(logits.float(), targets))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 2), (2,), (4, 3)], ids=str)
def test_targets_of_another_shape_are_refused_even_where_they_would_broadcast(shape):
    with pytest.raises(ValueError, match=r"targets of the logits' shape \(4, 2\).*found .*not a class index"):
        soft_cross_entropy(torch.zeros(4, 2), torch.ones(shape))
