import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods import method
from compression.methods.distill.feature import HintLoss, hint_loss, regressor
from compression.methods.distill.layers.layer_distillation import train_on_layers
from compression.tasks.task import evaluate

Feature = method("feature")


def test_the_loss_is_the_mean_squared_difference_worked_by_hand():
    student, teacher = torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.tensor([[1.0, 0.0], [3.0, 1.0]])
    assert hint_loss(student, teacher).item() == pytest.approx((4 + 9) / 4)


def test_images_of_different_size_are_averaged_to_the_smaller():
    large = torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])  # its mean is 4
    assert hint_loss(large, torch.tensor([[[[1.0]]]])).item() == pytest.approx(9.0)
    assert hint_loss(torch.tensor([[[[1.0]]]]), large).item() == pytest.approx(9.0)


def test_padding_does_not_count():
    student, teacher = torch.zeros(1, 3, 2), torch.tensor([[[1.0, 1.0], [2.0, 2.0], [99.0, 99.0]]])
    mask = torch.tensor([[True, True, False]])
    assert hint_loss(student, teacher, mask).item() == pytest.approx((1 + 1 + 4 + 4) / 4)


@pytest.mark.parametrize(
    ("student", "teacher", "kind"),
    [
        ((2, 4, 8, 8), (2, 16, 8, 8), nn.Conv2d),
        ((2, 5, 32), (2, 5, 48), nn.Linear),
        ((2, 32), (2, 48), nn.Linear),
        ((2, 16, 4, 4), (2, 16, 8, 8), nn.Identity),
        ((2, 5, 48), (2, 5, 48), nn.Identity),
    ],
)
def test_a_regressor_maps_between_different_widths(student, teacher, kind):
    found = regressor(torch.zeros(student), torch.zeros(teacher))
    assert type(found) is kind
    dimension = 1 if len(teacher) == 4 else -1
    assert found(torch.zeros(student)).shape[dimension] == teacher[dimension]


def test_the_term_is_the_weighted_mean_over_the_pairs():
    teacher = {"a": torch.ones(2, 3), "b": torch.zeros(2, 3)}
    student = {"x": torch.zeros(2, 3), "y": 2 * torch.ones(2, 3)}
    loss = HintLoss([("a", "x"), ("b", "y")], teacher, student, weight=10.0)
    assert loss(teacher, student, None).item() == pytest.approx(10 * (1 + 4) / 2)


def test_the_regressors_learn_with_the_student(task, make_context):
    torch.manual_seed(0)
    teacher = models.build("digits_cnn", task).eval().requires_grad_(False)
    step, student, context = Feature(epochs=1), models.build("digits_cnn_small", task), make_context(task, teacher)
    loss = step.layer_loss(teacher, student, context)
    assert [type(m) for m in loss.regressors] == [nn.Conv2d] * 2
    before = [copy.deepcopy(m.weight) for m in loss.regressors]
    train_on_layers(student, teacher, loss, context, step.training_for(task), step.logits_loss(task))
    assert not any(torch.equal(a, m.weight) for a, m in zip(before, loss.regressors, strict=True))


def test_layers_of_two_kinds_are_refused(task, make_context):
    teacher = models.build("digits_cnn", task)
    with pytest.raises(UserError, match=r"stages.1 and the student's fc cannot be compared: .*\[2, 3\]"):
        Feature(pairs="stages.1:fc").apply(teacher, make_context(task, teacher))


def test_a_network_without_images_has_vectors_to_hint_at(task, make_context):
    torch.manual_seed(0)
    teacher = models.build("mlp", task)
    context = make_context(task, teacher)
    student = Feature(epochs=4, width=0.5, alpha=0.0).apply(teacher, context)
    assert evaluate(student, task.test, task)["accuracy"] > 0.6
    assert "features" not in context.record.figures
