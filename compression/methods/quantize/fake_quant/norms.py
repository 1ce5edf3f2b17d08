"""The parameters of layers and of the batch norms after them, as plain tensors and layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from compression.nn.quantized import conv_arguments

BatchNorm = nn.BatchNorm1d | nn.BatchNorm2d
MIN_FACTOR = 1e-6  # a channel that a batch norm multiplies by less is as good as gone, and cannot be divided by it


def norm_factors(norm: BatchNorm) -> Tensor:
    """What a batch norm in eval mode multiplies each channel by, `(channels,)`."""
    assert norm.running_var is not None
    gain = norm.weight if norm.affine else torch.ones_like(norm.running_var)
    return gain / (norm.running_var + norm.eps).sqrt()


def scale_outputs(weight: Tensor, factors: Tensor) -> Tensor:
    """`weight` `(outputs, …)` with each output multiplied by its factor `(outputs,)`."""
    return weight * factors.view(-1, *[1] * (weight.ndim - 1))


def plain_layer(layer: nn.Linear | nn.Conv2d, weight: Tensor) -> nn.Linear | nn.Conv2d:
    """An `nn.Linear` or `nn.Conv2d` of the geometry of `layer`, with copies of `weight` and of the layer's bias."""
    plain: nn.Linear | nn.Conv2d
    if isinstance(layer, nn.Linear):
        plain = nn.Linear(layer.in_features, layer.out_features, device="meta")
    else:
        plain = nn.Conv2d(**conv_arguments(layer), device="meta")
    plain.weight = nn.Parameter(weight.detach().clone())
    plain.bias = None if layer.bias is None else nn.Parameter(layer.bias.detach().clone())
    return plain


def fold_norm(layer: nn.Linear | nn.Conv2d, norm: BatchNorm, factors: Tensor) -> None:
    """Fold `norm`, which multiplies by `factors`, into the weight and bias of `layer`, in place.

    Jacob et al. 2018, arXiv:1712.05877, section 3.2.
    """
    assert norm.running_mean is not None
    shift = norm.bias if norm.affine else torch.zeros_like(factors)
    bias = torch.zeros_like(factors) if layer.bias is None else layer.bias
    layer.bias = nn.Parameter((shift + (bias - norm.running_mean) * factors).detach())
    layer.weight = nn.Parameter(scale_outputs(layer.weight, factors).detach())
