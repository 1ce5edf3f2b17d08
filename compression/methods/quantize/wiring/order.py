"""In which order a model runs its layers, and which batch norm takes what a layer gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from compression.nn.inputs import Inputs, forward
from compression.nn.layers import prunable_layers

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Order:
    """Names as one forward pass meets them: the layers with weights, the ReLUs with the layer that runs next.

    `norms` gives the batch norm that is fed by a layer and by nothing else.
    """

    layers: list[str] = field(default_factory=list)
    relus: dict[str, str] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, inputs: Inputs) -> Order:
        """The order in which `model` runs on the prepared `inputs`."""
        seen: list[tuple[str, nn.Module, Any, Any]] = []
        wanted = {**prunable_layers(model), **{n: m for n, m in model.named_modules() if isinstance(m, (*NORMS, nn.ReLU))}}
        hooks = [m.register_forward_hook(partial(_note, seen.append, n)) for n, m in wanted.items()]
        was, _ = model.training, model.eval()
        try:
            with torch.no_grad():
                forward(model, inputs)
        finally:
            for hook in hooks:
                hook.remove()
            model.train(was)
        return cls(*_read(seen))


def _note(keep: Callable[[Any], None], name: str, module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
    keep((name, module, given[0], output))


def _read(seen: list[tuple[str, nn.Module, Tensor, Tensor]]) -> tuple[list[str], dict[str, str], dict[str, str]]:
    layers: list[str] = []
    relus: dict[str, str] = {}
    norms: dict[str, str] = {}
    waiting: list[str] = []
    made: dict[int, str] = {}
    for name, module, given, output in seen:
        if isinstance(module, nn.ReLU):
            waiting.append(name)
        elif isinstance(module, NORMS):
            if id(given) in made:
                norms[made[id(given)]] = name
        else:
            layers.append(name)
            relus |= dict.fromkeys(waiting, name)
            waiting, made[id(output)] = [], name
    return layers, relus, norms
