"""Sixteen-bit floats: half the size, almost the same outputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.quantize.calibration.selection import SKIP_HELP, is_quantizable, select_layers
from compression.nn.graph import replace_module
from compression.nn.quantized.half import HalfConv2d, HalfEmbedding, HalfLayer, HalfLinear
from compression.nn.recurrent import Gates
from compression.params import param

if TYPE_CHECKING:
    from compression.training.context import Context

TORCH_NAMES = {"fp16": "float16", "bf16": "bfloat16"}


@dataclass(frozen=True)
class HalfPrecision(Method):
    """Store the weights of linear layers, convolutions and embeddings in 16 bits, and compute in 32.

    fp16 keeps 11 significant bits up to 65504, bf16 8 over the whole range of 32-bit floats (Kalamkar et al. 2019,
    arXiv:1905.12322). The CPU of ONNX Runtime has few kernels for either, so the file holds 16-bit weights that are
    widened once, when it is loaded: it is half as large and runs as fast as before, not faster.
    """

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    dtype: str = param("fp16", "kind of 16-bit float", choices=("fp16", "bf16"), search=("fp16", "bf16"))
    skip: tuple[str, ...] = param((), SKIP_HELP)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Raises UserError for a weight that is too large for fp16."""
        found = {name: m for name, m in model.named_modules() if is_quantizable(m) or type(m) in (Gates, nn.Embedding)}
        for name in select_layers(model, found, self.skip, context.task.example(2)):
            half = to_half(found[name], TORCH_NAMES[self.dtype])
            if not bool(torch.isfinite(half.weight).all()):
                raise UserError(f"A weight of {name} is too large for {self.dtype}; use dtype=bf16 or skip={name}.")
            replace_module(model, name, half)
        return model


def to_half(layer: nn.Module, stored: str) -> HalfLayer:
    """A linear layer, convolution or embedding with its weight stored as `stored`, float16 or bfloat16."""
    if isinstance(layer, nn.Embedding):
        return HalfEmbedding.shaped_like(layer, stored=stored).set_weight(layer.weight, None)
    assert isinstance(layer, (nn.Linear, nn.Conv2d))
    shaped = (HalfLinear if isinstance(layer, nn.Linear) else HalfConv2d).shaped_like(layer, stored=stored)
    return shaped.set_weight(layer.weight, layer.bias)
