import math
import random

import pytest
import torch
from torch import nn

from compression.training.hyperparameters import Training
from compression.training.loop import decay_groups, fit, make_optimizer, make_scheduler


def rates(training, steps):
    optimizer = make_optimizer(decay_groups(nn.Linear(2, 2)), training)
    scheduler = make_scheduler(optimizer, training, steps=steps)
    found = []
    for _ in range(steps):
        found.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize(
    ("schedule", "warmup", "expected"),
    [
        ("constant", 0.0, [1, 1, 1, 1]),
        ("linear", 0.0, [1, 0.75, 0.5, 0.25]),
        ("cosine", 0.0, [1, 0.5 * (1 + math.cos(math.pi / 4)), 0.5, 0.5 * (1 + math.cos(3 * math.pi / 4))]),
        ("linear", 0.5, [1 / 3, 2 / 3, 1, 0.5]),
    ],
)
def test_a_schedule_follows_its_formula(schedule, warmup, expected):
    training = Training(learning_rate=1.0, optimizer="sgd", schedule=schedule, warmup=warmup)
    assert rates(training, 4) == pytest.approx(expected)


@pytest.mark.parametrize(("steps", "warmup"), [(10, 0.3), (100, 0.25), (7, 0.9), (3, 0.4)])
def test_one_cycle_is_that_of_torch(steps, warmup):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.1, total_steps=steps + 1, pct_start=warmup, cycle_momentum=False
    )
    expected = []
    for _ in range(steps):
        expected.append(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()
    training = Training(learning_rate=0.1, optimizer="sgd", schedule="onecycle", warmup=warmup)
    assert rates(training, steps) == pytest.approx(expected)


@pytest.mark.parametrize("schedule", ["onecycle", "cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 0.0])
def test_a_warmup_of_zero_begins_at_the_peak(schedule, warmup):
    training = Training(learning_rate=0.1, optimizer="sgd", schedule=schedule, warmup=warmup)
    for steps in (1, 2, 3, 100):
        found = rates(training, steps)
        assert found[0] == max(found) == pytest.approx(0.1)


def test_a_one_cycle_without_a_warmup_of_its_own_warms_up_for_three_tenths():
    found = rates(Training(learning_rate=0.1, optimizer="sgd", schedule="onecycle"), 99)
    assert found.index(max(found)) == 29


def test_every_schedule_of_any_length_and_warmup_stays_below_its_peak():
    draw = random.Random(0)
    for schedule in ("onecycle", "cosine", "linear", "constant"):
        for steps in range(1, 9):
            for warmup in [0.0, 0.25, 0.5, 0.999999, 1 / (steps + 1), *(draw.random() for _ in range(5))]:
                found = rates(Training(learning_rate=0.1, optimizer="adamw", schedule=schedule, warmup=warmup), steps)
                assert all(0 < rate <= 0.1 + 1e-12 for rate in found), (schedule, steps, warmup)


@pytest.mark.parametrize("epochs", [1, 3])
def test_a_warmup_of_a_single_step_trains(task, make_context, epochs):
    # 3 steps and a warm-up of a quarter: the cycle's peak lies at its first step
    task = task.__class__(**{**vars(task), "train": task.train.select(torch.arange(40))})
    context = make_context(task, nn.Sequential(nn.Flatten(), nn.Linear(64, 3)))
    fit(context.original, context, Training(epochs=epochs, batch_size=40, schedule="onecycle", warmup=0.25))
    assert len(context.record.history["train_loss"]) == epochs
