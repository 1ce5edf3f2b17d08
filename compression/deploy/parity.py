"""Whether an ONNX file answers as the torch model that it was made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression.deploy.session import Session
from compression.errors import UserError
from compression.tasks.task import Split, predict

# Beyond these the export is wrong, not rounded otherwise: share of equal predictions, and root mean square of the
# logits' difference over that of the logits (predictions alone say nothing of a model that answers one class).
LEAST_AGREEMENT, LARGEST_DIFFERENCE = 0.998, 0.1


# An answer ties with the model's own where its logit falls behind by less than this many root mean squares of the
# difference: in integers the last bit of a float becomes a whole step here and there, and logits have a noise.
TIE = 4.0


@dataclass(frozen=True)
class Parity:
    """How far the file is from the torch model: largest difference of a logit, share of equal predictions."""

    max_difference: float
    agreement: float
    quality: dict[str, float]  # the task's metrics, as the file answers
    logits: Tensor  # (n, outputs), as the torch model answers
    targets: Tensor


def parity(model: nn.Module, path: Path, split: Split, metrics: Any, threads: int) -> Parity:
    """Compare file and model on `split`; UserError if their predictions are not the same ones."""
    ours, targets = predict(model, split)
    theirs = Session(path, threads).predict(split)
    agreement = _agreeing(ours, theirs).float().mean().item()
    found = Parity((ours - theirs).abs().max().item(), agreement, metrics(theirs, targets), ours, targets)
    relative = ((ours - theirs).square().mean() / ours.square().mean().clamp_min(1e-12)).sqrt().item()
    if len(targets) * (1 - agreement) > most_wrong(len(targets)) or relative > LARGEST_DIFFERENCE:
        raise UserError(
            f"The ONNX file answers otherwise than the model on {1 - found.agreement:.1%} of the examples "
            f"(logits differ by up to {found.max_difference:.3g}): it is not deployable as it is."
        )
    return found


def most_wrong(count: int) -> float:
    """Answers of `count` that may differ: a share of 1 - LEAST_AGREEMENT, and twice the deviation of such a count."""
    expected = (1 - LEAST_AGREEMENT) * count
    return expected + 2 * math.sqrt(expected)


def _agreeing(ours: Tensor, theirs: Tensor) -> Tensor:
    """Where the answers `(n, outputs)` are the same; an answer that ties with the model's own is."""
    if ours.shape[1] == 1:
        return torch.isclose(ours, theirs, atol=0.05, rtol=0.05)
    lost = ours.amax(1) - ours.gather(1, theirs.argmax(1, keepdim=True)).squeeze(1)
    return lost <= TIE * (ours - theirs).square().mean().sqrt()
