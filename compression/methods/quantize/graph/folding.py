"""Rewriting a float network, with the same outputs, so that its layers become single integer kernels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compression.nn.graph import Graph, record_graph, replace_modules

if TYPE_CHECKING:
    from compression.nn.inputs import Inputs

# The classes of layers that have an integer form, each with the class and the dimensions of the batch norm whose
# channels are the layer's outputs. Over a sequence `(batch, length, features)`, BatchNorm1d has one for each position.
NORM_AFTER: dict[type[nn.Module], tuple[type[nn.Module], int]] = {
    nn.Linear: (nn.BatchNorm1d, 2),
    nn.Conv2d: (nn.BatchNorm2d, 4),
}


def foldable_norms(graph: Graph) -> dict[str, str]:
    """Names of layers, each with the batch norm that can be folded into it: all that the layer makes goes there alone.

    Both are called once and own their parameters alone, and the norm has running statistics.
    """
    found = {}
    for node in graph.nodes:
        norm = node.target
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            continue
        layer = graph.source(node)
        if graph.only_call(node.name) is not node or layer is None or graph.only_call(layer.name) is not layer:
            continue
        if NORM_AFTER.get(type(layer.target)) == (type(norm), len(node.inputs[0].shape)):  # type: ignore[arg-type]
            found[layer.name] = node.name
    return found


@torch.no_grad()
def fold_batch_norms(model: nn.Module, example: Inputs) -> list[str]:
    """Fold each batch norm into the weight and bias of the layer before it, in place; the names of those layers.

    `nn.Identity` takes a norm's place. Jacob et al. 2018, section 3.2. A norm that follows anything else stays. The
    model is left in eval mode; `example` is a prepared batch.
    """
    model.eval()
    folded = foldable_norms(record_graph(model, example))
    for layer_name, norm_name in folded.items():
        _fold(model.get_submodule(layer_name), model.get_submodule(norm_name))
        replace_modules(model, {norm_name: nn.Identity()})
    return list(folded)


def _fold(layer: Any, norm: Any) -> None:
    # Both take None for the gain and the shift of a norm that has none.
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def swap_pools_and_relus(model: nn.Module, example: Inputs) -> None:
    """Swap each max pooling with the ReLU right after it, in place; the outputs are the same in either order.

    ONNX Runtime moves a quantization up through a pooling into the convolution, but not once a ReLU is in between.
    """
    if not any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        return
    graph = record_graph(model, example)
    for node in graph.nodes:
        pool = graph.source(node)
        if type(node.target) is not nn.ReLU or pool is None or type(pool.target) is not nn.MaxPool2d:
            continue
        if graph.only_call(node.name) and graph.only_call(pool.name):
            replace_modules(model, {node.name: pool.target, pool.name: node.target})
