"""transformers' `Conv1D`, the linear layer of GPT-2 with its weight the other way round, as `nn.Linear` and back.

All methods know `nn.Linear`. A stored model has its weights as transformers reads them.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from torch import nn

from compression.nn.graph import replace_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

MARK = "was_conv1d"  # set on the linear layers that `linearize` made


def linearize(model: nn.Module) -> nn.Module:
    """Replace every `Conv1D` of a transformers model by an `nn.Linear` that computes the same, in place."""
    from transformers.pytorch_utils import Conv1D

    for name, layer in [(n, m) for n, m in model.named_modules() if type(m) is Conv1D]:
        replace_module(model, name, _linear(cast("Any", layer)))
    return model


def _linear(layer: Any) -> nn.Linear:
    inputs, outputs = layer.weight.shape
    linear = nn.Linear(inputs, outputs, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().t().contiguous(), requires_grad=layer.weight.requires_grad)
    linear.bias = layer.bias
    setattr(linear, MARK, True)
    return linear.train(layer.training)


def linearized(model: nn.Module) -> list[str]:
    """Names of the layers of a newly built model that `linearize` made."""
    return [name for name, module in model.named_modules() if hasattr(module, MARK)]


@contextlib.contextmanager
def as_stored(model: nn.Module, names: Sequence[str]) -> Iterator[None]:
    """Have the weights of the layers `names` the other way round within the block, as transformers has them.

    Layers that compression removed or turned into another class, which transformers does not read, stay as they are.
    """
    modules = dict(model.named_modules())
    layers = [layer for name in names if type(layer := modules.get(name)) is nn.Linear]
    for layer in layers:
        layer.weight.data = layer.weight.data.t().contiguous()
    try:
        yield
    finally:
        for layer in layers:
            layer.weight.data = layer.weight.data.t().contiguous()
