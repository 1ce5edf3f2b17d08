"""Export a stored model as one file, or a folder, that other tools read."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from compression import models
from compression.deploy import genai
from compression.deploy.onnx import qcdq
from compression.deploy.onnx.export import export
from compression.errors import UserError
from compression.models import storage
from compression.runs import loading

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def write(spec: str, kind: str, output: Path) -> Path:
    """Write the model at `spec` (runs:/…, models:/… or a folder of the lab) to `output` in the format `kind`.

    Raises UserError where the format cannot hold the model, and then leaves no file.
    """
    with loading.stored_folder(spec) as folder:
        if folder is None:
            raise UserError(
                f"{spec} is no model of the lab: give runs:/ID/model, models:/NAME/VERSION or a run's folder."
            )
        model = storage.load(folder)
        if not output.parent.is_dir():
            raise UserError(f"{output} cannot be written: there is no folder {output.parent}.")
        if kind in FOLDERS:
            return FOLDERS[kind](model, folder, output)
        return FORMATS[kind](model, output)


def onnx(model: nn.Module, path: Path) -> Path:
    """Write the ONNX file that is measured and deployed: integer codes packed at their bit-width."""
    # Four examples: torch.export takes a dimension of 1 for a constant, and the batch has to stay open.
    return export(model, models.zero_inputs(model, 4), path)


def exchange(model: nn.Module, path: Path) -> Path:
    """Write QCDQ: standard operators on 8-bit containers, as Brevitas does."""
    return qcdq.write(model, models.zero_inputs(model, 4), path)


def weights(model: nn.Module, path: Path) -> Path:
    """Write the state dict, for `torch.load(…, weights_only=True)`."""
    torch.save(model.state_dict(), path)
    return path


FORMATS: dict[str, Callable[[nn.Module, Path], Path]] = {"onnx": onnx, "qcdq": exchange, "pth": weights}
# Those that need what lies beside the weights, the tokenizer, too: a function of model, its folder and the new one.
FOLDERS: dict[str, Callable[[nn.Module, Path, Path], Path]] = {"genai": genai.write}

CAUTIONS = {
    "qcdq": "below 8 bits ONNX Runtime rounds the biases of this format to wide steps, and may answer otherwise than "
    "the model, unless its optimisations are off; the format onnx answers as the model does."
}
