"""The order in which a model runs its layers, from one recorded forward pass."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import nn

from compression.methods.quantize.graph.tracing import BATCH_NORMS
from compression.nn.hooks import Call, record_calls
from compression.nn.inputs import Inputs, forward
from compression.nn.layers import prunable_layers

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ExecutionTrace:
    """Names of modules in the order of one forward pass."""

    layers: list[str] = field(default_factory=list)  # linear layers and convolutions, once for each call
    layer_after_relu: dict[str, str] = field(default_factory=dict)  # ReLU -> the layer that runs next
    norm_after_layer: dict[str, str] = field(default_factory=dict)  # layer -> the batch norm that takes its output

    @classmethod
    def record(cls, model: nn.Module, inputs: Inputs) -> ExecutionTrace:
        """Run `model` in eval mode on the prepared `inputs`, and restore its mode afterwards."""
        norms_and_relus = {n: m for n, m in model.named_modules() if isinstance(m, (*BATCH_NORMS, nn.ReLU))}
        was_training, _ = model.training, model.eval()
        try:
            with torch.no_grad(), record_calls({**prunable_layers(model), **norms_and_relus}) as calls:
                forward(model, inputs)
        finally:
            model.train(was_training)
        return cls._from_calls(calls)

    @classmethod
    def _from_calls(cls, calls: Sequence[Call]) -> ExecutionTrace:
        trace = cls()
        relus: list[str] = []  # since the last layer
        producers: dict[int, str] = {}  # identity of an output -> its layer; `calls` keep the tensors alive
        for call in calls:
            if isinstance(call.module, nn.ReLU):
                relus.append(call.name)
            elif isinstance(call.module, BATCH_NORMS):
                if (source := id(call.inputs[0])) in producers:
                    trace.norm_after_layer[producers[source]] = call.name
            else:
                trace.layers.append(call.name)
                trace.layer_after_relu.update(dict.fromkeys(relus, call.name))
                producers[id(call.output)] = call.name
                relus = []
        return trace
