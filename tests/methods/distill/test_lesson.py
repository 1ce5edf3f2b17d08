"""The teacher is asked once where its answer cannot change, to the same result as asking it every time."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from compression import models
from compression.methods.distill.logits import lesson
from compression.methods.distill.logits.teacher_time import one_share
from compression.methods.distill.response import soft_loss
from compression.tasks.task import predict
from compression.training.hyperparameters import Training


class Counting(nn.Module):
    """A teacher that counts how many examples it is shown."""

    def __init__(self, model):
        super().__init__()
        self.model, self.shown = model, 0

    def forward(self, images):
        self.shown += len(images)
        return self.model(images)


def judge(answer, known, targets):
    return soft_loss(answer, known[0], 4.0)


def taught(task, make_context, keep, monkeypatch, **changes):
    """A student after two epochs, its teacher and the context; `keep`: how many bytes of logits may be kept."""
    monkeypatch.setattr(lesson, "KEPT_BYTES", keep)
    torch.manual_seed(0)
    teacher = Counting(models.build("digits_cnn", task)).eval().requires_grad_(False)
    student, context = models.build("mlp", task), make_context(task, teacher)
    training = Training(**({"epochs": 2, "keep": "last"} | changes))
    return lesson.learn(student, [teacher], context, training.resolved(task.training), judge), teacher, context


def test_kept_answers_teach_the_same_as_asked_ones(task, make_context, monkeypatch):
    kept, once, _ = taught(task, make_context, 2**30, monkeypatch)
    asked, every, _ = taught(task, make_context, 0, monkeypatch)
    assert (once.shown, every.shown) == (256, 2 * 256)
    for one, other in zip(kept.state_dict().values(), asked.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_kept_answers_stand_beside_their_examples(task, make_context):
    teacher = models.build("digits_cnn", task).eval()
    [known] = lesson.answers([teacher], make_context(task, teacher), Training().resolved(task.training), 0)
    torch.testing.assert_close(known, predict(teacher, task.train)[0], rtol=0, atol=1e-5)
    assert not known.requires_grad


def test_varied_examples_are_shown_to_the_teacher_every_time(task, make_context, monkeypatch):
    varied = dataclasses.replace(task, augment=lambda images, generator: images.flip(3))
    _, teacher, _ = taught(varied, make_context, 2**30, monkeypatch)
    assert teacher.shown == 2 * 256
    _, teacher, _ = taught(varied, make_context, 2**30, monkeypatch, augment=False)
    assert teacher.shown == 256


def test_of_a_fixed_set_of_views_the_teacher_is_asked_once_each(task, make_context, monkeypatch):
    def noisy(images, generator):
        return images + torch.randint(0, 60, images.shape, generator=generator).to(images.dtype)

    noised = dataclasses.replace(task, augment=noisy)
    kept, once, _ = taught(noised, make_context, 2**30, monkeypatch, views=2, epochs=5)
    asked, every, _ = taught(noised, make_context, 0, monkeypatch, views=2, epochs=5)
    assert (once.shown, every.shown) == (2 * 256, 5 * 256)
    for one, other in zip(kept.state_dict().values(), asked.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_several_teachers_are_heard_each_in_its_place(task, make_context):
    teachers = [models.build("mlp", task).eval().requires_grad_(False) for _ in range(2)]
    rows = [predict(teacher, task.train)[0] for teacher in teachers]
    heard = []

    def judge(answer, known, targets):
        heard.append([k.clone() for k in known])
        return soft_loss(answer, known[0], 1.0)

    context = make_context(task, teachers[0])
    lesson.learn(
        copy.deepcopy(teachers[0]).requires_grad_(True),
        teachers,
        context,
        Training(epochs=1).resolved(task.training),
        judge,
    )
    for place in (0, 1):
        ours = torch.cat([known[place] for known in heard]).sort(0).values
        torch.testing.assert_close(ours, rows[place].sort(0).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("keep", [0, 2**30])
def test_the_share_of_time_that_the_teacher_takes_is_told(task, make_context, monkeypatch, keep):
    _, _, context = taught(task, make_context, keep, monkeypatch)
    [(step, share)] = context.record.history["teacher_time_share"]
    assert step is None
    assert 0 < share < 1


def test_several_lessons_have_one_share_of_all_their_time(task, make_context):
    context = make_context(task, nn.Identity())
    context.teacher_times.append((9.0, 9.0))  # of an earlier step
    with one_share(context):
        context.teacher_times.extend([(1.0, 2.0), (1.0, 6.0)])
    assert context.record.history["teacher_time_share"] == [(None, 0.25)]
