"""The geometry of a convolution, for layers that keep its weight in another form."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")


def geometry(layer: nn.Module) -> dict[str, Any]:
    """The arguments of a convolution, but for its bias."""
    return {name: getattr(layer, name) for name in GEOMETRY}


def convolve(layer: nn.Module, inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`inputs` `(batch, channels, height, width)` under `weight`, in the geometry of `layer`."""
    placed: Any = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return F.conv2d(inputs, weight, bias, **placed)
