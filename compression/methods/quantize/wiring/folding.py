"""Rewriting a float network so that it quantizes well, without changing what it answers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from compression.errors import UserError

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)
WEIGHTED = (nn.Linear, nn.Conv2d)
# f(s x) = s f(x) for s > 0 in every channel, so a channel's scale can move across.
HOMOGENEOUS = (nn.ReLU, nn.Identity, nn.Dropout, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d)
ROUNDS = 20  # of equalisation; it converges in a handful


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> fx.Graph:
    """The graph of the model's leaf modules; UserError where torch.fx cannot follow its Python."""
    try:
        return _Tracer().trace(model)
    except (fx.proxy.TraceError, TypeError, RuntimeError, AttributeError, NotImplementedError, ValueError) as error:
        raise UserError(
            f"torch.fx cannot follow {type(model).__name__}: leave equalize out, or use a model without batch norms."
        ) from error


def _follows(node: fx.Node, model: nn.Module, kinds: tuple[type, ...]) -> tuple[str, nn.Module] | None:
    """Name and module of the input of `node`, if it is the only use of a module of `kinds` that is called once."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node) or source.op != "call_module" or len(source.users) != 1:
        return None
    name = str(source.target)
    called = sum(n.op == "call_module" and n.target == source.target for n in node.graph.nodes)
    module = model.get_submodule(name)
    return (name, module) if called == 1 and isinstance(module, kinds) else None


@torch.no_grad()
def fold_batch_norms(model: nn.Module) -> list[str]:
    """Put each batch norm into the weights and bias of the layer before it, in place; the names of those layers.

    `nn.Identity` takes a norm's place. Jacob et al. 2018, section 3.2. A norm that follows anything else stays.
    """
    if not any(isinstance(m, NORMS) for m in model.modules()):
        return []
    model.eval()
    folded = []
    for node in trace(model).nodes:
        if node.op != "call_module" or not isinstance(norm := model.get_submodule(node.target), NORMS):
            continue
        if found := _follows(node, model, WEIGHTED):
            name, layer = found
            _fuse(layer, norm)
            model.set_submodule(node.target, nn.Identity())
            folded.append(name)
    return folded


def _fuse(layer: Any, norm: Any) -> None:
    fuse = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    layer.weight, layer.bias = fuse(
        layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )


def relu_before_pool(model: nn.Module) -> None:
    """Swap a max pooling and the ReLU right after it, in place: the answer is the same either way.

    ONNX Runtime moves a quantization up through a pooling into the convolution, but not once a ReLU is in between.
    """
    if not any(isinstance(m, nn.MaxPool2d) for m in model.modules()):
        return
    for node in trace(model).nodes:
        if node.op != "call_module" or not isinstance(relu := model.get_submodule(node.target), nn.ReLU):
            continue
        if found := _follows(node, model, (nn.MaxPool2d,)):
            name, pool = found
            model.set_submodule(node.target, pool)
            model.set_submodule(name, relu)


def equalize(model: nn.Module) -> list[tuple[str, str]]:
    """Give the channels between two layers equal ranges on both sides, in place; the pairs of names.

    Cross-layer equalisation: Nagel et al. 2019, arXiv:1906.04721, eq. 11. Fold batch norms first.
    """
    pairs = _pairs(model)
    for _ in range(ROUNDS):
        for before, after in pairs:
            equalize_pair(model.get_submodule(before), model.get_submodule(after))
    return pairs


def _pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Layers with nothing between them that would change under a channel's scale."""
    found = []
    for node in trace(model).nodes:
        if node.op != "call_module" or not _plain(model.get_submodule(node.target)):
            continue
        at = node
        while _follows(at, model, HOMOGENEOUS):
            at = at.args[0]
        if (before := _follows(at, model, WEIGHTED)) and type(before[1]) is type(model.get_submodule(node.target)):
            found.append((before[0], node.target))
    return found


def _plain(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or isinstance(module, nn.Conv2d) and module.groups == 1


@torch.no_grad()
def equalize_pair(before: Any, after: Any) -> None:
    """Scale output channels of `before` by 1/s and input channels of `after` by s, s = sqrt(r1 r2) / r2.

    r1 and r2 are the largest magnitudes of a channel's weights in either layer; a channel that is zero in one stays.
    """
    first, second = before.weight, after.weight
    outgoing = first.flatten(1).abs().amax(1)
    incoming = second.transpose(0, 1).flatten(1).abs().amax(1)
    alive = (outgoing > 0) & (incoming > 0)
    factor = torch.where(alive, (outgoing * incoming).sqrt() / incoming.clamp_min(1e-30), 1.0)
    first.div_(_along(factor, first, 0))
    second.mul_(_along(factor, second, 1))
    if before.bias is not None:
        before.bias.div_(factor)


def _along(factor: Tensor, weight: Tensor, dimension: int) -> Tensor:
    return factor.view([-1 if d == dimension else 1 for d in range(weight.ndim)])
