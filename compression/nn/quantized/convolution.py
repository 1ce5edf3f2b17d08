"""Constructor and call arguments of a convolution, for layers that store its weight in another form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

CONV_OPTIONS = ("stride", "padding", "dilation", "groups")
CONV_ARGUMENTS = ("in_channels", "out_channels", "kernel_size", *CONV_OPTIONS)


def conv_arguments(layer: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of a convolution, without `bias`."""
    return {name: getattr(layer, name) for name in CONV_ARGUMENTS}


def conv_options(layer: nn.Module) -> dict[str, Any]:
    """Return stride, padding, dilation and groups, the keyword arguments of `F.conv2d`."""
    return {name: getattr(layer, name) for name in CONV_OPTIONS}
