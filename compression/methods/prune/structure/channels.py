"""Channels of convolutions and linear layers, found and removed with torch-pruning's dependency graph."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch_pruning as tp
from torch import nn

from compression.methods.prune.structure.importance import Importance
from compression.methods.prune.structure.removal import Block, Cut, ordered
from compression.nn import layers, transformer
from compression.nn.inputs import Inputs
from compression.reporting.figures.runs import bars_by_layer
from compression.training.context import RunLogger


class Channels:
    """The channels of a model that can go: all that the layer with the logits does not give."""

    def __init__(self, model: nn.Module, example: Inputs):
        self.model, self.example = model, example

    def groups(self) -> Iterator[tuple[str, Any]]:
        """The groups of channels that go together, by the name of the layer that a group starts from."""
        graph = dependencies(self.model, self.example)
        names = {module: name for name, module in self.model.named_modules()}
        for group in graph.get_all_groups(ignored_layers=[transformer.classifier(self.model)]):
            yield names[group[0].dep.target.module], group

    def blocks(self, importance: Importance, everywhere: bool, round_to: int) -> list[Block]:
        """The channels in the order in which they go."""
        scores = {name: importance(group) for name, group in self.groups()}
        return ordered({name: s for name, s in scores.items() if s is not None}, everywhere, round_to)

    def count(self, model: nn.Module) -> int:
        """Output channels of all layers of `model` but the one with the logits."""
        return sum(row["channels"] for row in self.sizes(model)) - transformer.classifier(model).out_features

    def sizes(self, model: nn.Module) -> list[dict[str, Any]]:
        """Output channels of each prunable layer."""
        return [
            {"layer": name, "channels": layers.weight(m).shape[0]} for name, m in layers.prunable_layers(model).items()
        ]

    def show(self, before: list[Any], model: nn.Module, record: RunLogger) -> None:
        """Leave a picture of what each layer kept."""
        picture = bars_by_layer(before, self.sizes(model), "channels", "Channels by layer")
        record.figure("kept-channels", picture)

    def cut(self, model: nn.Module, cut: Cut) -> None:
        """Remove channels from `model`, a copy of this one or itself, in place."""
        graph = dependencies(model, self.example)
        for name, channels in cut.items():
            root = model.get_submodule(name)
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()


def dependencies(model: nn.Module, example: Inputs) -> Any:
    return tp.DependencyGraph().build_dependency(model.eval(), example_inputs=example)
