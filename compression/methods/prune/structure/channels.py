"""Channels of convolutions and linear layers, found and removed with torch-pruning's dependency graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch_pruning as tp

from compression.methods.prune.structure.plan import Location, PruningPlan, PruningUnit, rank_units
from compression.nn import layers, transformer
from compression.reporting.figures.runs import bars_by_layer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor, nn

    from compression.methods.prune.structure.importance import Importance
    from compression.nn.inputs import Inputs
    from compression.training.context import RunLogger


class ChannelUnits:
    """The channels of a model that can be removed: all but the outputs of the layer that gives the logits.

    `example` are inputs of the model, on its device, for tracing. A plan's locations are names of layers.
    """

    def __init__(self, model: nn.Module, example: Inputs):
        self.model, self.example = model, example

    def groups(self) -> Iterator[tuple[str, Any]]:
        """The groups of channels that must be removed together, by the name of the layer that each starts from."""
        graph = dependency_graph(self.model, self.example)
        names = {module: name for name, module in self.model.named_modules()}
        for group in graph.get_all_groups(ignored_layers=[transformer.classifier(self.model)]):
            yield names[group[0].dep.target.module], group

    def ranked_units(self, importance: Importance, is_global: bool, round_to: int) -> list[PruningUnit]:
        """The channels in the order of removal; a group that the criterion cannot score keeps all of its own."""
        scores: dict[Location, Tensor] = {}
        for name, group in self.groups():
            if (group_scores := importance(group)) is not None:
                scores[name] = group_scores
        return rank_units(scores, is_global, round_to)

    def count(self, model: nn.Module) -> int:
        """Output channels of all layers of `model` but the one with the logits."""
        channels = sum(layers.weight(module).shape[0] for module in layers.prunable_layers(model).values())
        return channels - transformer.classifier(model).out_features

    def sizes(self, model: nn.Module) -> list[dict[str, Any]]:
        """Rows {layer, channels} with the output channels of each prunable layer."""
        return [
            {"layer": name, "channels": layers.weight(m).shape[0]} for name, m in layers.prunable_layers(model).items()
        ]

    def log_sizes(self, before: list[Any], model: nn.Module, record: RunLogger) -> None:
        """Log a figure of the channels that each layer kept; `before` is what `sizes` gave."""
        figure = bars_by_layer(before, self.sizes(model), "channels", "Channels by layer")
        record.figure("kept-channels", figure)

    def remove(self, model: nn.Module, plan: PruningPlan) -> None:
        """Remove the channels of `plan` from `model`, which is this one or a copy of it, in place."""
        graph = dependency_graph(model, self.example)
        for name, channels in plan.items():
            root = model.get_submodule(str(name))
            graph.get_pruning_group(root, graph.get_pruner_of_module(root).prune_out_channels, channels).prune()


def dependency_graph(model: nn.Module, example: Inputs) -> Any:
    """torch-pruning's graph of the layers whose channels depend on one another."""
    return tp.DependencyGraph().build_dependency(model.eval(), example_inputs=example)
