"""The only training loop. A method that trains calls `fit` with its own loss; nobody else has a loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from operator import itemgetter
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.nn import layers
from compression.nn.inputs import Inputs, forward, map_inputs
from compression.params import param
from compression.tasks.images import cutout
from compression.tasks.task import Split, Task, evaluate
from compression.training.checkpoint import Checkpoint
from compression.training.context import Context
from compression.training.progress import Progress

Loss = Callable[..., Tensor]  # (model, inputs, targets, *rows of what `fit` was given beside them)
LOSS_CHECK = 16  # steps between looks for a loss that is not finite: each look waits for the device


@dataclass(frozen=True)
class Recipe:
    """How to train. What is None is the task's own: `complete` fills it in from `Task.recipe`."""

    epochs: int | None = param(None, "passes over the training data", interval="[0, inf)")
    batch_size: int | None = param(None, "examples per optimizer step", interval="[1, inf)")
    learning_rate: float | None = param(None, "peak learning rate", interval="(0, inf)", search=(1e-4, 0.5), log=True)
    optimizer: str | None = param(None, "sgd (Nesterov momentum 0.9) or adamw", choices=("sgd", "adamw"))
    schedule: str | None = param(
        None, "course of the learning rate", choices=("onecycle", "cosine", "linear", "constant")
    )
    warmup: float | None = param(None, "share of the steps spent warming up", interval="[0, 1)")
    weight_decay: float | None = param(None, "decay of weights, not of norms and biases", interval="[0, inf)")
    label_smoothing: float | None = param(None, "share of the target spread over all classes", interval="[0, 1)")
    clip: float = param(0.0, "largest norm of the gradient; 0 leaves it alone", interval="[0, inf)")
    augment: bool = param(True, "augment the training data, where the task does")
    views: int = param(
        0, "orders and augmentations of the data, which the epochs take in turn; 0: new ones each", interval="[0, inf)"
    )
    cutout: int = param(0, "side of the square cut out of each training image, in pixels", interval="[0, inf)")
    keep: str = param("best", "weights to keep: of the best validation epoch, or the last", choices=("best", "last"))

    def defaults(self, task: Task) -> Mapping[str, Any]:
        """What stands for None."""
        return task.recipe


R = TypeVar("R", bound=Recipe)


def complete(recipe: R, task: Task) -> R:
    """`recipe` with every None replaced by its value for the task."""
    known = recipe.defaults(task)
    missing = [f.name for f in fields(recipe) if getattr(recipe, f.name) is None and f.name in known]
    return replace(recipe, **{name: known[name] for name in missing})


def require_training(recipe: Recipe, task: Task, doing: str) -> None:
    """UserError if the recipe has no epochs, where `doing`, the beginning of a sentence, needs a training."""
    if complete(recipe, task).epochs == 0:
        raise UserError(f"{doing} in a training, and epochs=0 is none; take 1 or more.")


