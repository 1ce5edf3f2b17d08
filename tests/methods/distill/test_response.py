import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression import models
from compression.methods import method
from compression.methods.distill.response import soft_loss
from compression.tasks.task import evaluate

Response = method("response")


def test_the_loss_equals_the_case_worked_by_hand():
    # one example, two classes, T = 2: teacher logits (2, 0) -> softened (1, 0); student (0, 0) -> (1/2, 1/2)
    p = math.e / (math.e + 1)
    by_hand = p * math.log(p / 0.5) + (1 - p) * math.log((1 - p) / 0.5)
    found = soft_loss(torch.zeros(1, 2), torch.tensor([[2.0, 0.0]]), temperature=2.0)
    assert found.item() == pytest.approx(4 * by_hand, rel=1e-5)


def test_the_gradient_keeps_its_size_as_the_temperature_rises():
    # Hinton et al. 2015, section 2.1: for large T the gradient tends to (z - v) / N, whatever T
    student, teacher = torch.randn(4, 10, requires_grad=True), torch.randn(4, 10)
    sizes = []
    for temperature in (50.0, 200.0):
        [gradient] = torch.autograd.grad(soft_loss(student, teacher, temperature), student)
        sizes.append(gradient.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
    centred = (student - student.mean(1, keepdim=True)) - (teacher - teacher.mean(1, keepdim=True))
    assert sizes[1] == pytest.approx(centred.norm().item() / 10 / 4, rel=0.02)


def test_the_mean_is_over_examples_not_over_classes():
    # the pitfall of nn.KLDivLoss()'s default: its mean over examples and classes is ten times weaker at ten classes
    student, teacher = torch.randn(8, 10), torch.randn(8, 10)
    weak = F.kl_div(F.log_softmax(student, 1), F.softmax(teacher, 1), reduction="none").mean()
    assert soft_loss(student, teacher, 1.0).item() == pytest.approx(10 * weak.item(), rel=1e-4)


def test_one_output_is_a_regression():
    assert soft_loss(torch.tensor([[1.0], [3.0]]), torch.tensor([[0.0], [1.0]]), 4.0).item() == pytest.approx(2.5)


@pytest.mark.parametrize(("alpha", "soft_weight", "hard_weight"), [(0.0, 0, 1), (1.0, 1, 0), (0.25, 0.25, 0.75)])
def test_alpha_weighs_the_two_terms(task, alpha, soft_weight, hard_weight):
    student, teacher, targets = torch.randn(16, 3), torch.randn(16, 3), torch.randint(3, (16,))
    expected = soft_weight * soft_loss(student, teacher, 3.0) + hard_weight * F.cross_entropy(student, targets)
    found = Response(alpha=alpha, temperature=3.0).logits_loss(task)(student, [teacher], targets)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_labels_are_smoothed_as_the_training_says(task):
    student, targets = torch.randn(16, 3), torch.randint(3, (16,))
    found = Response(alpha=0.0, label_smoothing=0.2).logits_loss(task)(student, [student], targets)
    assert found.item() == pytest.approx(F.cross_entropy(student, targets, label_smoothing=0.2).item())


def test_the_teacher_never_changes_and_the_student_learns(task, make_context):
    teacher = models.build("digits_cnn", task)
    context = make_context(task, teacher)
    teacher = method("finetune")(epochs=4).apply(teacher, context)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    context = make_context(task, teacher)
    student = Response(epochs=4).apply(teacher, context)
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    assert isinstance(student, nn.Module)
    assert student is not teacher
    assert evaluate(student, task.test, task)["accuracy"] > 0.8
    assert "softened" in context.record.figures


@pytest.mark.parametrize("name", ["response", "multi_teacher", "progressive"])
@pytest.mark.parametrize(("alpha", "runs"), [(0, False), (0.5, True)])
def test_a_teacher_runs_only_if_its_term_has_a_weight(name, alpha, runs, task, make_context):
    teacher, seen_examples = models.build("mlp", task), []
    teacher.register_forward_pre_hook(lambda _, inputs: seen_examples.append(len(inputs[0])))
    context = make_context(task, teacher)
    method(name)(alpha=alpha, epochs=1, student="digits_cnn_small").apply(teacher, context)
    assert (sum(seen_examples) >= len(task.train)) is runs  # the figure shows it a few
