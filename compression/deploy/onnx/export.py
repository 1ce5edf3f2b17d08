"""Write a model as an ONNX file for ONNX Runtime."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.deploy.onnx import files
from compression.deploy.onnx.functions import add_function_definitions
from compression.deploy.onnx.modules import replace_for_export
from compression.deploy.onnx.translation import translate
from compression.errors import UserError, first_line, root_cause
from compression.nn.inputs import Inputs, forward

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir


class _PositionalInputs(nn.Module):
    """Calls a model with its inputs by position, the way `torch.onnx.export` passes them, and returns the logits."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *tensors: Tensor) -> Tensor:
        inputs: Inputs = tensors[0] if self.names == ["images"] else dict(zip(self.names, tensors, strict=True))
        return forward(self.model, inputs)


def named_inputs(inputs: Inputs) -> dict[str, Tensor]:
    """Return model inputs by their names in an ONNX file, where a single tensor is called `images`."""
    return inputs if isinstance(inputs, dict) else {"images": inputs}


def export(model: nn.Module, example: Inputs, path: Path) -> Path:
    """Write `model` as ONNX with the output `logits`, dynamic batch size (and text length), and the weights inside.

    More weights than one file holds go into a second one, see `files.write`. `example` is a prepared batch of at least
    2 on the CPU. The model itself is not changed. Raises UserError if torch cannot export it or the file cannot be
    written.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    tensors = named_inputs(example)
    # torch.export takes a dimension of size 1 for a constant: hence the batch of at least 2.
    images: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    tokens = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = [tokens if isinstance(example, dict) and t.ndim == 2 else images for t in tensors.values()]
    wrapped = _PositionalInputs(replace_for_export(copy.deepcopy(model).cpu().eval()), list(tensors))
    try:
        program = translate(wrapped, tensors, tuple(shapes))
        add_function_definitions(program)
        _prevent_bias_gelu(program.model)
        ClearMetadataAndDocStringPass()(program.model)  # stack traces, often 100 kB that no runtime reads
        files.write(program.model, path)
    except (torch.onnx.OnnxExporterError, RuntimeError, OSError) as error:
        files.remove(path)
        raise UserError(f"The model could not be written as ONNX: {first_line(root_cause(error))}") from error
    return path


def _prevent_bias_gelu(model: ir.Model) -> None:
    """Turn biases before a Gelu into matrices of one row, in place.

    ONNX Runtime would fuse vectors into BiasGelu, which is slower than an addition and a Gelu (benchmarks/README.md).
    """
    import onnx_ir as ir

    for node in model.graph:
        before = node.inputs[0].producer() if node.op_type == "Gelu" and node.inputs[0] is not None else None
        if before is None or before.op_type != "Add":
            continue
        for bias in before.inputs:
            # A tensor that other nodes read as well keeps its shape.
            if bias is None or bias.const_value is None or not bias.is_initializer() or len(bias.uses()) != 1:
                continue
            values = bias.const_value.numpy()
            # A row broadcasts as a vector does, and is not fused. For 32 texts a quantized MiniLM takes 82.5 ms with
            # 10.8 in BiasGelu; apart the additions take 4.3 and the Gelus 5.2.
            if values.ndim == 1:
                bias.const_value = ir.tensor(values[None], name=bias.name)
                bias.shape = ir.Shape((1, *values.shape))
