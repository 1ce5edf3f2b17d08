import dataclasses

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods import method
from compression.nn import layers
from compression.nn.inputs import forward
from compression.tasks.task import evaluate
from compression.training.hyperparameters import Training
from compression.training.loop import decay_groups, epoch_batches, fit, other_batch_size, process_batch_size

Finetune = method("finetune")


def built(task, seed=0):
    torch.manual_seed(seed)
    return models.build("digits_cnn_small", task)


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def test_training_learns_and_records_every_epoch(task, make_context):
    context = make_context(task, built(task))
    model = fit(built(task), context, Training(epochs=4))
    assert evaluate(model, task.test, task)["accuracy"] > 0.8
    history = context.record.history
    assert [step for step, _ in history["train_loss"]] == [1, 2, 3, 4]
    assert {"train_loss", "val_accuracy", "learning_rate"} <= set(history)


def test_the_same_seed_gives_the_same_weights(task, make_context):
    one, other = (fit(built(task), make_context(task, built(task)), Training(epochs=1)) for _ in range(2))
    assert equal(weights(one), weights(other))


def test_another_seed_gives_other_weights(task, make_context):
    one, other = (fit(built(task), make_context(task, built(task), seed=s), Training(epochs=1)) for s in (0, 1))
    assert not equal(weights(one), weights(other))


class Stop(Exception):
    pass


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_killed_training_resumes_to_the_same_weights(task, make_context, tmp_path, keep):
    training = Training(epochs=4, keep=keep, schedule="cosine")
    whole = fit(built(task), make_context(task, built(task), folder=tmp_path / "whole"), training)

    def stop(step, steps):
        if step == 8 * 2 + 3:
            raise Stop

    with pytest.raises(Stop):
        fit(built(task), make_context(task, built(task), folder=tmp_path / "killed"), training, on_step=stop)
    torch.manual_seed(123)  # another process would have another state
    context = make_context(task, built(task), folder=tmp_path / "resumed", resume=tmp_path / "killed")
    resumed = fit(built(task, seed=5), context, training)
    assert equal(weights(whole), weights(resumed))
    assert [step for step, _ in context.record.history["train_loss"]] == [3, 4]


def test_a_corrupt_checkpoint_is_refused(task, make_context, tmp_path):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "train.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match="cannot be read"):
        fit(built(task), make_context(task, built(task), resume=tmp_path / "old"), Training(epochs=1))


def test_a_checkpoint_of_another_model_is_refused(task, make_context, tmp_path):
    fit(built(task), make_context(task, built(task), folder=tmp_path / "old"), Training(epochs=1))
    other = models.build("mlp", task)
    said = "network=ConvNet of 971 parameters, and this one has network=MLP of 49,923 parameters"
    with pytest.raises(UserError, match=said):
        fit(other, make_context(task, other, resume=tmp_path / "old"), Training(epochs=1))


def test_a_loss_that_is_not_finite_stops_with_step_and_advice(task, make_context, tmp_path):
    calls = []

    def loss(model, inputs, targets):
        calls.append(1)
        value = nn.functional.cross_entropy(forward(model, inputs), targets)
        return value * (float("nan") if len(calls) == 11 else 1.0)

    with pytest.raises(UserError, match=r"not finite at step 11 \(learning rate .*lower learning_rate.*kept"):
        fit(built(task), make_context(task, built(task)), Training(epochs=2), loss=loss)
    assert torch.load(tmp_path / "train.pt", weights_only=True)["epoch"] == 1


def test_out_of_memory_halves_the_batch_to_the_same_gradient(task, make_context):
    model = models.build("mlp", task)  # no batch norm: the batch may be cut anywhere without a difference
    twin = models.build("mlp", task)
    twin.load_state_dict(model.state_dict())

    def loss_of_few(model, inputs, targets):
        if len(targets) > 10:
            raise torch.OutOfMemoryError("out of memory")
        return nn.functional.cross_entropy(forward(model, inputs), targets)

    context = make_context(task, model)
    training = Training(epochs=1, keep="last")
    fit(model, context, training, loss=loss_of_few)
    fit(twin, make_context(task, twin), training)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert any("going on with 8 at a time" in w for w in context.record.warnings)


def test_out_of_memory_at_one_example_is_refused(task, make_context):
    def never(model, inputs, targets):
        raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(UserError, match="too little memory for a single example"):
        fit(built(task), make_context(task, built(task)), Training(epochs=1), loss=never)


