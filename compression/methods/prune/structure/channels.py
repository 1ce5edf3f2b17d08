"""Channels of convolutions and linear layers, found with torch-pruning's dependency graph, tried, and removed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression.errors import UserError
from compression.methods.prune.structure.dependencies import (
    LAYERS,
    channels_together,
    dependency_groups,
    is_indivisible,
    names_of,
    output_channels,
    output_layers,
    reaches_output,
    remove_channels,
)
from compression.methods.prune.structure.plan import Location, PruningPlan, PruningUnit, rank_units
from compression.methods.prune.structure.trial import Trial
from compression.reporting.figures.runs import bars_by_layer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

    from compression.nn.inputs import Inputs
    from compression.training.context import RunLogger


class ChannelUnits:
    """The channels of a model that can be removed: all but its outputs, and those whose removal a trial refutes.

    `example` are inputs of the model, on its device, for tracing. A plan's locations are names of layers; `groups` has
    torch-pruning's group that starts from the layer. `untouched` are the layers that must keep their channels although
    they do not give the outputs. Raises UserError for a model whose forward pass cannot be followed.
    """

    def __init__(self, model: nn.Module, example: Inputs):
        self.model, self.example, self.names = model, example, names_of(model)
        found, lost = dependency_groups(model, example)
        self.outputs = {self.names[id(m)] for group in found if reaches_output(group) for m in output_layers(group)}
        inner = [group for group in found if not reaches_output(group)]
        self.trial = Trial(model, self.names, example)
        chosen = self.trial.select([group for group in inner if not is_indivisible(model, group)])
        self.groups: dict[str, Any] = {self.names[id(group[0].dep.target.module)]: group for group in chosen}
        cut = {module for group in chosen for module in output_layers(group)}
        kept = [*lost, *(module for group in inner for module in output_layers(group))]
        # A layer may be in a group that goes and in one that stays; one of a single channel has none to spare.
        self.untouched = [self.names[id(m)] for m in kept if m not in cut and output_channels(m) > 1]

    def ranked_units(
        self, importance: Callable[[Any], Tensor | None], is_global: bool, round_to: int
    ) -> list[PruningUnit]:
        """The channels in the order of removal; a group that the criterion cannot score keeps all of its own."""
        scores: dict[Location, Tensor] = {}
        for name, group in self.groups.items():
            if (group_scores := importance(group)) is not None:
                scores[name] = group_scores
        together: dict[Location, int] = {name: channels_together(self.groups[str(name)]) for name in scores}
        return rank_units(scores, is_global, round_to, together)

    def count(self, model: nn.Module) -> int:
        """Output channels of all layers of `model` but those that give its outputs."""
        return sum(row["channels"] for row in self.sizes(model) if row["layer"] not in self.outputs)

    def sizes(self, model: nn.Module) -> list[dict[str, Any]]:
        """Rows {layer, channels} with the output channels of each linear layer and convolution."""
        return [
            {"layer": name, "channels": output_channels(m)}
            for name, m in model.named_modules()
            if isinstance(m, LAYERS)
        ]

    def log_sizes(self, before: list[Any], model: nn.Module, record: RunLogger) -> None:
        """Log a figure of the channels that each layer kept; `before` is what `sizes` gave."""
        figure = bars_by_layer(before, self.sizes(model), "channels", "Channels by layer")
        record.figure("kept-channels", figure)

    def remove(self, model: nn.Module, plan: PruningPlan) -> None:
        """Remove the channels of `plan` from `model`, which is this one or a copy of it, in place.

        Raises UserError if this one would not answer without them as with nothing that reads them.
        """
        removal = [(self.groups[str(name)], channels) for name, channels in plan.items()]
        # Copies are cut in the search for a plan, for their cost alone; what is kept is tried once more with just these
        # channels, for the trials before drew random ones.
        if model is self.model and not self.trial.passes(removal):
            raise UserError(
                f"The channels that structured would remove from a {type(model).__name__} do not go together, though "
                "others do: take another sparsity, or scope."
            )
        remove_channels(model, self.names, removal)
