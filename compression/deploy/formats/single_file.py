"""The formats that hold any model in one file: ONNX, ONNX for exchange, and torch's weights."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from compression import models
from compression.deploy.onnx import qcdq
from compression.deploy.onnx.export import export

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn


def onnx(model: nn.Module, _: Path, path: Path) -> Path:
    """Write the ONNX file that is measured and deployed: integer codes packed at their bit-width."""
    # Four examples: torch.export takes a dimension of 1 for a constant, and the batch has to stay open.
    return export(model, models.zero_inputs(model, 4), path)


def exchange(model: nn.Module, _: Path, path: Path) -> Path:
    """Write QCDQ, as Brevitas does: standard operators on 8-bit containers. UserError if nothing is quantized."""
    return qcdq.write(model, models.zero_inputs(model, 4), path)


def weights(model: nn.Module, _: Path, path: Path) -> Path:
    """Write the state dict, for `torch.load(…, weights_only=True)`."""
    torch.save(model.state_dict(), path)
    return path
