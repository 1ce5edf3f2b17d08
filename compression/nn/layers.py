"""Layers and what the lab does to them: which carry weights, masks that stay, counting."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression.nn.inputs import Inputs, forward
from compression.nn.quantized import (
    QuantAdd,
    QuantAvgPool2d,
    QuantConv2d,
    QuantEmbedding,
    QuantInput,
    Quantize,
    QuantLinear,
    QuantWeightLayer,
)
from compression.nn.quantized.clustered import ClusteredLayer, ClusteredConv2d, ClusteredLinear
from compression.nn.quantized.half import HalfConv2d, HalfEmbedding, HalfLinear

COMPRESSED = (QuantLinear, QuantConv2d, ClusteredLinear, ClusteredConv2d, HalfLinear, HalfConv2d)
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *COMPRESSED)


class Add(nn.Module):
    """A residual sum as a module, so that a quantizer finds it and can put `QuantAdd` in its place."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + right


# Layers that a saved model may hold where its builder put another: rebuilt from their constructor's arguments, each
# kept under the attribute of the same name. A layer class of the lab joins this line to be saved and loaded.
REBUILT: tuple[type[nn.Module], ...] = (
    *PRUNABLE,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.Embedding,
    nn.Identity,
    nn.ReLU,
    nn.MaxPool2d,
    Add,
    Quantize,
    QuantInput,
    QuantEmbedding,
    QuantAdd,
    QuantAvgPool2d,
    HalfEmbedding,
)


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weights count for sparsity, by name: linear and convolution, not norms or embeddings."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}


def original_name(model: nn.Module, name: str) -> str:
    """The name that a layer was built under: a quantizer may round its input in a Sequential around it."""
    parent, _, own = name.rpartition(".")
    around = model.get_submodule(parent)
    wrapped = own == "layer" and type(around) is nn.Sequential and isinstance(around[0], Quantize)
    return parent if wrapped else name


def set_mask(module: nn.Module, keep: Tensor) -> None:
    """Zero `module.weight` where `keep` (bool, shape of the weight) is false, and hold it there in training.

    The mask is a buffer that is not saved: a mask is where the weight is zero, so `artifacts.load` finds it again.
    """
    module.register_buffer("mask", keep.to(torch.bool), persistent=False)
    apply_mask(module)


@torch.no_grad()
def apply_mask(module: nn.Module) -> None:
    module.weight.mul_(module.mask)  # type: ignore[operator, union-attr, arg-type]


def masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers that carry a mask, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(getattr(m, "mask", None), Tensor)}


def apply_masks(model: nn.Module) -> None:
    """Put pruned weights back to zero; `fit` calls it after every optimizer step."""
    for module in masked_layers(model).values():
        apply_mask(module)


def weight(module: nn.Module) -> Tensor:
    """The layer's weight as the layer uses it."""
    return module.weight.detach()  # type: ignore[union-attr, return-value, operator]


def weight_bits(module: nn.Module) -> int:
    """Bits that one weight of the layer takes."""
    return getattr(module, "weight_bits", None) or weight(module).element_size() * 8


def count_parameters(model: nn.Module) -> int:
    """Learned numbers of the model, each counted once; an integer weight is a buffer, and counts."""
    integers = sum(m.weight.numel() for m in model.modules() if isinstance(m, (QuantWeightLayer, ClusteredLayer)))
    return sum(p.numel() for p in model.parameters()) + integers


def count_macs(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Multiply-accumulates of one forward pass by module, counted on the CPU; `""` holds what no layer owns.

    FlopCounterMode counts two operations a multiply-accumulate, so its figures are halved.
    """
    copied = copy.deepcopy(model).cpu().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(copied, example)
    prefix = type(copied).__name__
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    owned = {name: counts.get(f"{prefix}.{name}", 0) for name in prunable_layers(copied)}
    return owned | {"": counts.get("Global", 0) - sum(owned.values())}
