"""Sixteen-bit floats: half the size, almost the same answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.quantize.calibration.selection import SKIP, chosen
from compression.methods.quantize.fake.rounding import trainable
from compression.nn.quantized import conv_arguments
from compression.nn.quantized.half import HalfLayer, HalfConv2d, HalfEmbedding, HalfLinear
from compression.nn.recurrent import Gates
from compression.params import param
from compression.training.context import Context

STORED = {"fp16": "float16", "bf16": "bfloat16"}


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
    skip: tuple[str, ...] = param((), SKIP)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        found = {name: m for name, m in model.named_modules() if trainable(m) or type(m) in (Gates, nn.Embedding)}
        for name in chosen(model, found, self.skip):
            made = halved(found[name], STORED[self.dtype])
            if not bool(torch.isfinite(made.weight).all()):
                raise UserError(f"A weight of {name} is too large for {self.dtype}; use dtype=bf16 or skip={name}.")
            model.set_submodule(name, made)
        return model


def halved(layer: nn.Module, stored: str) -> HalfLayer:
    """`layer` with its weight in 16 bits."""
    if isinstance(layer, nn.Embedding):
        return HalfEmbedding(layer.num_embeddings, layer.embedding_dim, stored).set_weight(layer.weight, None)
    if isinstance(layer, nn.Linear):
        made: HalfLayer = HalfLinear(layer.in_features, layer.out_features, layer.bias is not None, stored)
        return made.set_weight(layer.weight, layer.bias)
    assert isinstance(layer, nn.Conv2d)
    made = HalfConv2d(**conv_arguments(layer), bias=layer.bias is not None, stored=stored)
    return made.set_weight(layer.weight, layer.bias)
