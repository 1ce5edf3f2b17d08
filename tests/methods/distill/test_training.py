"""Cached teacher logits: computed once per view of an example, with the same result as computing them every time."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from compression import models
from compression.methods.distill.logits import training as logits_training
from compression.methods.distill.logits.teacher_time import log_total_share
from compression.methods.distill.response import soft_loss
from compression.tasks.task import predict
from compression.training.hyperparameters import Training


class Counting(nn.Module):
    """A teacher that counts the examples it sees."""

    def __init__(self, model):
        super().__init__()
        self.model, self.count = model, 0

    def forward(self, images):
        self.count += len(images)
        return self.model(images)


def logits_loss(student, teachers, targets):
    return soft_loss(student, teachers[0], 4.0)


def trained(task, make_context, cache_bytes, monkeypatch, **changes):
    """A student after two epochs, its teacher and the context."""
    monkeypatch.setattr(logits_training, "CACHE_BYTES", cache_bytes)
    torch.manual_seed(0)
    teacher = Counting(models.build("digits_cnn", task)).eval().requires_grad_(False)
    student, context = models.build("mlp", task), make_context(task, teacher)
    training = Training(**({"epochs": 2, "keep": "last"} | changes))
    return (
        logits_training.train_on_logits(student, [teacher], context, training.resolved(task.training), logits_loss),
        teacher,
        context,
    )


def test_cached_logits_train_to_the_same_weights(task, make_context, monkeypatch):
    cached, once, _ = trained(task, make_context, 2**30, monkeypatch)
    computed, every, _ = trained(task, make_context, 0, monkeypatch)
    assert (once.count, every.count) == (256, 2 * 256)
    for one, other in zip(cached.state_dict().values(), computed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_cached_logits_are_in_the_order_of_the_examples(task, make_context):
    teacher = models.build("digits_cnn", task).eval()
    [logits] = logits_training.epoch_teacher_logits(
        [teacher], make_context(task, teacher), Training().resolved(task.training), 0
    )
    torch.testing.assert_close(logits, predict(teacher, task.train)[0], rtol=0, atol=1e-5)
    assert not logits.requires_grad


def test_the_teacher_sees_new_augmentations_every_time(task, make_context, monkeypatch):
    flipped = dataclasses.replace(task, augment=lambda images, generator: images.flip(3))
    _, teacher, _ = trained(flipped, make_context, 2**30, monkeypatch)
    assert teacher.count == 2 * 256
    _, teacher, _ = trained(flipped, make_context, 2**30, monkeypatch, augment=False)
    assert teacher.count == 256


def test_the_teacher_sees_each_of_a_fixed_set_of_views_once(task, make_context, monkeypatch):
    def noisy(images, generator):
        return images + torch.randint(0, 60, images.shape, generator=generator).to(images.dtype)

    noisy_task = dataclasses.replace(task, augment=noisy)
    cached, once, _ = trained(noisy_task, make_context, 2**30, monkeypatch, views=2, epochs=5)
    computed, every, _ = trained(noisy_task, make_context, 0, monkeypatch, views=2, epochs=5)
    assert (once.count, every.count) == (2 * 256, 5 * 256)
    for one, other in zip(cached.state_dict().values(), computed.state_dict().values(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-4)


def test_the_logits_of_several_teachers_keep_their_order(task, make_context):
    teachers = [models.build("mlp", task).eval().requires_grad_(False) for _ in range(2)]
    rows = [predict(teacher, task.train)[0] for teacher in teachers]
    received = []

    def loss(student, of_teachers, targets):
        received.append([logits.clone() for logits in of_teachers])
        return soft_loss(student, of_teachers[0], 1.0)

    context = make_context(task, teachers[0])
    logits_training.train_on_logits(
        copy.deepcopy(teachers[0]).requires_grad_(True),
        teachers,
        context,
        Training(epochs=1).resolved(task.training),
        loss,
    )
    for number in (0, 1):
        logits = torch.cat([of_batch[number] for of_batch in received]).sort(0).values
        torch.testing.assert_close(logits, rows[number].sort(0).values, rtol=0, atol=1e-5)


@pytest.mark.parametrize("cache_bytes", [0, 2**30])
def test_the_teachers_share_of_the_time_is_recorded(task, make_context, monkeypatch, cache_bytes):
    _, _, context = trained(task, make_context, cache_bytes, monkeypatch)
    [(step, share)] = context.record.history["teacher_time_share"]
    assert step is None
    assert 0 < share < 1


def test_several_trainings_have_one_share_of_their_total_time(task, make_context):
    context = make_context(task, nn.Identity())
    context.teacher_times.append((9.0, 9.0))  # of an earlier step
    with log_total_share(context):
        context.teacher_times.extend([(1.0, 2.0), (1.0, 6.0)])
    assert context.record.history["teacher_time_share"] == [(None, 0.25)]
