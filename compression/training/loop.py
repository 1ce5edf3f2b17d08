"""The only training loop. A method that trains calls `fit` with its own loss; nobody else has a loop."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.errors import UserError, first_line
from compression.nn import layers
from compression.nn.inputs import Inputs, answers, map_inputs
from compression.tasks.images import cutout
from compression.tasks.task import Split, Task, score
from compression.training.checkpoint import Checkpoint
from compression.training.conditions import training_conditions
from compression.training.divergence import require_finite_losses, require_finite_outputs, require_finite_start
from compression.training.progress import Progress
from compression.training.schedule import current_rate, has_same_rates, make_scheduler

if TYPE_CHECKING:
    from compression.training.context import Context
    from compression.training.hyperparameters import Training

Loss = Callable[..., Tensor]  # (model, inputs, targets, *per-example tensors) -> a scalar
OF_BATCH_NORM = "Expected more than 1 value per channel"  # how torch refuses a single example with 1 x 1 features
LOSS_CHECK = 16  # steps between checks for a loss that is not finite: each check waits for the device


def fit(
    model: nn.Module,
    context: Context,
    training: Training,
    *,
    loss: Loss | None = None,
    on_step: Callable[[int, int], None] | None = None,
    extra: nn.Module | None = None,
    parameter_groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
    per_example: Callable[[int], Sequence[Tensor]] | None = None,
    name: str = "",
) -> nn.Module:
    """Train `model` in place on the task's training split and return it in eval mode.

    `loss(model, inputs, targets)` gives a scalar, the task's own loss if left out. `on_step(step, steps)` is
    called after every optimizer step (steps counted from 1). `extra` holds further modules to train along with
    the model (a regressor of hints, say). `parameter_groups` replaces those of the optimizer. `per_example(epoch)`
    gives tensors with a row for every training example (a teacher's logits, say); the rows of a batch are passed to
    `loss` after its targets. Masks are re-applied after every step. A checkpoint is written every epoch under
    `name`, and `context.resume` goes on from it, under equal conditions alone. Raises UserError where a loss, an output
    or a starting weight is not finite, and where batch norms are given a single example.
    """
    training = training.resolved(context.task.training)
    assert training.epochs is not None
    accelerator, device = context.accelerator, context.device
    train, validation = context.task.train.to(device), context.task.validation.to(device)
    loss = loss or task_loss(context.task, training)
    assert training.batch_size is not None
    if sentence := other_batch_size(training.batch_size, accelerator.num_processes):
        context.record.warn(sentence)
    # One module with `extra`, whose weights, buffers and progress travel in checkpoints and belong to the best epoch.
    trained = nn.ModuleList([model, *([extra] if extra is not None else [])]).to(device)
    require_finite_start(trained, train)
    set_memory_format(trained, torch.channels_last)
    # Only the number counts here, so a throwaway generator will do.
    steps_per_epoch = len(batch_indices(train, context, training, torch.Generator()))

    optimizer = make_optimizer((parameter_groups or decay_groups)(trained), training)
    scheduler = make_scheduler(optimizer, training, steps=steps_per_epoch * training.epochs)
    # Not the scheduler, which accelerate would step once for each process.
    runner, optimizer = accelerator.prepare(model, optimizer)
    optimizer_step = OptimizerStep(runner, loss, optimizer, context, training)
    title = "-".join(filter(None, [context.step_name, name]))
    conditions = training_conditions(model, context, training)

    def has_same_start(epochs: int, done: int) -> bool:
        # What `on_step` does, and the trainings that come after this one, follow from the number of epochs.
        return not on_step and not name and has_same_rates(training, epochs, done, steps_per_epoch)

    checkpoint = Checkpoint(title, context, conditions, has_same_start, trained, optimizer, scheduler)
    best = checkpoint.best
    progress = Progress(title, training.epochs, steps_per_epoch, checkpoint.epoch, not accelerator.is_main_process)

    for epoch in range(checkpoint.epoch, training.epochs):
        # Every epoch anew: measuring the epoch before has left the model in eval mode.
        trained.train()
        started, losses = time.perf_counter(), []
        rows = [tensor.to(device) for tensor in per_example(epoch)] if per_example else []
        for inputs, *per_batch in epoch_batches(train, rows, context, training, epoch):
            losses.append(optimizer_step(inputs, *per_batch))
            scheduler.step()
            # A pruned weight is a parameter that is 0: its gradient and its momentum move it at every step.
            layers.apply_masks(model)
            step = epoch * steps_per_epoch + len(losses)
            if on_step:
                on_step(step, steps_per_epoch * training.epochs)
            if len(losses) % LOSS_CHECK == 0 or len(losses) == steps_per_epoch:
                require_finite_losses(losses, step - len(losses), training, current_rate(scheduler), checkpoint.kept())
            progress.step()

        # All of the split in every process, so that all of them keep the same epoch as the best.
        scores = score(model.eval(), validation, context.task)
        # The last update of an epoch may ruin weights whose losses were all finite.
        require_finite_outputs(scores, epoch + 1, training, current_rate(scheduler), checkpoint.kept())
        quality = scores.metrics()[context.task.metric]
        metrics = {
            "train_loss": torch.stack(losses).mean().item(),
            f"val_{context.task.metric}": quality,
            "learning_rate": current_rate(scheduler),
        }
        context.record.metrics(metrics | {"epoch_seconds": time.perf_counter() - started}, context.epochs.next())
        best = best.updated(context.task.gain(quality), trained) if training.keep == "best" else best
        checkpoint.write(epoch + 1, best)
        progress.epoch(epoch + 1, metrics)

    progress.close()
    best.restore(trained)
    set_memory_format(trained, torch.contiguous_format)
    layers.apply_masks(model)
    return model.eval()


def set_memory_format(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Keep the weights of convolutions in `memory_format`, in place: channels-last trains 1.3 times the images/s.

    Parameters alone: a buffer may be held in two places (masks that travel in a checkpoint), and must stay one.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def task_loss(task: Task, training: Training) -> Loss:
    """The task's loss on the model's logits, with the training's label smoothing."""

    def loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        return task.loss(*answers(model, inputs, targets), label_smoothing=training.label_smoothing or 0.0)

    return loss


@dataclass
class OptimizerStep:
    """One optimizer step on one batch; where memory runs out, the same batch in smaller micro-batches."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    context: Context
    training: Training
    micro_batches: int = 1

    def __call__(self, inputs: Inputs, targets: Tensor, *per_example: Tensor) -> Tensor:
        """Take the step; the mean loss of the batch, a detached scalar."""
        while True:
            try:
                # Within the loop: what a batch that ran out of memory had accumulated is dropped.
                self.optimizer.zero_grad()
                value = self.backward(inputs, targets, *per_example)
                break
            except torch.OutOfMemoryError:
                self.halve(len(targets))
            except ValueError as error:
                if OF_BATCH_NORM not in str(error):
                    raise
                raise self.single_example_error(error) from error
        if self.training.clip:
            self.context.accelerator.clip_grad_norm_(self.model.parameters(), self.training.clip)
        self.optimizer.step()
        return value

    def backward(self, inputs: Inputs, targets: Tensor, *per_example: Tensor) -> Tensor:
        """Accumulate the gradient of the batch's mean loss over the micro-batches."""
        total = torch.zeros((), device=targets.device)
        sizes = batch_sizes(len(targets), math.ceil(len(targets) / self.micro_batches))
        for size, end in zip(sizes, itertools.accumulate(sizes), strict=True):
            part, share = slice(end - size, end), size / len(targets)
            with self.context.accelerator.autocast():
                rows = (each[part] for each in (targets, *per_example))
                value = self.loss(self.model, map_inputs(itemgetter(part), inputs), *rows)
            # sum of share x mean = mean of the batch. Only batch norms see the micro-batch, and normalise by it.
            self.context.accelerator.backward(value * share)
            total += value.detach() * share
        return total

    def halve(self, batch: int) -> None:
        """Halve the micro-batches of `batch` examples; UserError where they have one example already."""
        if self.micro_batches >= batch:
            raise UserError(
                "The device has too little memory for a single example; "
                "use a smaller model, shorter inputs or device=cpu."
            )
        self.micro_batches *= 2
        # Memory that torch keeps for the large batch is in pieces of the wrong size for smaller ones.
        torch.cuda.empty_cache()
        size = math.ceil(batch / self.micro_batches)
        self.context.record.warn(
            f"Out of device memory at {batch} examples: going on with {size} at a time, accumulated to the same batch."
        )

    def single_example_error(self, error: ValueError) -> UserError:
        """What to do where a batch norm refuses a batch of a single example with `error`."""
        count = len(self.context.task.train)
        if self.micro_batches > 1:
            remedy = "the device has too little memory for two: use a smaller model, shorter inputs or device=cpu"
        elif count < 2 * self.context.accelerator.num_processes:
            remedy = f"the training data has {count} in all: take more (limit)"
        else:
            remedy = f"batch_size={self.training.batch_size} gives it no more: take 2 or more for each process"
        return UserError(f"A batch norm cannot be trained on one example at a time ({first_line(error)}); {remedy}.")


def epoch_batches(
    train: Split, per_example: Sequence[Tensor], context: Context, training: Training, epoch: int
) -> Iterator[tuple[Any, ...]]:
    """Inputs, targets and rows of `per_example` of each batch of an epoch: this process's share of the batch.

    Order and augmentation follow from the seed and from `training.augmentation_seed(epoch)`.
    """
    # Not the global generator, so that an epoch is the same after a resume; the factor keeps the epochs of neighbouring
    # seeds apart.
    generator = torch.Generator().manual_seed(context.seed * 1_000_003 + training.augmentation_seed(epoch))
    augment = augmentation(context.task, training, generator)
    for indices in batch_indices(train, context, training, generator):
        [(inputs, targets)] = train.batches(len(indices), indices, augment)
        yield inputs, targets, *(rows[indices.to(rows.device)] for rows in per_example)


def batch_indices(train: Split, context: Context, training: Training, generator: torch.Generator) -> list[Tensor]:
    """The examples of this process's share of each batch of an epoch, as many batches in every process."""
    assert training.batch_size is not None
    order = torch.randperm(len(train), generator=generator)
    rank, world = context.accelerator.process_index, context.accelerator.num_processes
    # As many for each: a process with a batch less would leave the others waiting for its gradients.
    own = order[: len(order) // world * world][rank::world]
    if not len(own):
        raise UserError(f"{world} processes have only {len(train)} training examples between them; start fewer.")
    return list(torch.split(own, batch_sizes(len(own), process_batch_size(training.batch_size, world))))


def process_batch_size(batch_size: int, processes: int) -> int:
    """How many examples of a batch each process takes: as many in all, since their gradients count alike."""
    return max(1, batch_size // processes)


def other_batch_size(batch_size: int, processes: int) -> str:
    """A sentence if the processes together do not take `batch_size` examples at each step; empty if they do."""
    each = process_batch_size(batch_size, processes)
    if each * processes == batch_size:
        return ""
    return (
        f"batch_size={batch_size} is no multiple of the {processes} processes: each takes {each} examples at a step, "
        f"{each * processes} together."
    )


def batch_sizes(count: int, size: int) -> list[int]:
    """Sizes of the batches that `count` examples make, `size` each, and the rest in a last one.

    A rest of one example joins the batch before it: a batch norm has no variance to learn from a single example.
    """
    whole, rest = divmod(count, size)
    if rest == 1 and whole:
        return [*[size] * (whole - 1), size + 1]
    return [*[size] * whole, *([rest] if rest else [])]


def augmentation(task: Task, training: Training, generator: torch.Generator) -> Callable[[Inputs], Inputs] | None:
    """What augments a batch of stored inputs; None where nothing does."""
    if not training.augment or task.augment is None:
        return None

    def augment(stored: Inputs) -> Inputs:
        assert task.augment is not None
        varied: Inputs = task.augment(stored, generator)
        if training.cutout and isinstance(varied, Tensor):
            varied = cutout(varied, training.cutout, generator)
        return varied

    return augment


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weights decay, norms and biases (one dimension or none) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(groups: list[dict[str, Any]], training: Training) -> torch.optim.Optimizer:
    """The optimizer over those parameter groups that are not empty."""
    assert training.learning_rate is not None
    groups = [g for g in groups if g["params"]]
    lr, decay = training.learning_rate, training.weight_decay or 0.0
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True)