def test_pruned_weights_stay_zero(task, make_context):
    model = built(task)
    for module in layers.prunable_layers(model).values():
        layers.set_mask(module, torch.rand_like(module.weight) > 0.5)
    zeros = {name: m.weight == 0 for name, m in layers.prunable_layers(model).items()}
    fit(model, make_context(task, model), Training(epochs=1))
    for name, module in layers.prunable_layers(model).items():
        assert (module.weight[zeros[name]] == 0).all()
        assert (module.weight[~zeros[name]] != 0).any()


def test_weight_decay_spares_norms_and_biases():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Linear(2, 2))
    decayed, spared = decay_groups(model)
    assert {p.ndim for p in decayed["params"]} == {4, 2}
    assert spared["weight_decay"] == 0
    assert len(spared["params"]) == 4


def test_unset_fields_are_filled_in_from_the_task(task):
    filled = Finetune(epochs=7).resolved(task).training
    assert filled.epochs == 7
    assert filled.batch_size == 32
    assert all(getattr(filled, f.name) is not None for f in dataclasses.fields(filled))


def test_the_best_epoch_on_validation_is_kept(task, make_context):
    context = make_context(task, built(task))
    model = fit(built(task), context, Training(epochs=5, learning_rate=0.3))
    best = max(value for _, value in context.record.history["val_accuracy"])
    assert evaluate(model, task.validation, task)["accuracy"] == pytest.approx(best)


def test_a_full_disk_is_reported_and_leaves_no_half_checkpoint(task, make_context, tmp_path):
    (tmp_path / "train.pt.half").symlink_to("/dev/full")  # writes to it fail as on a disk without room
    with pytest.raises(UserError, match="Could not write .*train.pt: .*COMPRESSION_HOME"):
        fit(built(task), make_context(task, built(task)), Training(epochs=1))
    assert not list(tmp_path.iterdir())


def test_a_last_batch_of_one_example_does_not_break_batch_norm(task, make_context):
    task = dataclasses.replace(task, train=task.train.select(torch.arange(65)))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))
    context = make_context(task, model)
    fit(model, context, Training(epochs=2))
    assert len(context.record.history["train_loss"]) == 2


@pytest.mark.parametrize("tight", [False, True])
def test_per_example_tensors_reach_the_loss_with_their_examples(task, make_context, tight):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    brightness = task.train.inputs.float().mean((1, 2, 3)) / 255 - 0.5
    received = []

    def loss(model, inputs, targets, brightness_of_batch, indices):
        if tight and len(targets) > 20:
            raise torch.OutOfMemoryError("out of memory")
        torch.testing.assert_close(inputs.mean((1, 2, 3)), brightness_of_batch)
        assert torch.equal(task.train.targets[indices], targets)
        received.extend(indices.tolist())
        return nn.functional.cross_entropy(forward(model, inputs), targets)

    per_example = [brightness, torch.arange(len(task.train))]
    fit(model, make_context(task, model), Training(epochs=1), loss=loss, per_example=lambda epoch: per_example)
    assert sorted(received) == list(range(256))


def test_epochs_take_a_fixed_set_of_views_in_turn(task, make_context):
    def noisy(images, generator):
        return images + torch.randint(0, 60, images.shape, generator=generator).to(images.dtype)

    task = dataclasses.replace(task, augment=noisy)
    context = make_context(task, built(task))

    def epoch(number, views):
        training = Training(views=views).resolved(task.training)
        return torch.cat([inputs for inputs, _ in epoch_batches(task.train, [], context, training, number)])

    assert torch.equal(epoch(0, 2), epoch(2, 2))
    assert not torch.equal(epoch(0, 2), epoch(1, 2))
    assert not torch.equal(epoch(0, 0), epoch(2, 0))


@pytest.mark.parametrize(
    ("batch_size", "processes", "said"),
    [
        (128, 1, ""),
        (128, 4, ""),
        (128, 3, "batch_size=128 is no multiple of the 3 processes: each takes 42 examples at a step, 126 together."),
        (2, 3, "batch_size=2 is no multiple of the 3 processes: each takes 1 examples at a step, 3 together."),
    ],
)
def test_a_batch_that_processes_cannot_share_is_told(batch_size, processes, said):
    assert other_batch_size(batch_size, processes) == said
    assert process_batch_size(batch_size, processes) * processes == (batch_size if not said else int(said.split()[-2]))
