"""The training loss: one softmax cross-entropy for hard and soft labels."""

from math import log

import pytest
import torch
import torch.nn.functional as F

from modeling.network.losses import (
    Distillation,
    average_orders,
    compute_preference_loss,
    compute_teacher_distances,
    smooth_labels,
    soft_cross_entropy,
)


@pytest.mark.parametrize("num_labels", [2, 3])
def test_hard_labels_give_cross_entropy_and_its_gradient(num_labels):
    generator = torch.Generator().manual_seed(0)
    logits = (5 * torch.randn(64, num_labels, generator=generator)).requires_grad_()
    classes = torch.randint(num_labels, (64,), generator=generator)
    losses = soft_cross_entropy(logits, F.one_hot(classes, num_labels)), F.cross_entropy(logits, classes)
    torch.testing.assert_close(*losses, rtol=1e-6, atol=0)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses), rtol=1e-5, atol=1e-8)


def test_soft_labels_give_the_mean_derived_by_hand():
    """softmax(ln 3, 0) = (3/4, 1/4), so targets (1/2, 1/2) cost (ln 4/3 + ln 4) / 2 = ln(16/3) / 2 = 0.8370. A correct
    answer of probability 1 costs 0, even for extreme logits. Mean: 0.4185. Gradient: (softmax - target) / 2 battles."""
    logits = torch.tensor([[log(3), 0.0], [1e4, -1e4]], requires_grad=True)
    loss = soft_cross_entropy(logits, torch.tensor([[0.5, 0.5], [1.0, 0.0]]))
    assert loss.item() == pytest.approx(log(16 / 3) / 4, rel=1e-6)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.tensor([[1 / 8, -1 / 8], [0, 0]]))


def test_soft_labels_do_not_use_binary_cross_entropy():
    """A known mistake is to train with BCE per logit and predict with softmax. If softmax(logits) equals the target,
    here (3/4, 1/4), the gradient must be 0 and the loss the target's entropy, 3/4 ln 4/3 + 1/4 ln 4 = 0.5623. BCE would
    have a gradient of (sigmoid(0) - 1/4) / 2 = 1/8 at the second logit. Adding a number to all logits changes nothing.
    """
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
def test_targets_of_another_shape_are_refused_even_if_they_would_broadcast(shape):
    with pytest.raises(ValueError, match=r"targets of the logits' shape \(4, 2\).*found .*not a class index"):
        soft_cross_entropy(torch.zeros(4, 2), torch.ones(shape))


def test_label_smoothing_equals_that_of_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, classes = torch.randn(16, 3, generator=generator), torch.randint(3, (16,), generator=generator)
    smoothed = smooth_labels(F.one_hot(classes, 3).float(), 0.3)
    expected = F.cross_entropy(logits, classes, label_smoothing=0.3)
    torch.testing.assert_close(soft_cross_entropy(logits, smoothed), expected)
    assert smooth_labels(torch.tensor([1.0, 0.0]), 0.1).tolist() == pytest.approx([0.95, 0.05])


# --- distillation -----------------------------------------------------------------------------------------------------


def test_distillation_gives_the_loss_derived_by_hand():
    """T = 2. Teacher (9/10, 1/10): square roots 3 : 1, so teacher_T = (3/4, 1/4). Student's logits (2 ln 4, 0), halved
    (ln 4, 0), so student_T = (4/5, 1/5). KL = 3/4 ln(15/16) + 1/4 ln(5/4) = 0.0073820; times T^2 = 4: 0.0295280.
    Label (1, 0): softmax(2 ln 4, 0) = (16/17, 1/17), CE = ln(17/16) = 0.0606246. With w = 0.9: 0.9 * 0.0295280 +
    0.1 * 0.0606246 = 0.0326376."""
    logits, label, teacher = torch.tensor([[2 * log(4), 0.0]]), torch.tensor([[1.0, 0]]), torch.tensor([[0.9, 0.1]])
    distance = 4 * (3 / 4 * log(15 / 16) + 1 / 4 * log(5 / 4))
    assert compute_teacher_distances(logits, teacher, 2.0).item() == pytest.approx(distance, rel=1e-5)
    loss = compute_preference_loss(logits, label, teacher, distillation=Distillation(0.9, 2.0))
    assert loss.item() == pytest.approx(0.9 * distance + 0.1 * log(17 / 16), rel=1e-5)
    assert distance == pytest.approx(0.0295280, abs=1e-7) and loss.item() == pytest.approx(0.0326376, abs=1e-7)


