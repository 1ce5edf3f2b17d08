"""The geometry of a convolution, for layers that keep its weight in another form."""

from __future__ import annotations

from typing import Any

from torch import nn

PLACEMENT = ("stride", "padding", "dilation", "groups")
GEOMETRY = ("in_channels", "out_channels", "kernel_size", *PLACEMENT)


def geometry(layer: nn.Module) -> dict[str, Any]:
    """The arguments of a convolution, but for its bias."""
    return {name: getattr(layer, name) for name in GEOMETRY}


def placement(layer: nn.Module) -> dict[str, Any]:
    """Where a convolution's weight meets its inputs, as `F.conv2d` takes it."""
    return {name: getattr(layer, name) for name in PLACEMENT}
