import copy
import math

import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.methods import method, parse, text
from compression.methods.distill.multi_teacher import confidence_weights, teacher_errors
from compression.methods.distill.mutual import have_equal_weights
from compression.methods.distill.response import soft_loss
from compression.tasks.task import evaluate

MultiTeacher = method("multi_teacher")


def test_two_slashes_separate_names_that_contain_single_ones():
    given = "resnet20//runs:/0123/model///home/me/model"
    [step] = parse(f"multi_teacher:teachers={given}")
    assert step.teachers == ("resnet20", "runs:/0123/model", "/home/me/model")
    assert parse(text([step])) == (step,)


@pytest.mark.parametrize(("fields", "shares"), [({}, (0.5, 0.5)), ({"weights": "3/1"}, (0.75, 0.25))])
def test_fixed_weights_count_as_given_and_add_up_to_one(task, fields, shares):
    student, teachers, targets = torch.randn(8, 3), [torch.randn(8, 3) for _ in range(2)], torch.randint(3, (8,))
    weighting = "weighted" if fields else "mean"
    step = MultiTeacher(teachers="a//b", weighting=weighting, alpha=1.0, **fields)
    expected = sum(share * soft_loss(student, one, 4.0) for share, one in zip(shares, teachers, strict=True))
    assert step.logits_loss(task)(student, teachers, targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_gradient_is_that_of_the_mean_of_the_teachers_outputs():
    student, teachers = torch.randn(8, 3, requires_grad=True), [torch.randn(8, 3) for _ in range(2)]
    step = MultiTeacher(teachers="a//b", temperature=2.0)
    [found] = torch.autograd.grad(step.teacher_loss(student, teachers, torch.zeros(8).long()), student)
    mean = torch.stack([(one / 2).softmax(1) for one in teachers]).mean(0)
    [expected] = torch.autograd.grad(soft_loss(student, 2 * mean.log(), 2.0), student)
    torch.testing.assert_close(found, expected)


def test_the_teacher_that_errs_less_counts_more_as_worked_by_hand():
    # cross-entropies ln 2 and ln 4 make exp(CE) 2 and 4: weights 1 - 2/6 and 1 - 4/6
    found = confidence_weights(torch.tensor([[math.log(2)], [math.log(4)]]))
    assert found.flatten().tolist() == pytest.approx([2 / 3, 1 / 3])
    of_three = confidence_weights(torch.randn(3, 5))
    torch.testing.assert_close(of_three.sum(0), torch.ones(5))
    assert (of_three <= 0.5).all()


def test_errors_are_those_of_each_example():
    assert teacher_errors(torch.zeros(2, 4), torch.tensor([0, 3])).tolist() == pytest.approx([math.log(4)] * 2)
    assert teacher_errors(torch.tensor([[1.0], [3.0]]), torch.tensor([0.0, 1.0])).tolist() == [1.0, 4.0]


def test_confidence_weighs_example_by_example(task):
    targets = torch.tensor([0, 1])
    right_first = torch.tensor([[9.0, 0, 0], [9.0, 0, 0]])  # right for the first example, wrong for the second
    right_second = torch.tensor([[0, 9.0, 0], [0, 9.0, 0]])
    weights = MultiTeacher(teachers="a//b", weighting="confidence").teacher_weights(
        [right_first, right_second], targets
    )
    torch.testing.assert_close(weights, torch.eye(2), rtol=0, atol=1e-3)


def test_every_teacher_is_loaded_and_none_changes(task, make_context):
    loaded = []

    def load(name):
        model = models.build(name, task)
        loaded.append((name, model, copy.deepcopy(model)))
        return model

    original = models.build("digits_cnn", task)
    context = make_context(task, original, load=load)
    step = MultiTeacher(teachers="mlp//digits_cnn", weighting="confidence", epochs=4, alpha=0.5)
    torch.manual_seed(0)
    student = step.apply(original, context)
    assert [name for name, _, _ in loaded] == ["mlp", "digits_cnn"]
    assert all(have_equal_weights(model, before) and not model.training for _, model, before in loaded)
    assert not context.record.warnings
    assert evaluate(student, task.test, task)["accuracy"] > 0.6


def test_a_single_teacher_is_warned_of_as_response(task, make_context):
    original = models.build("digits_cnn", task)
    context = make_context(task, original)
    MultiTeacher(epochs=1).apply(original, context)
    assert "this is response" in context.record.warnings[0]


@pytest.mark.parametrize(
    ("chain", "sentence"),
    [
        ("teachers=a//b,weighting=weighted", "weighting=weighted takes a number for each"),
        ("teachers=a//b,weights=1/2", "do not go together"),
        ("teachers=a//b,weighting=weighted,weights=1", "weights has 1 numbers for 2 teachers; give 2"),
        ("teachers=a//b,weighting=weighted,weights=1/x", r"takes a list of numbers, a/b, each in \(0, inf\)"),
        (
            "teachers=a//b,weighting=weighted,weights=1/-1",
            r"out of range; it takes a list of numbers, a/b, each in \(0, inf\)",
        ),
    ],
)
def test_weights_that_do_not_fit_are_refused(chain, sentence):
    with pytest.raises(UserError, match=sentence):
        parse(f"multi_teacher:{chain}")
