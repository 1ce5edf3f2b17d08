"""Attention heads, feed-forward neurons and hidden dimensions of a transformer, removed alike from all layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch_pruning as tp

from compression.errors import UserError
from compression.methods.prune.structure.dependencies import dependency_graph
from compression.methods.prune.structure.layer_sizes import LayerSize, layer_sizes, log_layer_sizes
from compression.methods.prune.structure.plan import Location, PruningPlan, PruningUnit, split_into_runs
from compression.nn import transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from compression.nn.inputs import Inputs
    from compression.training.context import RunLogger

PARTS = ("heads", "ffn", "hidden")


class EncoderUnits:
    """The heads, neurons and hidden dimensions of a transformer that can be removed, as `parts` says.

    A plan's locations are (layer, "heads"), (layer, "ffn") and (0, "hidden"), the hidden dimensions of all layers.
    """

    untouched: Sequence[str] = ()  # no layer that could be cut has to keep its units

    def __init__(self, model: nn.Module, example: Inputs, parts: tuple[str, ...]):
        self.model, self.example, self.parts = model, example, parts

    def ranked_units(
        self, importance: Callable[[Any], Tensor | None], is_global: bool, round_to: int
    ) -> list[PruningUnit]:
        """The units in the order of removal: each takes the same number from every layer.

        Heads and hidden dimensions that are both removed go together, a head of every layer with as many dimensions as
        it is wide: the config takes the width of a head to be their quotient.

        Raises UserError if `is_global` asks for another order, or where heads and dimensions do not match any more.
        """
        if is_global:
            raise UserError("scope=global would leave a transformer's layers with different widths; use scope=local.")
        scores, head_size = self.scores(importance), transformer.blocks(self.model)[0].head_size
        is_joint = {"heads", "hidden"} <= set(self.parts)
        steps = {"ffn": round_to, "hidden": head_size if is_joint else round_to}
        units = {part: level_units(scores[part], steps[part]) for part in self.parts if part != "heads"}
        if "heads" in self.parts:
            units["heads"] = self.head_units(scores["heads"])
        if is_joint:
            heads, hidden = units.pop("heads"), units["hidden"]
            if len(heads) != len(hidden):
                raise UserError(
                    "Heads were cut before, so heads and hidden cannot go together any more; cut one of them."
                )
            # Ranked by the heads: as many steps of both, so a head's width stays hidden size / heads all the way.
            pairs = zip(heads, hidden, strict=True)
            units["hidden"] = [PruningUnit(head.plan | other.plan, head.rank) for head, other in pairs]
        return sorted((unit for of_part in units.values() for unit in of_part), key=lambda unit: unit.rank)

    def head_units(self, scores: Mapping[Location, Tensor]) -> list[PruningUnit]:
        """A head of every layer at a time."""
        return level_units(scores, 1)

    def scores(self, importance: Callable[[Any], Tensor | None]) -> dict[str, dict[Location, Tensor]]:
        """The scores of each part by location; a head's score is the mean over its rows."""
        graph = dependency_graph(self.model, self.example)

        def output_scores(layer: nn.Linear) -> Tensor:
            every_output = list(range(layer.out_features))
            scores = importance(graph.get_pruning_group(layer, tp.prune_linear_out_channels, every_output))
            assert scores is not None
            return scores

        blocks = transformer.blocks(self.model)
        scores: dict[str, dict[Location, Tensor]] = {part: {} for part in PARTS}
        for index, block in enumerate(blocks):
            # (heads * size,) -> (heads, size) -> (heads,)
            scores["heads"][index, "heads"] = output_scores(block.query).view(block.heads, -1).mean(1)
            scores["ffn"][index, "ffn"] = output_scores(block.up)
        scores["hidden"][0, "hidden"] = output_scores(blocks[0].output)
        return scores

    def count(self, model: nn.Module) -> int:
        """Rows of the heads, neurons and hidden dimensions of `model`, of those parts that are removed."""
        blocks = transformer.blocks(model)
        rows = {
            "heads": sum(block.query.out_features for block in blocks),
            "ffn": sum(block.neurons for block in blocks),
            "hidden": transformer.hidden_size(model),
        }
        return sum(rows[part] for part in self.parts)

    def sizes(self, model: nn.Module) -> list[LayerSize]:
        """Heads, neurons and hidden dimensions of each layer."""
        return layer_sizes(model)

    def log_sizes(self, before: list[Any], model: nn.Module, record: RunLogger) -> None:
        """Log a table and a figure of what each layer kept; `before` is what `sizes` gave."""
        log_layer_sizes(before, layer_sizes(model), record)

    def remove(self, model: nn.Module, plan: PruningPlan) -> None:
        """Remove the units of `plan` from `model`, which is this one or a copy of it, in place."""
        for index, block in enumerate(transformer.blocks(model)):
            if heads := plan.get((index, "heads")):
                transformer.cut_heads(model, index, all_but(heads, block.head_groups))
            if neurons := plan.get((index, "ffn")):
                transformer.cut_ffn(model, index, all_but(neurons, block.neurons))
        if dimensions := plan.get((0, "hidden")):
            transformer.cut_hidden(model, all_but(dimensions, transformer.hidden_size(model)))


def level_units(scores: Mapping[Location, Tensor], step: int) -> list[PruningUnit]:
    """Units that take about `step` of the least important channels from every location at once."""
    runs = {location: list(split_into_runs(s.argsort(stable=True).tolist(), step)) for location, s in scores.items()}
    total = max(map(len, scores.values()))
    units, removed = [], 0
    for together in zip(*runs.values(), strict=True):
        removed += len(together[0])
        units.append(PruningUnit(dict(zip(runs, together, strict=True)), removed / total))
    return units


def all_but(removed: list[int], total: int) -> list[int]:
    """The indices below `total` that are not in `removed`."""
    return sorted(set(range(total)) - set(removed))
