import math

import pytest
import torch
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods import method
from compression.methods.distill.decoupled import decoupled_losses
from compression.methods.distill.response import soft_loss
from tests.conftest import stripes_task

Decoupled = method("decoupled")


def test_both_terms_equal_the_case_worked_by_hand():
    # three classes, the first is the target; probabilities 1/2, 1/3, 1/6 of the teacher, 1/4, 1/4, 1/2 of the student
    teacher, student = torch.tensor([[1 / 2, 1 / 3, 1 / 6]]).log(), torch.tensor([[1 / 4, 1 / 4, 1 / 2]]).log()
    target, others = decoupled_losses(student, teacher, torch.tensor([0]), temperature=1.0)
    assert target.item() == pytest.approx(0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75), rel=1e-5)
    by_hand = 2 / 3 * math.log((2 / 3) / (1 / 3)) + 1 / 3 * math.log((1 / 3) / (2 / 3))
    assert others.item() == pytest.approx(by_hand, rel=1e-5)


def test_weighted_by_the_teachers_other_classes_the_terms_sum_to_response():
    # Zhao et al. 2022, eq. 6: KD = TCKD + (1 - p_target of the teacher) NCKD, for each example
    student, teacher, targets = torch.randn(1, 10), torch.randn(1, 10), torch.tensor([3])
    target, others = decoupled_losses(student, teacher, targets, temperature=4.0)
    others_probability = 1 - F.softmax(teacher / 4, 1)[0, 3]
    assert (target + others_probability * others).item() == pytest.approx(
        soft_loss(student, teacher, 4.0).item(), rel=1e-4
    )


def published(student, teacher, targets, alpha, beta, temperature):
    """As the authors compute it: softmaxes, with the target's logit pushed away for the second term."""
    chosen = F.one_hot(targets, student.shape[1]).float()
    halves = []
    for logits in (student, teacher):
        p = F.softmax(logits / temperature, 1)
        halves.append(torch.stack([(p * chosen).sum(1), (p * (1 - chosen)).sum(1)], 1))
    first = (halves[1] * (halves[1] / halves[0]).log()).sum(1).mean() * temperature**2
    p, q = (F.softmax(logits / temperature - 1000 * chosen, 1) for logits in (student, teacher))
    second = (q * ((q + 1e-30) / (p + 1e-30)).log()).sum(1).mean() * temperature**2
    return alpha * first + beta * second


def test_the_loss_is_the_published_one_plus_that_of_the_labels():
    student, teacher, targets = 3 * torch.randn(16, 3), 3 * torch.randn(16, 3), torch.randint(3, (16,))
    found = Decoupled(alpha=1.5, beta=4.0, temperature=2.0).logits_loss(stripes_task())(student, [teacher], targets)
    expected = F.cross_entropy(student, targets) + published(student, teacher, targets, 1.5, 4.0, 2.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)


def test_with_two_classes_only_the_target_teaches():
    _, others = decoupled_losses(torch.randn(8, 2), torch.randn(8, 2), torch.randint(2, (8,)), 4.0)
    assert others.item() == pytest.approx(0.0, abs=1e-6)


def test_very_confident_outputs_give_a_finite_loss_and_gradient():
    student = torch.tensor([[100.0, -100.0, 0.0]], requires_grad=True)
    sum(decoupled_losses(student, -student.detach(), torch.tensor([0]), 1.0)).backward()
    assert torch.isfinite(student.grad).all()


def test_a_regression_is_refused(make_context):
    task = stripes_task(outputs=1)
    with pytest.raises(UserError, match="decoupled needs a task with classes, and stripes is a regression"):
        Decoupled().apply(torch.nn.Identity(), make_context(task, torch.nn.Identity()))
