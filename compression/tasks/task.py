"""What a task is: data in three splits, a loss, a metric, and the models it starts from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.nn.inputs import Inputs, forward, map_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@torch.inference_mode()
def predict(model: nn.Module, split: Split, batch_size: int = 500) -> tuple[Tensor, Tensor]:
    """Logits `(n, outputs)` and targets `(n,)` of a whole split, on the CPU, in float32.

    The model is used as it is, where it is: call `eval()` first.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    outputs = [forward(model, inputs).float().cpu() for inputs, _ in split.to(device).batches(batch_size)]
    return torch.cat(outputs), split.targets.cpu()


def evaluate(model: nn.Module, split: Split, task: Task) -> dict[str, float]:
    """The task's metrics of a model in eval mode on a split."""
    return task.metrics(*predict(model, split))


@dataclass(frozen=True)
class Split:
    """Examples held as tensors, first dimension = example; `prepare` turns stored into model inputs.

    Images are stored as uint8 `(n, channels, height, width)` and `prepare` normalises them; token ids are
    stored padded and `prepare` cuts a batch to its longest example.
    """

    inputs: Inputs
    targets: Tensor
    prepare: Callable[[Inputs], Inputs]

    def __len__(self) -> int:
        return len(self.targets)

    def to(self, device: torch.device | str) -> Split:
        return replace(self, inputs=map_inputs(lambda t: t.to(device), self.inputs), targets=self.targets.to(device))

    def take(self, indices: Tensor) -> Split:
        """The examples at `indices`, as a split."""
        chosen = indices.to(self.targets.device)
        return replace(self, inputs=map_inputs(lambda t: t[chosen], self.inputs), targets=self.targets[chosen])

    def batches(
        self, batch_size: int, order: Tensor | None = None, augment: Callable[[Inputs], Inputs] | None = None
    ) -> Iterator[tuple[Inputs, Tensor]]:
        """Model inputs and targets, `batch_size` at a time, in `order` (all in their stored order if None)."""
        order = torch.arange(len(self)) if order is None else order
        for chosen in order.to(self.targets.device).split(batch_size):
            stored = map_inputs(itemgetter(chosen), self.inputs)
            yield self.prepare(augment(stored) if augment else stored), self.targets[chosen]


@dataclass(frozen=True)
class Task:
    """A data set with everything the lab must know of it.

    `metric` names the quality figure (higher is better, as all of ours are); `metrics` computes it, and any
    companions, from logits `(n, outputs)` and targets `(n,)`. `training` gives the training defaults, `model`
    and `student` the names of the models used when none is asked for.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    outputs: int  # number of classes; 1 for regression
    labels: tuple[str, ...]  # class names; empty for regression
    metric: str
    metrics: Callable[[Tensor, Tensor], dict[str, float]]
    loss: Callable[..., Tensor]  # (logits, targets, label_smoothing=0.0)
    model: str
    student: str
    training: dict[str, Any]
    from_scratch: dict[str, Any] = field(default_factory=dict)  # training defaults that differ for untrained models
    input_shape: tuple[int, ...] = ()  # (channels, height, width) for images
    augment: Callable[[Any, torch.Generator], Any] | None = None  # stored inputs in, varied ones out
    source: str = ""  # where the data came from, in words
    digest: str = ""  # a checksum of the data: equal digests mean the same examples
    limited: bool = False  # only the first `limit` examples: not the real figures
    also: dict[str, Split] = field(default_factory=dict)  # further test splits, measured as `<metric>_<name>`
    tokenizer: Any = None  # of a text task

    @property
    def takes_images(self) -> bool:
        """Whether the inputs are images; if not, they are token ids."""
        return bool(self.input_shape)

    def splits(self) -> dict[str, Split]:
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def example(self, n: int = 1) -> Inputs:
        """`n` prepared test inputs on the CPU: for export, counting and timing."""
        return next(self.test.to("cpu").batches(n))[0]
