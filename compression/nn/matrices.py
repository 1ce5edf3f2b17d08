"""Linear layers and convolutions as matrices, and their inputs as the rows that these are multiplied with."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.nn import layers
from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, forward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


# Of floats, 134 MB: the patches of a 3x3 convolution of VGG-16 take 116 MB for each of its first images.
MAX_PATCHES = 2**25


def weight_matrices(layer: Any, values: Tensor | None = None) -> Tensor:
    """Reshape the layer's weight (or `values` of its shape) to `(groups, outputs / groups, columns)`.

    A convolution's columns run over the input channels and, within each, over the kernel's positions, as in its weight.
    """
    values = layers.weight(layer) if values is None else values
    groups = getattr(layer, "groups", 1)
    return values.reshape(groups, values.shape[0] // groups, -1)


def from_matrices(layer: Any, matrices: Tensor) -> Tensor:
    """Reshape matrices, as `weight_matrices` gives them, to the shape of the layer's weight."""
    return matrices.reshape(layers.weight(layer).shape)


def mask_matrices(layer: nn.Module) -> Tensor:
    """The present mask of the layer, in the shape of `weight_matrices`; all true if it has none."""
    mask = getattr(layer, "mask", None)
    keep = mask if isinstance(mask, Tensor) else torch.ones_like(layers.weight(layer), dtype=torch.bool)
    return weight_matrices(layer, keep)


def columns_by_position(layer: nn.Module) -> Tensor:
    """The columns of `weight_matrices` in another order, `(columns,)`: channels run within each position of the kernel.

    So n of m neighbours are n of m channels, as sparse tensor cores want it. For a linear layer the order is the same.
    """
    shape = layers.weight(layer).shape
    return torch.arange(shape[1:].numel()).view(shape[1], -1).T.flatten()


def sum_moments(
    model: nn.Module,
    watched: nn.Module,
    layer: nn.Module,
    batches: Sequence[Inputs],
    moment: Callable[[Tensor], Tensor],
) -> Tensor | None:
    """Sum `moment(rows)` over the batches, one forward pass of `model` each; None if the model never calls `watched`.

    The rows are what `layer` multiplies its weights with, `(groups, n, columns)`, where `watched`, the layer itself
    or what stands in its place, is called.
    """
    return sum_all_moments(model, {"": watched}, {"": layer}, batches, moment).get("")


@torch.no_grad()
def sum_all_moments(
    model: nn.Module,
    watched: Mapping[str, nn.Module],
    described: Mapping[str, nn.Module],
    batches: Sequence[Inputs],
    moment: Callable[[Tensor], Tensor],
) -> dict[str, Tensor]:
    """`sum_moments` of several layers in the same passes, by name; those that are never called are missing."""
    moments: dict[str, Tensor] = {}  # running sums: the moments of all batches would not fit into memory
    attention_mask: Tensor | None = None

    def add_call(call: Call) -> None:
        for part in _in_parts(described[call.name], call.inputs[0]):
            added = moment(input_rows(described[call.name], part, attention_mask))
            moments[call.name] = moments[call.name] + added if call.name in moments else added

    with on_forward(watched, add_call, before=True):
        for inputs in batches:
            attention_mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
            forward(model, inputs)
    return moments


def _in_parts(layer: nn.Module, inputs: Tensor) -> Sequence[Tensor]:
    """Split the inputs of a convolution by examples, so that the patches of a part take about `MAX_PATCHES` values."""
    if isinstance(layer, nn.Linear):
        return [inputs]
    columns = layers.weight(layer)[0].numel() * getattr(layer, "groups", 1)
    return torch.split(inputs, max(1, MAX_PATCHES // (inputs[0, 0].numel() * columns)))


def input_rows(layer: nn.Module, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The rows that the layer multiplies its weights with, `(groups, n, columns)`, columns as in `weight_matrices`.

    Tokens where `attention_mask` `(batch, length)` is 0, padding, are left out.
    """
    if isinstance(layer, nn.Linear):
        # Of other shapes are the inputs of a pooler or classifier, which read one vector of each text.
        if attention_mask is not None and inputs.shape[:-1] == attention_mask.shape:
            inputs = inputs[attention_mask.bool()]
        return inputs.flatten(0, -2).unsqueeze(0)
    return input_patches(layer, inputs)


def input_patches(layer: Any, images: Tensor) -> Tensor:
    """The patches that a 1-, 2- or 3-d convolution sees, `(groups, batch * positions, columns)`.

    A depthwise convolution with one-hot kernels picks them out, whatever stride, padding and dilation are.
    """
    channels, size = layer.in_channels, math.prod(layer.kernel_size)
    arguments = {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    # Not F.unfold, which takes images alone, and neither padding="same" nor reflected or circular padding.
    pick = type(layer)(channels, channels * size, groups=channels, bias=False, **arguments).to(images)
    one_hot = torch.eye(size, device=images.device, dtype=images.dtype)
    pick.weight.data = one_hot.view(size, 1, *layer.kernel_size).repeat(channels, *[1] * (images.ndim - 1))
    # (batch, groups, channels, size, positions)
    picked: Tensor = pick(images).flatten(2).unflatten(1, (layer.groups, channels // layer.groups, size))
    return picked.permute(1, 0, 4, 2, 3).flatten(3).flatten(1, 2)  # (groups, batch, positions, channels, size) first
