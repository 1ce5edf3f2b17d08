"""What layers with a compactly stored weight have in common with the float layers whose place they take.

A layer class combines one of the float layers here (linear, convolution, embedding) with a storage class: integer codes
in layers.py, a codebook in clustered.py, 16-bit floats in half.py. Its constructor lists every parameter, each of which
is kept in an attribute of the same name: stored models are rebuilt from them (see `nn.layers.STORABLE`).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONV_OPTIONS = ("stride", "padding", "dilation", "groups")
CONV_ARGUMENTS = ("in_channels", "out_channels", "kernel_size", *CONV_OPTIONS)
FloatLayer = nn.Linear | nn.Conv2d | nn.Embedding


def conv_arguments(layer: nn.Module) -> dict[str, Any]:
    """Return the constructor arguments of a convolution, without `bias`."""
    return {name: getattr(layer, name) for name in CONV_ARGUMENTS}


def conv_options(layer: nn.Module) -> dict[str, Any]:
    """Return stride, padding, dilation and groups, the keyword arguments of `F.conv2d`."""
    return {name: getattr(layer, name) for name in CONV_OPTIONS}


def frozen_bias(size: int) -> nn.Parameter | None:
    """Build a bias of zeros `(size,)` that does not train; none for size 0."""
    return nn.Parameter(torch.zeros(size), requires_grad=False) if size else None


class LowBitLayer(nn.Module):
    """Base class of layers whose weight is stored in fewer bits than float32, and does not train.

    A storage class is constructed from the shape of the weight, the size of the bias (0 for none) and its own options.
    """

    SIZES: ClassVar[tuple[str, ...]]  # constructor arguments in common with the float layer, besides `bias`
    weight: Tensor
    bias: nn.Parameter | None

    @classmethod
    def shaped_like(cls, layer: FloatLayer, **storage: Any) -> Self:
        """Build a layer of zeros with the sizes of the float `layer`; `storage` are the options of the storage class.

        Raises ValueError for a convolution that pads with anything but zeros.
        """
        if getattr(layer, "padding_mode", "zeros") != "zeros":
            raise ValueError(f"padding_mode={layer.padding_mode!r}: low-bit convolutions pad with zeros only")
        arguments = {name: getattr(layer, name) for name in cls.SIZES}
        if not isinstance(layer, nn.Embedding):
            arguments["bias"] = layer.bias is not None
        return cls(**arguments, **storage)

    def float_weight(self) -> Tensor:
        """Return the weight as the forward pass multiplies with it, float32."""
        return self.weight


class LowBitLinear(LowBitLayer):
    """The sizes and the product of `nn.Linear`."""

    SIZES = ("in_features", "out_features")

    def __init__(self, in_features: int, out_features: int, bias: bool, **storage: Any) -> None:
        super().__init__((out_features, in_features), out_features if bias else 0, **storage)
        self.in_features, self.out_features = in_features, out_features

    def forward(self, input: Tensor) -> Tensor:
        """Map `(..., in_features)` to `(..., out_features)`."""
        return F.linear(input, self.float_weight(), self.bias)


class LowBitConv2d(LowBitLayer):
    """The sizes and the product of `nn.Conv2d`."""

    SIZES = CONV_ARGUMENTS

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int] | str,
        dilation: tuple[int, int],
        groups: int,
        bias: bool,
        **storage: Any,
    ) -> None:
        shape = (out_channels, in_channels // groups, *kernel_size)
        super().__init__(shape, out_channels if bias else 0, **storage)
        self.in_channels, self.out_channels, self.kernel_size = in_channels, out_channels, kernel_size
        self.stride, self.padding, self.dilation, self.groups = stride, padding, dilation, groups

    def forward(self, input: Tensor) -> Tensor:
        """Map images `(batch, in_channels, height, width)` to feature maps `(batch, out_channels, ...)`."""
        return F.conv2d(input, self.float_weight(), self.bias, **conv_options(self))


class LowBitEmbedding(LowBitLayer):
    """The sizes and the look-up of `nn.Embedding`."""

    SIZES = ("num_embeddings", "embedding_dim")

    def __init__(self, num_embeddings: int, embedding_dim: int, **storage: Any) -> None:
        super().__init__((num_embeddings, embedding_dim), 0, **storage)
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim

    def forward(self, input: Tensor) -> Tensor:
        """Look up `input` of any shape: `(..., embedding_dim)`."""
        return F.embedding(input, self.weight)
