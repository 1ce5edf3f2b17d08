"""Compare the outputs of an ONNX file with those of the torch model that it was exported from."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.deploy.onnx.decoder import cached_decoder
from compression.deploy.session import Session
from compression.errors import UserError
from compression.nn.inputs import answer_rows, answers
from compression.nn.quantized import Quantize

if TYPE_CHECKING:
    from pathlib import Path

    from compression.deploy.onnx.decoder import CachedDecoder
    from compression.tasks.scores import Scores
    from compression.tasks.task import Split, Task

# Beyond these the export is wrong, not merely rounded in another way: the share of equal predictions, and the root mean
# square of the logits' difference over that of the logits, as a model that always predicts one class agrees with any
# other that does.
MIN_AGREEMENT, MAX_RELATIVE_ERROR = 0.998, 0.1
# In integer arithmetic a whole step more or less changes all that comes behind: the logits of a MiniLM that has hardly
# been trained, all within 0.05, differ by 0.009.
MAX_INTEGER_ERROR = 0.5
# Another prediction of the file is within the noise if the torch model's logit of that class is below its largest by no
# more than this many root mean squares of the difference: in integer arithmetic the last bit of a float becomes a whole
# step now and then, so logits are noisy. Many answers within a large noise are no sign of equal files: both are told.
TIE_TOLERANCE = 4.0
CONTINUED = 16  # tokens that are decoded one by one: a mistake in the cache shows in the second one
LARGEST = 1e12  # of a weight, a variance or a logit


@dataclass(frozen=True)
class Parity:
    """How the outputs of an ONNX file differ from those of its torch model on one split."""

    max_difference: float  # largest absolute difference of a logit
    agreement: float  # share of answers that predict the same
    agreement_within_noise: float  # share of those that do, or whose difference noise of that size explains
    expected: Scores  # of the torch model
    actual: Scores  # of the file


@dataclass
class _Comparison:
    """Sums over the answers of a model and of its file, batch by batch."""

    expected: Scores
    actual: Scores
    max_error: float  # relative, of the logits
    largest: Tensor = field(default_factory=lambda: torch.zeros(()))  # difference of a logit
    # Squares of the logits and of their differences, summed; counts of logits.
    squares: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))
    logits: int = 0
    distances: list[Tensor] = field(default_factory=list)  # of each answer of the file from the model's, `(n,)`

    def add(self, expected: Tensor, actual: Tensor, targets: Tensor) -> None:
        """Compare answers `(n, outputs)` of the model and the file."""
        self.expected.add(expected, targets)
        self.actual.add(actual, targets)
        difference = actual - expected
        self.largest = torch.maximum(self.largest, difference.abs().max())
        self.squares += torch.stack([expected.double().square().sum(), difference.double().square().sum()])
        self.logits += expected.numel()
        self.distances.append(_distance(expected, actual))

    @property
    def count(self) -> int:
        """How many answers were compared."""
        return sum(map(len, self.distances))

    @property
    def relative_error(self) -> float:
        """The root mean square of the logits' difference over that of the logits."""
        return (self.squares[1] / self.squares[0].clamp_min(1e-12 * self.logits)).sqrt().item()

    def differs(self, outputs: int) -> bool:
        """Whether more answers than chance allows predict something else, or the logits are of another size."""
        disagreements = self.count * (1 - self.agreement_within_noise(outputs))
        return disagreements > max_disagreements(self.count) or not self.relative_error <= self.max_error

    def agreement(self, outputs: int) -> float:
        """The share of answers that predict the same class, or for one output nearly the same number."""
        return self._share_within(torch.zeros(()) if outputs > 1 else torch.ones(()))

    def agreement_within_noise(self, outputs: int) -> float:
        """The share of answers whose predictions are the same, or differ by what the noise of all explains."""
        error = (self.squares[1] / self.logits).sqrt()
        return self._share_within(TIE_TOLERANCE * error if outputs > 1 else torch.ones(()))

    def _share_within(self, allowed: Tensor) -> float:
        return (torch.cat(self.distances).double() <= allowed).double().mean().item()


