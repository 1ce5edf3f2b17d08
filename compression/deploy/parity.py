"""Compare the outputs of an ONNX file with those of the torch model that it was exported from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from compression.deploy.session import Session
from compression.errors import UserError
from compression.tasks.task import Split, predict

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

# Beyond these the export is wrong, not merely rounded in another way: the share of equal predictions, and the root mean
# square of the logits' difference over that of the logits, as a model that always predicts one class agrees with any
# other that does.
MIN_AGREEMENT, MAX_RELATIVE_ERROR = 0.998, 0.1
# A prediction of the file counts as equal if the torch model's logit of that class is below its largest by no more than
# this many root mean squares of the difference: in integer arithmetic the last bit of a float becomes a whole step now
# and then, so logits are noisy.
TIE_TOLERANCE = 4.0
LARGEST = 1e12  # of a weight, a variance or a logit


@dataclass(frozen=True)
class Parity:
    """How the outputs of an ONNX file differ from those of its torch model on one split."""

    max_difference: float  # largest absolute difference of a logit
    agreement: float  # share of examples with equal predictions
    quality: dict[str, float]  # task metrics of the file's outputs
    logits: Tensor  # (n, outputs), of the torch model
    targets: Tensor  # (n,)


def check_parity(
    model: nn.Module, path: Path, split: Split, metrics: Callable[[Tensor, Tensor], dict[str, float]], threads: int
) -> Parity:
    """Compare the file and the model on `split`; `metrics` computes task metrics from logits and targets.

    Raises UserError if more predictions than `max_disagreements` differ, or if the root mean square of the logits'
    difference is over `MAX_RELATIVE_ERROR` of that of the logits; of a model that diverged, it says so.
    """
    expected, targets = predict(model, split)
    actual = Session(path, threads).predict(split)
    difference = actual - expected
    agreement = _is_same_prediction(expected, actual).float().mean().item()
    max_difference = difference.abs().max().item()
    relative_error = (difference.square().mean() / expected.square().mean().clamp_min(1e-12)).sqrt().item()
    if len(targets) * (1 - agreement) > max_disagreements(len(targets)) or not relative_error <= MAX_RELATIVE_ERROR:
        if exploded := _exploded_tensor(model, expected):
            raise UserError(
                f"The model's training has diverged, so no file can give its answers: {exploded}; train it with a "
                "lower learning_rate, or clip=1."
            )
        raise UserError(
            f"The ONNX file gives other predictions than the model on {1 - agreement:.1%} of the examples "
            f"(logits differ by up to {max_difference:.3g}), so it cannot be deployed."
        )
    return Parity(max_difference, agreement, metrics(actual, targets), expected, targets)


def _exploded_tensor(model: nn.Module, logits: Tensor) -> str:
    """Name a tensor of the model, or its logits, that is not finite or larger than any that a training leaves."""
    for name, tensor in {**model.state_dict(), "the largest output": logits}.items():
        if tensor.is_floating_point() and tensor.numel() and not (largest := tensor.abs().max().item()) <= LARGEST:
            return f"{name} is {largest:.3g}"
    return ""


def max_disagreements(count: int) -> float:
    """Return how many of `count` predictions may differ.

    The expected number at `MIN_AGREEMENT`, plus two standard deviations of such a count (Poisson).
    """
    expected = (1 - MIN_AGREEMENT) * count
    return expected + 2 * math.sqrt(expected)


def _is_same_prediction(expected: Tensor, actual: Tensor) -> Tensor:
    """Compare logits `(n, outputs)`: bool `(n,)`, for one output (regression) `(n, 1)` with a tolerance of 5 %."""
    if expected.shape[1] == 1:
        return torch.isclose(expected, actual, atol=0.05, rtol=0.05)
    margin = expected.amax(1) - expected.gather(1, actual.argmax(1, keepdim=True)).squeeze(1)
    return margin <= TIE_TOLERANCE * (actual - expected).square().mean().sqrt()
