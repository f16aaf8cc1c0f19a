"""The training loss: one softmax cross-entropy for hard and soft labels."""

import math

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
    gradients = [torch.autograd.grad(loss, logits)[0] for loss in losses]
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-8)


def test_soft_label_gives_the_number_derived_by_hand():
    """softmax(ln 3, 0) = (3/4, 1/4), so targets (1/2, 1/2) cost (ln 4/3 + ln 4) / 2 = ln(16/3) / 2 = 0.8370; the
    gradient is softmax - target = (1/4, -1/4)."""
    logits = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.5, 0.5]]))
    assert loss.item() == pytest.approx(math.log(16 / 3) / 2, rel=1e-6)
    loss.backward()
    assert logits.grad.flatten().tolist() == pytest.approx([0.25, -0.25], rel=1e-6)


def test_soft_labels_never_meet_binary_cross_entropy():
    """Seed fault 9: trained with BCE on each logit, read with softmax. Logits whose softmax is the target are where
    training must stop, at the target's entropy, 3/4 ln 4/3 + 1/4 ln 4 = 0.5623. BCE still pulls there: on the second
    logit by (sigmoid(0) - 1/4) / 2 = 1/8. And what softmax cannot see, a number added to all logits, costs nothing."""
    logits = torch.tensor([[math.log(3), 0.0]], requires_grad=True)
    targets = torch.tensor([[0.75, 0.25]])
    losses = soft_cross_entropy(logits, targets), F.binary_cross_entropy_with_logits(logits, targets)
    ours, binary = (torch.autograd.grad(loss, logits)[0] for loss in losses)
    assert ours.abs().max() < 1e-7
    assert binary[0, 1].item() == pytest.approx(1 / 8)
    entropy = 0.75 * math.log(4 / 3) + 0.25 * math.log(4)
    assert losses[0].item() == pytest.approx(entropy, rel=1e-6)
    assert losses[1].item() != pytest.approx(entropy, rel=0.01)
    assert soft_cross_entropy(logits + 100, targets).item() == pytest.approx(entropy, rel=1e-4)


def test_loss_is_a_mean_over_battles():
    """ln 2 for equal logits and 0 for a sure and right answer, however far apart the logits: mean ln(2) / 2."""
    loss = soft_cross_entropy(torch.tensor([[0.0, 0.0], [1e4, -1e4]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    assert loss.item() == pytest.approx(math.log(2) / 2, rel=1e-6)


def test_half_precision_logits_give_a_float32_loss():
    logits = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0)).bfloat16().requires_grad_()
    targets = torch.tensor([[0.3, 0.7]], dtype=torch.float64).expand(1000, 2)
    loss = soft_cross_entropy(logits, targets)
    assert loss.dtype == torch.float32 and loss.shape == ()
    assert torch.equal(loss, soft_cross_entropy(logits.float(), targets))
    loss.backward()
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(4,), (4, 1), (1, 2), (2,), (4, 3)], ids=str)
def test_targets_of_another_shape_are_refused_even_where_they_would_broadcast(shape):
    with pytest.raises(ValueError, match=r"targets of the logits' shape \(4, 2\).*found .*not a class index"):
        soft_cross_entropy(torch.zeros(4, 2), torch.ones(shape))