@torch.inference_mode()
def check_parity(model: nn.Module, path: Path, split: Split, task: Task, threads: int) -> Parity:
    """Compare the file and the model on `split`.

    Raises UserError if more predictions than `max_disagreements` differ, or if the root mean square of the logits'
    difference is over `max_relative_error` of that of the logits; also of a model that diverged, saying so. A file with
    a cache is also held to continue a text as the model does.
    """
    limit = max_relative_error(model)
    session, found = Session(path, threads), _Comparison(task.scores(split), task.scores(split), limit)
    for inputs, targets in split.to("cpu").batches(split.batch_size(task.outputs)):
        expected, wanted = answers(model, inputs, targets)
        found.add(expected.float(), answer_rows(session(inputs), targets)[0], wanted)
    agreement, within_noise = found.agreement(task.outputs), found.agreement_within_noise(task.outputs)
    if found.differs(task.outputs) or not found.expected.largest <= LARGEST:
        if exploded := _exploded_tensor(model, found.expected.largest):
            raise UserError(
                f"The model's training has diverged, so no file can give its answers: {exploded}; train it with a "
                "lower learning_rate, or clip=1."
            )
        raise UserError(
            f"The ONNX file gives other predictions than the model on {1 - within_noise:.1%} of the examples (logits "
            f"differ by up to {found.largest:.3g}, or {found.relative_error:.0%} of their size, of {limit:.0%} that "
            "rounding can explain), so it cannot be deployed."
        )
    if (decoder := cached_decoder(model)) is not None and session.has_cache:
        _check_continuation(decoder, session, split.select(torch.zeros(1, dtype=torch.int64)), task)
    return Parity(found.largest.item(), agreement, within_noise, found.expected, found.actual)


def _check_continuation(decoder: CachedDecoder, session: Session, window: Split, task: Task) -> None:
    """Raise UserError if the file continues half a window otherwise, token by token, than the model does."""
    inputs, targets = next(window.to("cpu").batches(1))
    assert isinstance(inputs, dict)  # of token ids
    ids = inputs["input_ids"]
    half = ids.shape[1] // 2
    found = _Comparison(task.scores(window), task.scores(window), max_relative_error(decoder.model))
    kept, past = tuple(decoder.empty(1).values()), session.empty_cache(1)
    for piece, wanted in zip(_pieces(ids, half), _pieces(targets, half), strict=True):
        expected, *kept = decoder(piece, *kept)
        actual, past = session.step(piece, past)
        # The first piece was compared with all other windows.
        if piece.shape[1] == 1:
            found.add(expected.flatten(0, 1).float(), actual.flatten(0, 1), wanted.flatten())
    if found.count and found.differs(task.outputs):
        differing = 1 - found.agreement_within_noise(task.outputs)
        raise UserError(
            f"The ONNX file continues texts otherwise than the model: {differing:.1%} of the tokens differ (logits by "
            f"up to {found.largest:.3g}), so it cannot be deployed."
        )


def _pieces(tokens: Tensor, half: int) -> list[Tensor]:
    """Cut the first `half` off `tokens` `(1, length)`, and the next ones one by one, `CONTINUED` at most."""
    return [tokens[:, :half], *torch.split(tokens[:, half : half + CONTINUED], 1, dim=1)]


def _exploded_tensor(model: nn.Module, largest_output: Tensor) -> str:
    """Name a tensor of the model, or its outputs, that is not finite or larger than any that a training leaves."""
    for name, tensor in {**model.state_dict(), "the largest output": largest_output}.items():
        if tensor.is_floating_point() and tensor.numel() and not (largest := tensor.abs().max().item()) <= LARGEST:
            return f"{name} is {largest:.3g}"
    return ""


def max_relative_error(model: nn.Module) -> float:
    """Return the most that rounding can make of the root mean square of the logits' difference over theirs."""
    integers = any(isinstance(module, Quantize) for module in model.modules())
    return MAX_INTEGER_ERROR if integers else MAX_RELATIVE_ERROR


def max_disagreements(count: int) -> float:
    """Return how many of `count` predictions may differ.

    The expected number at `MIN_AGREEMENT`, plus two standard deviations of such a count (Poisson).
    """
    expected = (1 - MIN_AGREEMENT) * count
    return expected + 2 * math.sqrt(expected)


def _distance(expected: Tensor, actual: Tensor) -> Tensor:
    """Return how far answers `(n, outputs)` of the file are from predicting what the model's do, `(n,)`.

    By how much the model's logit of the file's class is below its largest; for one output (regression) in tolerances of
    5%, plus 0.05.
    """
    if expected.shape[1] == 1:
        return ((actual - expected).abs() / (0.05 + 0.05 * actual.abs())).squeeze(1)
    return expected.amax(1) - expected.gather(1, actual.argmax(1, keepdim=True)).squeeze(1)
