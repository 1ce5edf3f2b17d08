"""Write a model as an ONNX file for ONNX Runtime."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.deploy.onnx import files
from compression.deploy.onnx.decoder import cached_decoder
from compression.deploy.onnx.functions import add_function_definitions
from compression.deploy.onnx.modules import OnnxMatMulNBits, replace_for_export
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


def export(model: nn.Module, example: Inputs, path: Path, rounds_inputs: bool = False) -> Path:
    """Write `model` as ONNX with the output `logits`, dynamic batch size (and text length), and the weights inside.

    A decoder of transformers also takes and gives the keys and values of the tokens so far, see `deploy.cache`: with
    none it reads whole texts.

    More weights than one file holds go into a second one, see `files.write`. `example` is a prepared batch of at least
    2 on the CPU. With `rounds_inputs`, layers whose weights have 4 bits in groups may round their inputs to 8 bits, see
    `OnnxMatMulNBits`. The model itself is not changed. Raises UserError if torch cannot export it or the file cannot be
    written.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    copied = copy.deepcopy(model).cpu().eval()
    decoder = cached_decoder(copied)  # before its layers write operators instead of computing
    replaced = replace_for_export(copied)
    for module in replaced.modules():
        if rounds_inputs and isinstance(module, OnnxMatMulNBits):
            module.round_inputs()
    tensors, outputs = named_inputs(example), ["logits"]
    shapes = tuple(_open_dimensions(name, tensor) for name, tensor in tensors.items())
    wrapped: nn.Module = _PositionalInputs(replaced, list(tensors))
    if decoder is not None:
        wrapped, outputs, shapes = decoder, decoder.output_names(), decoder.dimensions()
        # Traced with a few earlier tokens: torch.export takes a dimension of size 0 for a constant, too.
        tensors = tensors | decoder.empty(len(tensors["input_ids"]), length=3)
    try:
        program = translate(wrapped, tensors, shapes, outputs)
        add_function_definitions(program)
        _prevent_bias_gelu(program.model)
        ClearMetadataAndDocStringPass()(program.model)  # stack traces, often 100 kB that no runtime reads
        files.write(program.model, path)
    except (torch.onnx.OnnxExporterError, RuntimeError, OSError) as error:
        files.remove(path)
        raise UserError(f"The model could not be written as ONNX: {first_line(root_cause(error))}") from error
    return path


def _open_dimensions(name: str, tensor: Tensor) -> dict[int, Any]:
    """Return which dimensions of an input may have any size: the batch, and the length of a text."""
    # torch.export takes a dimension of size 1 for a constant: hence the batch of at least 2.
    batch = {0: torch.export.Dim.DYNAMIC}
    return batch | {1: torch.export.Dim.DYNAMIC} if name != "images" and tensor.ndim == 2 else batch


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