def test_the_teacher_distance_is_pytorchs_kl_and_0_if_student_and_teacher_agree():
    """The gradient of T^2 * KL with respect to the logits is T * (student_T - teacher_T) (Hinton et al. 2015)."""
    generator = torch.Generator().manual_seed(0)
    logits = (3 * torch.randn(32, 2, generator=generator)).requires_grad_()
    teacher = torch.softmax(3 * torch.randn(32, 2, generator=generator), dim=-1)
    flat = torch.softmax(teacher.log() / 5, dim=-1)
    student = torch.log_softmax(logits / 5, dim=-1)
    expected = 25 * F.kl_div(student, flat, reduction="none").sum(dim=-1)
    distances = compute_teacher_distances(logits, teacher, 5.0)
    torch.testing.assert_close(distances, expected, rtol=1e-4, atol=1e-6)
    gradient = torch.autograd.grad(distances.sum(), logits)[0]
    torch.testing.assert_close(gradient, 5 * (student.exp() - flat), rtol=1e-4, atol=1e-6)
    agreeing = compute_teacher_distances(teacher.log(), teacher, 5.0)
    torch.testing.assert_close(agreeing, torch.zeros(32), rtol=0, atol=1e-5)


def test_a_battle_without_a_teacher_uses_its_label_alone_and_its_gradient_is_finite():
    logits = torch.tensor([[1.0, -1.0], [0.5, 0.0]], requires_grad=True)
    labels, teacher = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[torch.nan, torch.nan], [1.0, 0.0]])
    loss = compute_preference_loss(logits, labels, teacher, distillation=Distillation(0.5, 2.0))
    plain = F.cross_entropy(logits, torch.tensor([0, 1]), reduction="none")
    distance = compute_teacher_distances(logits[1:], teacher[1:], 2.0)[0]
    assert loss.item() == pytest.approx((plain[0] + 0.5 * plain[1] + 0.5 * distance).item() / 2, rel=1e-6)
    loss.backward()
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("distillation", [Distillation(), Distillation(0.0, 5.0)])
def test_without_a_teacher_or_without_its_weight_the_loss_is_cross_entropy(distillation):
    logits, labels = torch.tensor([[1.0, -1.0], [0.5, 0.0]]), torch.tensor([[0.3, 0.7], [0.0, 1.0]])
    expected = soft_cross_entropy(logits, labels)
    assert torch.equal(compute_preference_loss(logits, labels), expected)
    assert torch.equal(compute_preference_loss(logits, labels, labels, distillation=distillation), expected)


def test_weights_act_per_battle_and_halves_of_a_batch_add_up():
    """The mean of the losses of two half batches is the loss of the whole batch, as gradient accumulation needs."""
    generator = torch.Generator().manual_seed(0)
    logits, weights = torch.randn(8, 2, generator=generator), torch.rand(8, generator=generator)
    labels = torch.softmax(torch.randn(8, 2, generator=generator), dim=-1)
    whole = compute_preference_loss(logits, labels, weights=weights)
    each = torch.stack([soft_cross_entropy(logits[row : row + 1], labels[row : row + 1]) for row in range(8)])
    torch.testing.assert_close(whole, (weights * each).mean())
    halves = [
        compute_preference_loss(logits[part], labels[part], weights=weights[part]) for part in (slice(4), slice(4, 8))
    ]
    torch.testing.assert_close(whole, sum(halves) / 2)


# --- both orders ------------------------------------------------------------------------------------------------------


def test_what_a_pass_gives_a_slot_whatever_is_in_it_cancels_out():
    content = torch.tensor([[1.0, -1.0], [0.3, 0.4]])
    slots = torch.tensor([[2.0, -3.0], [0.5, 0.0]])
    passes = torch.stack([content + slots, content.flip(-1) + slots], dim=1).flatten(0, 1)
    found = average_orders(passes).softmax(-1)
    assert torch.allclose(found, content.softmax(-1))
    mirrored = torch.stack([passes[1::2], passes[0::2]], dim=1).flatten(0, 1)  # the battles with their answers swapped
    assert torch.allclose(average_orders(mirrored).softmax(-1), found.flip(-1))
