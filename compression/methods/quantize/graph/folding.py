"""Rewriting a float network, with the same outputs, so that its layers become single integer kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compression.methods.quantize.graph.tracing import BATCH_NORMS, module_calls, sole_producer


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> list[str]:
    """Fold each batch norm into the weight and bias of the layer before it, in place; the names of those layers.

    `nn.Identity` takes a norm's place. Jacob et al. 2018, section 3.2. A norm that follows anything else stays. The
    model is left in eval mode.
    """
    if not any(isinstance(m, BATCH_NORMS) for m in model.modules()):
        return []
    model.eval()
    folded = []
    for node, norm in module_calls(model):
        if isinstance(norm, BATCH_NORMS) and (producer := sole_producer(node, model, (nn.Linear, nn.Conv2d))):
            source, layer = producer
            _fold(layer, norm)
            model.set_submodule(str(node.target), nn.Identity())
            folded.append(str(source.target))
    return folded


def _fold(layer: Any, norm: Any) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def swap_pools_and_relus(model: nn.Module) -> None:
    """Swap each max pooling with the ReLU right after it, in place; the outputs are the same in either order.

    ONNX Runtime moves a quantization up through a pooling into the convolution, but not once a ReLU is in between.
    """
    if not any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        return
    for node, relu in module_calls(model):
        if isinstance(relu, nn.ReLU) and (producer := sole_producer(node, model, (nn.MaxPool2d,))):
            source, pool = producer
            model.set_submodule(str(node.target), pool)
            model.set_submodule(str(source.target), relu)
