"""How good a model's answers are, gathered batch by batch.

An answer is a row of logits `(outputs,)`: one for each image or text, and one for each token of a language task.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from compression.nn.inputs import IGNORED

if TYPE_CHECKING:
    from collections.abc import Callable

CHANCE = 1.15  # a model below this multiple of chance has learned nothing worth the name


class Scores(ABC):
    """Gathers answers and their targets, and tells what became of them."""

    def __init__(self) -> None:
        self.largest = torch.zeros(())  # absolute value of a logit so far; NaN once there was one

    def add(self, answers: Tensor, targets: Tensor) -> None:  # noqa: ARG002 - for those who keep more
        """Count answers `(n, outputs)`, float32 on the CPU, and their targets `(n,)`."""
        self.largest = torch.maximum(self.largest, answers.abs().max())

    @property
    def are_finite(self) -> bool:
        """Whether all logits so far are finite numbers."""
        return math.isfinite(self.largest)

    @abstractmethod
    def metrics(self) -> dict[str, float]:
        """The task's metrics over all answers so far, by name."""

    @abstractmethod
    def doubt(self, metric: str) -> str:
        """A sentence where the answers, with the quality `metric`, are those of a model that has learned nothing."""

    def confusion(self) -> Tensor | None:
        """Counts `(classes, classes)`, true class by row, predicted class by column; None where that says nothing."""
        return None


class KeptAnswers(Scores):
    """Keeps all answers, for metrics of any kind: of classes, or with one output of numbers."""

    def __init__(self, compute_metrics: Callable[[Tensor, Tensor], dict[str, float]]) -> None:
        super().__init__()
        self.compute_metrics = compute_metrics
        self._answers: list[Tensor] = []
        self._targets: list[Tensor] = []

    def add(self, answers: Tensor, targets: Tensor) -> None:
        """Keep them."""
        super().add(answers, targets)
        self._answers.append(answers)
        self._targets.append(targets)

    @property
    def logits(self) -> Tensor:
        """All answers, `(n, outputs)`."""
        return torch.cat(self._answers)

    @property
    def targets(self) -> Tensor:
        """All targets, `(n,)`."""
        return torch.cat(self._targets)

    def metrics(self) -> dict[str, float]:
        """The metrics that `compute_metrics` gives of all answers."""
        return self.compute_metrics(self.logits, self.targets)

    def doubt(self, metric: str) -> str:
        """Whether all answers are alike, or the accuracy is that of guesses."""
        logits = self.logits
        classes = logits.shape[1]
        # `not … > 0`, so that NaN, which is larger than nothing, is warned of too
        if classes == 1:
            same = not (logits - logits[0]).abs().max() > 0
            return "The model answers the same number for everything: it has learned nothing." if same else ""
        if len(torch.unique(logits.argmax(1))) == 1:
            return "The model answers the same class for everything: it is at chance."
        if metric == "accuracy" and (accuracy := self.metrics()[metric]) * classes < CHANCE:
            return f"Accuracy {accuracy:.3f} is at chance for {classes} classes."
        return ""

    def confusion(self) -> Tensor | None:
        """The confusion matrix; None for numbers."""
        logits = self.logits
        classes = logits.shape[1]
        if classes == 1:
            return None
        # true * classes + predicted numbers the cells row by row
        pairs = self.targets.long() * classes + logits.argmax(1)
        return pairs.bincount(minlength=classes * classes).reshape(classes, classes)


class TokenLikelihood(Scores):
    """Sums how likely the model thought each token that came: all logits of a text would not fit into memory.

    WikiText-2's test split has 283,000 tokens of SmolLM2's 49,152: 56 GB. `text_bytes` are the UTF-8 bytes of the text
    that the targets are the tokens of; 0 where they are unknown.
    """

    def __init__(self, text_bytes: int = 0) -> None:
        super().__init__()
        self.text_bytes, self.tokens, self.correct, self.outputs = text_bytes, 0, 0, 0
        self.nats = torch.zeros((), dtype=torch.float64)  # negative log likelihood of the tokens so far

    def add(self, answers: Tensor, targets: Tensor) -> None:
        """Add up the likelihood of the tokens `targets`."""
        super().add(answers, targets)
        # Summed in double precision: of 300,000 terms, single precision would keep four digits.
        self.nats += functional.cross_entropy(answers, targets, reduction="none").double().sum()
        self.correct += int((answers.argmax(1) == targets).sum())
        self.tokens += len(targets)
        self.outputs = answers.shape[1]

    def metrics(self) -> dict[str, float]:
        """Perplexity, bits per byte where the bytes are known, and the share of tokens that were the likeliest."""
        nats = float(self.nats)
        bits = {"bits_per_byte": nats / math.log(2) / self.text_bytes} if self.text_bytes else {}
        # Beyond the range of a float, 709 nats a token, the model is worse than any number tells.
        perplexity = math.exp(mean) if (mean := nats / self.tokens) < 700 else math.inf
        return {"perplexity": perplexity, **bits, "token_accuracy": self.correct / self.tokens}

    def doubt(self, metric: str) -> str:  # noqa: ARG002 - perplexity, whatever the task calls its quality
        """Whether a guess among all tokens would do as well."""
        perplexity = self.metrics()["perplexity"]
        # `not … <`, for NaN
        if not perplexity * CHANCE < self.outputs:
            return (
                f"Perplexity {perplexity:.4g} is that of a guess among all {self.outputs} tokens, or worse: the model "
                "has learned nothing, or nothing is left of it."
            )
        return ""


class OptionLikelihood(Scores):
    """Compares how likely the model thinks the options of a question, each of which is an example of its own.

    `question` `(examples,)` numbers the question of each example, `is_right` `(examples,)` tells the right options,
    `targets` `(examples, length)` has the option's tokens, and `option_bytes` `(examples,)` its length in UTF-8.
    """

    def __init__(self, question: Tensor, is_right: Tensor, targets: Tensor, option_bytes: Tensor) -> None:
        super().__init__()
        self.question, self.is_right, self.option_bytes = question, is_right.bool(), option_bytes
        self.lengths = (targets != IGNORED).sum(1)
        self.nats: list[Tensor] = []

    def add(self, answers: Tensor, targets: Tensor) -> None:
        """Keep the likelihood of each token."""
        super().add(answers, targets)
        self.nats.append(functional.cross_entropy(answers, targets, reduction="none").double())

    def metrics(self) -> dict[str, float]:
        """Shares of the questions whose right option is the likeliest, as a whole and for each byte of an option.

        Those that Gao et al.'s evaluation harness calls `acc` and `acc_norm`.
        """
        nats = torch.stack([part.sum() for part in torch.split(torch.cat(self.nats), self.lengths.tolist())])
        return {
            "accuracy": self._share_of_right(nats),
            "accuracy_by_bytes": self._share_of_right(nats / self.option_bytes.clamp_min(1)),
        }

    def _share_of_right(self, costs: Tensor) -> float:
        right = []
        for question in set(self.question.tolist()):
            rows = (self.question == question).nonzero().flatten()
            if self.is_right[rows].any():  # of a part of the examples, the right option may be missing
                right.append(bool(self.is_right[rows[costs[rows].argmin()]]))
        return sum(right) / len(right)

    def doubt(self, metric: str) -> str:
        """Whether the accuracy is that of guesses."""
        accuracy, chance = self.metrics()[metric], len(set(self.question.tolist())) / len(self.question)
        return f"Accuracy {accuracy:.3f} is at chance." if accuracy < CHANCE * chance else ""
