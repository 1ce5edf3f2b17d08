"""The layer classes of the lab, pruning masks, and counts of parameters and multiply-accumulates."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from compression.nn.inputs import Inputs, forward
from compression.nn.quantized import (
    QuantAdd,
    QuantAvgPool2d,
    QuantConcat,
    QuantConv2d,
    QuantEmbedding,
    QuantInput,
    Quantize,
    QuantLinear,
    QuantWeightLayer,
)
from compression.nn.quantized.clustered import ClusteredConv2d, ClusteredLayer, ClusteredLinear
from compression.nn.quantized.half import HalfConv2d, HalfEmbedding, HalfLinear

if TYPE_CHECKING:
    from collections.abc import Iterable

COMPRESSED_LAYERS = (QuantLinear, QuantConv2d, ClusteredLinear, ClusteredConv2d, HalfLinear, HalfConv2d)
PRUNABLE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *COMPRESSED_LAYERS)


class Add(nn.Module):
    """A residual sum as a module, so that a quantizer can find it and replace it by `QuantAdd`."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Add two tensors of one shape."""
        return left + right


class Concat(nn.Module):
    """A concatenation along the channels as a module, which a quantizer replaces by `QuantConcat`."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Put tensors `(batch, channels, ...)` of one shape, but for their channels, one behind the other."""
        return torch.cat(inputs, 1)


# Without weights, but with an integer form: the layers on both sides are fused into integer kernels only with it.
WEIGHTLESS = (Add, Concat, nn.AdaptiveAvgPool2d)

# Layer classes that a method may put in the place of a layer of the model's builder. Stored models name them, and
# rebuild them from their constructor arguments, each read from the attribute of the same name. A new layer class must
# join this list to be stored.
STORABLE: tuple[type[nn.Module], ...] = (
    *PRUNABLE,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.LayerNorm,
    nn.Embedding,
    nn.Identity,
    nn.ReLU,
    nn.MaxPool2d,
    Add,
    Concat,
    Quantize,
    QuantInput,
    QuantEmbedding,
    QuantAdd,
    QuantConcat,
    QuantAvgPool2d,
    HalfEmbedding,
)


def weighted_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the linear layers and convolutions, in floats or compressed, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, PRUNABLE)}


def prunable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose weights count for sparsity, by name: linear and convolution, no norms or embeddings.

    Nor the output layers of `tied_layers`, whose zeros would be those of an embedding.
    """
    tied = tied_layers(model)
    return {name: module for name, module in weighted_layers(model).items() if name not in tied}


def tied_layers(model: nn.Module) -> dict[str, str]:
    """Return the layers whose weight is that of an embedding, too, by name; each with the embedding's name.

    Press and Wolf 2016, arXiv:1608.05859: the output layer of most small language models.
    """
    # Not `module.weight`, which integer layers compute.
    weights = {name: module._parameters.get("weight") for name, module in model.named_modules()}
    embeddings = {id(weights[name]): name for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    return {
        name: embeddings[id(weight)]
        for name, weight in weights.items()
        if weight is not None and id(weight) in embeddings and embeddings[id(weight)] != name
    }


def tied_clause(names: Iterable[str]) -> str:
    """The end of a sentence that says of names in `tied_layers` why they are left out; empty if there are none."""
    return f"; {' and '.join(sorted(names))} share one weight, which stays as it is" if names else ""


def original_name(model: nn.Module, name: str) -> str:
    """Return the name a layer had before a quantizer wrapped it in a Sequential that quantizes its input."""
    parent, _, own = name.rpartition(".")
    container = model.get_submodule(parent)
    is_wrapped = own == "layer" and type(container) is nn.Sequential and isinstance(container[0], Quantize)
    return parent if is_wrapped else name


def set_mask(module: nn.Module, keep: Tensor) -> None:
    """Zero `module.weight` where `keep` (bool, shape of the weight) is false, and keep it zero during training.

    The mask is a buffer that is not stored: `models.storage.load` restores it from the zeros of the weight.
    """
    module.register_buffer("mask", keep.to(torch.bool), persistent=False)
    apply_mask(module)


@torch.no_grad()
def apply_mask(module: nn.Module) -> None:
    """Set the masked entries of the layer's weight to zero, in place."""
    module.weight.mul_(module.mask)  # type: ignore[operator, arg-type]


def masked_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that have a mask, by name."""
    return {name: m for name, m in model.named_modules() if isinstance(getattr(m, "mask", None), Tensor)}


def apply_masks(model: nn.Module) -> None:
    """Set pruned weights back to zero; `fit` calls it after every optimizer step."""
    for module in masked_layers(model).values():
        apply_mask(module)


def weight(module: nn.Module) -> Tensor:
    """Return the layer's weight, detached and dequantized, as its forward pass uses it."""
    found = module.weight
    assert isinstance(found, Tensor)
    return found.detach()


def weight_bits(module: nn.Module) -> int:
    """Return the bits that one weight of the layer takes."""
    return getattr(module, "bits", None) or weight(module).element_size() * 8


def count_parameters(model: nn.Module) -> int:
    """Count the parameters of the model, shared ones once; integer and clustered weights, which are buffers, count."""
    buffers = sum(m.weight.numel() for m in model.modules() if isinstance(m, (QuantWeightLayer, ClusteredLayer)))
    return sum(p.numel() for p in model.parameters()) + buffers


def count_macs(model: nn.Module, example: Inputs) -> dict[str, int]:
    """Count the multiply-accumulates of one forward pass by layer, on the CPU; `""` has those of no prunable layer.

    FlopCounterMode counts two operations per multiply-accumulate, so its figures are halved.
    """
    # The lab's layers of integers compute in floats here, and are counted as floats are; torch's int8 modules count as
    # 0. FlopCounterMode misses fused attention on the CPU: text models are built with plain operators.
    copied = copy.deepcopy(model).cpu().eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        forward(copied, example)
    prefix = type(copied).__name__
    counts = {name: sum(ops.values()) // 2 for name, ops in counter.get_flop_counts().items()}
    names: dict[nn.Module, list[str]] = {}  # a module of several names is counted under one of them
    for name, module in copied.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    owned = {
        name: sum(counts.get(f"{prefix}.{alias}", 0) for alias in names[module])
        for name, module in weighted_layers(copied).items()
    }
    return owned | {"": counts.get("Global", 0) - sum(owned.values())}
