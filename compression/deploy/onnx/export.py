"""The deployed form of a model: an ONNX file, run by ONNX Runtime, held against the torch model it came from."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from compression.deploy.onnx.functions import define_functions
from compression.deploy.onnx.modules import deployable
from compression.deploy.onnx.tensors import OPSET
from compression.errors import UserError, first_line
from compression.nn.inputs import Inputs, forward


class _Logits(nn.Module):
    """The model reduced to named inputs and one output, which is what the file holds."""

    def __init__(self, model: nn.Module, names: list[str]):
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        given: Inputs = inputs[0] if self.names == ["images"] else dict(zip(self.names, inputs, strict=True))
        return forward(self.model, given)


def named(inputs: Inputs) -> dict[str, Tensor]:
    """Model inputs under the names they have in the file: one tensor is called `images`."""
    return inputs if isinstance(inputs, dict) else {"images": inputs}


def export(model: nn.Module, example: Inputs, path: Path) -> Path:
    """Write `model` as ONNX with batch (and, for text, length) left open; weights inside the file.

    `example` is a prepared batch of at least 2 on the CPU. Raises UserError where torch cannot export the model.
    """
    tensors = named(example)
    dims: dict[int, Any] = {0: torch.export.Dim.DYNAMIC}
    text = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    shapes = [text if isinstance(example, dict) and t.ndim == 2 else dims for t in tensors.values()]
    wrapped = _Logits(deployable(copy.deepcopy(model).cpu().eval()), list(tensors))
    with quiet():
        try:
            program = torch.onnx.export(
                wrapped,
                tuple(tensors.values()),
                dynamo=True,
                opset_version=OPSET,
                input_names=list(tensors),
                output_names=["logits"],
                dynamic_shapes=(tuple(shapes),),
                verbose=False,
            )
            assert program is not None
            define_functions(program)
            _unfuse_gelu(program.model)
            path.write_bytes(_bare(program))
        except (torch.onnx.OnnxExporterError, RuntimeError, OSError) as error:
            path.unlink(missing_ok=True)
            raise UserError(f"The model could not be written as ONNX: {first_line(error)}") from error
    return path


def _unfuse_gelu(model: Any) -> None:
    """Make biases before a Gelu matrices of one row: ONNX Runtime would fuse vectors into BiasGelu, which is slower
    than an addition and a Gelu (benchmarks/README.md)."""
    import onnx_ir as ir

    for node in model.graph:
        before = node.inputs[0].producer() if node.op_type == "Gelu" and node.inputs[0] is not None else None
        if before is None or before.op_type != "Add":
            continue
        for bias in before.inputs:
            if bias is not None and bias.is_initializer() and len(bias.uses()) == 1 and bias.shape.rank() == 1:
                bias.const_value = ir.tensor(bias.const_value.numpy()[None], name=bias.name)
                bias.shape = bias.const_value.shape


def _bare(program: torch.onnx.ONNXProgram) -> bytes:
    """The file without what no runtime reads: traces of our source code and the shapes in between, often 100 kB."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(program.model)
    proto = program.model_proto
    del proto.graph.value_info[:]
    return proto.SerializeToString()


@contextlib.contextmanager
def quiet():
    """Keep the exporter's chatter off the terminal; errors still come as exceptions."""
    level = logging.getLogger("torch.onnx").level
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)