def fit(
    model: nn.Module,
    context: Context,
    recipe: Recipe,
    *,
    loss: Loss | None = None,
    on_step: Callable[[int, int], None] | None = None,
    extra: nn.Module | None = None,
    groups: Callable[[nn.Module], list[dict[str, Any]]] | None = None,
    beside: Callable[[int], Sequence[Tensor]] | None = None,
    name: str = "",
) -> nn.Module:
    """Train `model` in place on the task's training split and return it in eval mode.

    `loss(model, inputs, targets)` gives a scalar, the task's own loss if left out. `on_step(step, steps)` is
    called after every optimizer step (steps counted from 1). `extra` holds further modules to train along with
    the model (a regressor of hints, say). `groups` replaces the parameter groups of the optimizer. `beside(epoch)` are
    tensors with a row for every training example (a teacher's logits, say); the rows of a batch are handed to
    `loss` after its targets. Masks are re-applied after every step. A checkpoint is written every epoch under
    `name`, and `context.resume` goes on from it. Raises UserError where the loss stops being finite.
    """
    recipe = complete(recipe, context.task)
    assert recipe.epochs is not None
    assert recipe.batch_size is not None
    accelerator, device = context.accelerator, context.device
    train, validation = context.task.train.to(device), context.task.validation.to(device)
    loss = loss or task_loss(context.task, recipe)
    everything = nn.ModuleList([model, *([extra] if extra is not None else [])]).to(device)
    lay_out(everything, torch.channels_last)
    per_epoch = len(shares(train, context, recipe, torch.Generator()))

    optimizer = make_optimizer((groups or decay_groups)(everything), recipe)
    scheduler = make_scheduler(optimizer, recipe, steps=max(1, per_epoch * recipe.epochs))
    runner, optimizer = accelerator.prepare(model, optimizer)
    step_of = Steps(runner, loss, optimizer, context, recipe)
    title = "-".join(filter(None, [context.step_name, name]))
    checkpoint = Checkpoint(title, context, everything, optimizer, scheduler)
    best = checkpoint.best
    progress = Progress(title, recipe.epochs, per_epoch, checkpoint.epoch, not accelerator.is_main_process)

    for epoch in range(checkpoint.epoch, recipe.epochs):
        everything.train()
        started, losses = time.perf_counter(), []
        known = [rows.to(device) for rows in beside(epoch)] if beside else []
        for inputs, *rows in shuffled(train, known, context, recipe, epoch):
            losses.append(step_of(inputs, *rows))
            scheduler.step()
            layers.apply_masks(model)
            step = epoch * per_epoch + len(losses)
            if on_step:
                on_step(step, per_epoch * recipe.epochs)
            if len(losses) % LOSS_CHECK == 0 or len(losses) == per_epoch:
                require_finite(losses, step - len(losses), scheduler.get_last_lr()[0], checkpoint)
            progress.step()

        quality = evaluate(model.eval(), validation, context.task)[context.task.metric]
        figures = {
            "train_loss": torch.stack(losses).mean().item(),
            f"val_{context.task.metric}": quality,
            "learning_rate": scheduler.get_last_lr()[0],
        }
        context.record.metrics(figures | {"epoch_seconds": time.perf_counter() - started}, context.next_epoch())
        best = best.updated(quality, everything) if recipe.keep == "best" else best
        checkpoint.write(epoch + 1, best)
        progress.epoch(epoch + 1, figures)

    progress.close()
    best.restore(everything)
    lay_out(everything, torch.contiguous_format)
    layers.apply_masks(model)
    return model.eval()


def lay_out(model: nn.Module, memory_format: torch.memory_format) -> None:
    """Keep the weights of convolutions in `memory_format`, in place: channels-last trains 1.3 times the images/s.

    Parameters alone: a buffer may be held in two places (masks that travel in a checkpoint), and must stay one.
    """
    for parameter in model.parameters():
        if parameter.ndim == 4:
            parameter.data = parameter.data.contiguous(memory_format=memory_format)


def task_loss(task: Task, recipe: Recipe) -> Loss:
    """The task's loss on the model's logits, with the recipe's label smoothing."""

    def loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
        return task.loss(forward(model, inputs), targets, label_smoothing=recipe.label_smoothing or 0.0)

    return loss


@dataclass
class Steps:
    """One optimizer step on one batch; where memory runs out, the same batch in smaller parts."""

    model: nn.Module
    loss: Loss
    optimizer: torch.optim.Optimizer
    context: Context
    recipe: Recipe
    parts: int = 1

    def __call__(self, inputs: Inputs, targets: Tensor, *beside: Tensor) -> Tensor:
        """The mean loss of the batch, detached."""
        while True:
            try:
                self.optimizer.zero_grad()
                value = self.backward(inputs, targets, *beside)
                break
            except torch.OutOfMemoryError:
                self.halve(len(targets))
        if self.recipe.clip:
            self.context.accelerator.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimizer.step()
        return value

    def backward(self, inputs: Inputs, targets: Tensor, *beside: Tensor) -> Tensor:
        """Accumulate the gradient of the batch's mean loss, part by part."""
        total = torch.zeros((), device=targets.device)
        size = math.ceil(len(targets) / self.parts)
        for start in range(0, len(targets), size):
            part = slice(start, start + size)
            share = len(targets[part]) / len(targets)
            with self.context.accelerator.autocast():
                rows = (each[part] for each in (targets, *beside))
                value = self.loss(self.model, map_inputs(itemgetter(part), inputs), *rows)
            self.context.accelerator.backward(value * share)
            total += value.detach() * share
        return total

    def halve(self, batch: int) -> None:
        if self.parts >= batch:
            raise UserError(
                "The device has too little memory for a single example; "
                "use a smaller model, shorter inputs or device=cpu."
            )
        self.parts *= 2
        torch.cuda.empty_cache()
        size = math.ceil(batch / self.parts)
        self.context.record.warn(
            f"Out of device memory at {batch} examples: going on with {size} at a time, accumulated to the same batch."
        )


