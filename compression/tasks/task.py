"""What a task is: data in three splits, a loss function, a metric, and its default models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.nn.inputs import Inputs, forward, map_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

    from compression.tasks.images import Normalization


@torch.inference_mode()
def predict(model: nn.Module, split: Split, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Return logits `(n, outputs)` and targets `(n,)` of a whole split, on the CPU, in float32.

    Runs on the device and in the mode that the model is in: call `eval()` first.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    logits = [forward(model, inputs).float().cpu() for inputs, _ in split.to(device).batches(batch_size)]
    return torch.cat(logits), split.targets.cpu()


def evaluate(model: nn.Module, split: Split, task: Task) -> dict[str, float]:
    """Return the task's metrics of a model in eval mode on a split."""
    return task.compute_metrics(*predict(model, split))


@dataclass(frozen=True)
class Split:
    """Examples as tensors, with the examples along the first dimension.

    Images are stored as uint8 `(n, channels, height, width)`, and `prepare` normalizes a batch of them. Token ids are
    stored padded `(n, length)`, and `prepare` cuts a batch to its longest example.
    """

    inputs: Inputs
    targets: Tensor  # (n,): classes as int64, or float32 for regression
    prepare: Callable[[Inputs], Inputs]  # stored inputs -> model inputs

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`."""
        return replace(self, inputs=map_inputs(lambda t: t.to(device), self.inputs), targets=self.targets.to(device))

    def select(self, indices: Tensor) -> Split:
        """Return a split of the examples at `indices` `(m,)`."""
        indices = indices.to(self.targets.device)
        return replace(self, inputs=map_inputs(lambda t: t[indices], self.inputs), targets=self.targets[indices])

    def batches(
        self, batch_size: int, order: Tensor | None = None, augment: Callable[[Inputs], Inputs] | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Yield model inputs and targets, `batch_size` examples at a time.

        `order` holds the indices to go through; None means all examples in their stored order. `augment` gets a
        batch of stored inputs, before `prepare`.
        """
        order = torch.arange(len(self)) if order is None else order
        for indices in torch.split(order.to(self.targets.device), batch_size):
            batch = self.select(indices)
            yield self.prepare(augment(batch.inputs) if augment else batch.inputs), batch.targets


@dataclass(frozen=True)
class Task:
    """A data set with everything that training and measuring models on it needs."""

    name: str
    train: Split
    validation: Split
    test: Split
    outputs: int  # number of classes; 1 for regression
    labels: tuple[str, ...]  # class names; empty for regression
    metric: str  # the name of the quality metric, of which more is better
    compute_metrics: Callable[[Tensor, Tensor], dict[str, float]]  # (logits, targets) -> `metric` and others
    loss: Callable[..., Tensor]  # (logits, targets, label_smoothing=0.0) -> mean over the batch
    model: str  # the default model
    student: str  # the default student; empty if there is none
    training: dict[str, Any]  # default hyperparameters
    from_scratch: dict[str, Any] = field(default_factory=dict)  # those that differ for models that are not pretrained
    input_shape: tuple[int, ...] = ()  # (channels, height, width) for images
    normalization: Normalization | None = None  # of images that are stored as uint8
    augment: Callable[[Any, torch.Generator], Any] | None = None  # varies a batch of stored inputs at random
    source: str = ""  # where the data came from, in words
    description: str = ""  # how somebody's own data was read, in a sentence that the run tells
    digest: str = ""  # a checksum of the data: equal digests mean equal examples
    is_limited: bool = False  # whether the splits were cut to the first `limit` examples: metrics are not comparable
    further_test_splits: dict[str, Split] = field(default_factory=dict)  # their metric is called <metric>_<name>
    tokenizer: PreTrainedTokenizerBase | None = None  # of a text task

    @property
    def takes_images(self) -> bool:
        """Whether the inputs are images; if not, they are token ids."""
        return bool(self.input_shape)

    def splits(self) -> dict[str, Split]:
        """Return train, validation and test split by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def example(self, n: int = 1) -> Inputs:
        """Return the first `n` test inputs, prepared, on the CPU: for export, counting and timing.

        The test split starts again if it has fewer: with `limit=1`, all are the same.
        """
        rows = torch.arange(n) % len(self.test)
        return next(self.test.select(rows).to("cpu").batches(n))[0]
