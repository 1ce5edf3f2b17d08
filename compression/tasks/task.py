"""What a task is: data in three splits, a loss function, a metric, and its default models."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.nn.inputs import Inputs, answers, map_inputs
from compression.tasks.scores import KeptAnswers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import PreTrainedTokenizerBase

    from compression.tasks.generation import Continuation
    from compression.tasks.images import Normalization
    from compression.tasks.scores import Scores

MOST_EXAMPLES, MOST_LOGITS = 500, 2**26  # in a batch that is not trained on; so many logits take 268 MB


@torch.inference_mode()
def answer_batches(model: nn.Module, split: Split, outputs: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the answers `(n, outputs)` on a split, batch by batch, float32 on the CPU, and their targets `(n,)`.

    Runs on the device and in the mode that the model is in: call `eval()` first.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    for inputs, targets in split.to(device).batches(split.batch_size(outputs)):
        logits, wanted = answers(model, inputs, targets)
        yield logits.float().cpu(), wanted.cpu()


def predict(model: nn.Module, split: Split) -> tuple[Tensor, Tensor]:
    """Return all answers `(n, outputs)` on a split, as `answer_batches` gives them, and their targets `(n,)`."""
    logits, targets = zip(*answer_batches(model, split, outputs=1), strict=True)
    return torch.cat(logits), torch.cat(targets)


def score(model: nn.Module, split: Split, task: Task) -> Scores:
    """Return the scores of a model in eval mode on a split."""
    scores = task.scores(split)
    for logits, targets in answer_batches(model, split, task.outputs):
        scores.add(logits, targets)
    return scores


def evaluate(model: nn.Module, split: Split, task: Task) -> dict[str, float]:
    """Return the task's metrics of a model in eval mode on a split."""
    return score(model, split, task).metrics()


@dataclass(frozen=True)
class Split:
    """Examples as tensors, with the examples along the first dimension.

    Images are stored as uint8 `(n, channels, height, width)`, and `prepare` normalizes a batch of them. Token ids are
    stored padded `(n, length)`, and `prepare` cuts a batch to its longest example.
    """

    inputs: Inputs
    # (n,): classes as int64, or float32 for regression; (n, length): the token after each one, or `nn.inputs.IGNORED`
    targets: Tensor
    prepare: Callable[[Inputs], Inputs]  # stored inputs -> model inputs
    text_bytes: int = 0  # of the text that the targets are the tokens of, in UTF-8; 0 where that is unknown

    def __len__(self) -> int:
        return len(self.targets)

    def batch_size(self, outputs: int) -> int:
        """Return how many examples, with `outputs` logits to each target, are predicted together."""
        logits = outputs * max(1, self.targets[:1].numel())
        return max(1, min(MOST_EXAMPLES, MOST_LOGITS // logits))

    def to(self, device: torch.device | str) -> Split:
        """Return the split on `device`."""
        return replace(self, inputs=map_inputs(lambda t: t.to(device), self.inputs), targets=self.targets.to(device))

    def select(self, indices: Tensor) -> Split:
        """Return a split of the examples at `indices` `(m,)`."""
        indices = indices.to(self.targets.device)
        inputs = map_inputs(lambda t: t[indices], self.inputs)
        return replace(self, inputs=inputs, targets=self.targets[indices], text_bytes=0)

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
    outputs: int  # number of classes, or of tokens; 1 for regression
    labels: tuple[str, ...]  # class names; empty for regression
    metric: str  # the name of the quality metric
    compute_metrics: Callable[[Tensor, Tensor], dict[str, float]]  # (answers, targets) -> `metric` and others
    loss: Callable[..., Tensor]  # (answers, targets, label_smoothing=0.0) -> mean over the answers
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
    higher_is_better: bool = True  # of the quality metric
    # What gathers the answers on a split, where `compute_metrics` cannot have all of them at once.
    make_scores: Callable[[Split], Scores] | None = None
    # What a language model writes after prompts of the test split, with metrics of it; the model is in eval mode.
    continuations: Callable[[nn.Module], tuple[dict[str, float], list[Continuation]]] | None = None

    @property
    def takes_images(self) -> bool:
        """Whether the inputs are images; if not, they are token ids."""
        return bool(self.input_shape)

    @property
    def predicts_tokens(self) -> bool:
        """Whether each token of a text is predicted from those before it."""
        return self.train.targets.ndim == 2

    def scores(self, split: Split) -> Scores:
        """Return what gathers a model's answers on `split`, and computes the metrics."""
        return self.make_scores(split) if self.make_scores else KeptAnswers(self.compute_metrics)

    def gain(self, quality: float) -> float:
        """Return a value of the quality metric so that more of it is better."""
        return quality if self.higher_is_better else -quality

    def splits(self) -> dict[str, Split]:
        """Return train, validation and test split by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def example(self, n: int = 1) -> Inputs:
        """Return the first `n` test inputs, prepared, on the CPU: for export, counting and timing.

        The test split starts again if it has fewer: with `limit=1`, all are the same.
        """
        rows = torch.arange(n) % len(self.test)
        return next(self.test.select(rows).to("cpu").batches(n))[0]