def shuffled(
    train: Split, beside: Sequence[Tensor], context: Context, recipe: Recipe, epoch: int
) -> Iterator[tuple[Any, ...]]:
    """The epoch's inputs, targets and rows `beside` them, this process's share of each batch.

    Order and augmentation follow from the seed and the epoch's view.
    """
    generator = torch.Generator().manual_seed(context.seed * 1_000_003 + view(recipe, epoch))
    varied = augmentation(context.task, recipe, generator)
    for chosen in shares(train, context, recipe, generator):
        [(inputs, targets)] = train.batches(len(chosen), chosen, varied)
        yield inputs, targets, *(rows[chosen.to(rows.device)] for rows in beside)


def view(recipe: Recipe, epoch: int) -> int:
    """The first epoch with the order and augmentation of this one."""
    return epoch % recipe.views if recipe.views else epoch


def shares(train: Split, context: Context, recipe: Recipe, generator: torch.Generator) -> list[Tensor]:
    """The indices of this process's part of each batch of an epoch, equally many in every process."""
    assert recipe.batch_size is not None
    order = torch.randperm(len(train), generator=generator)
    rank, world = context.accelerator.process_index, context.accelerator.num_processes
    parts = list(order[: len(order) // world * world][rank::world].split(max(1, recipe.batch_size // world)))
    if len(parts) > 1 and len(parts[-1]) == 1:
        parts.pop()  # a batch norm has no variance to learn from a single example
    return parts


def augmentation(task: Task, recipe: Recipe, generator: torch.Generator) -> Callable[[Inputs], Inputs] | None:
    if not recipe.augment or task.augment is None:
        return None

    def augment(stored: Inputs) -> Inputs:
        assert task.augment is not None
        varied = task.augment(stored, generator)
        if recipe.cutout and isinstance(varied, Tensor):
            varied = cutout(varied, recipe.cutout, generator)
        return varied

    return augment


def decay_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Parameter groups: weights decay, norms and biases (one dimension or none) do not."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in trained if p.ndim > 1]},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> torch.optim.Optimizer:
    groups = [g for g in groups if g["params"]]
    lr, decay = recipe.learning_rate or 0.0, recipe.weight_decay or 0.0
    if recipe.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=decay)
    return torch.optim.SGD(groups, lr=lr, weight_decay=decay, momentum=0.9, nesterov=True)


def make_scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> Any:
    """The learning rate's course over `steps`: warm up, then fall (or stay) as the recipe says."""
    if recipe.schedule == "onecycle":
        peaks = [g["lr"] for g in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, peaks, total_steps=steps + 1, pct_start=recipe.warmup or 0.3, cycle_momentum=False
        )
    warm = round((recipe.warmup or 0.0) * steps)
    falling: Literal["cosine", "linear", "constant"] | str = recipe.schedule or "constant"

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / (warm + 1)
        done = (step - warm) / max(1, steps - warm)
        return {"cosine": 0.5 * (1 + math.cos(math.pi * done)), "linear": 1 - done, "constant": 1.0}[falling]

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def require_finite(losses: list[Tensor], before: int, learning_rate: float, checkpoint: Checkpoint) -> None:
    """Raise UserError at the first loss that is not finite; `before` steps came before `losses`."""
    bad = (~torch.isfinite(torch.stack(losses))).nonzero()
    if len(bad):
        raise UserError(
            f"The loss is not finite at step {before + int(bad[0]) + 1} (learning rate {learning_rate:.3g}): try a "
            f"lower learning_rate, clip=1 or precision=no. {checkpoint.kept()}"
        )
