"""Heads and feed-forward neurons of a decoder: gated neurons, and heads that share keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from compression.errors import UserError
from compression.methods.prune.structure.encoder import EncoderUnits, level_units
from compression.methods.prune.structure.importance import GroupMember, WeightGroup
from compression.methods.prune.structure.plan import PruningUnit
from compression.nn import transformer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from compression.methods.prune.structure.plan import Location
    from compression.nn.inputs import Inputs


class DecoderUnits(EncoderUnits):
    """The heads and neurons of a decoder that can be removed, as `parts` says.

    A head of a plan is a key with its value and all queries that share it; a neuron goes with its gate. The hidden
    dimensions stay, for the position embeddings and the tied output layer are as wide.
    """

    def __init__(self, model: nn.Module, example: Inputs, parts: tuple[str, ...]):
        super().__init__(model, example, parts)
        name = type(model).__name__
        if "hidden" in parts:
            raise UserError(f"The hidden dimensions of a {name} stay; take parts=heads, parts=ffn, or both.")
        if "heads" in parts and not transformer.architecture(model).states_head_size:
            raise UserError(
                f"The config of a {name} takes the size of a head to be hidden size / heads, so heads cannot go alone; "
                "take parts=ffn."
            )

    def scores(self, importance: Callable[[Any], Tensor | None]) -> dict[str, dict[Location, Tensor]]:
        """The scores of each part by location, over all weights that a head or neuron has."""
        scores: dict[str, dict[Location, Tensor]] = {part: {} for part in self.parts}
        for index, block in enumerate(transformer.blocks(self.model)):
            groups = {"heads": head_group(block), "ffn": neuron_group(block)}
            for part in self.parts:
                found = importance(groups[part])
                if found is None:
                    raise UserError("criterion=bn_scale is made for networks with batch norms; take l1, say.")
                scores[part][index, part] = found
        return scores

    def head_units(self, scores: Mapping[Location, Tensor]) -> list[PruningUnit]:
        """Heads of every layer at once, in steps that leave a number which divides the hidden size.

        transformers builds no Llama of others.
        """
        block, size = transformer.blocks(self.model)[0], transformer.hidden_size(self.model)
        shared = block.heads // block.head_groups
        units: list[PruningUnit] = []
        plan: dict[Location, list[int]] = {}
        for removed, unit in enumerate(level_units(scores, 1), 1):
            plan = {location: plan.get(location, []) + heads for location, heads in unit.plan.items()}
            if size % ((block.head_groups - removed) * shared) == 0:  # one is always left
                units.append(PruningUnit(plan, unit.rank))
                plan = {}
        return units


def head_group(block: transformer.Block) -> WeightGroup:
    """The rows of a key, its value and its queries, and the columns that read the queries' outputs."""
    per_key = block.heads // block.head_groups
    of_queries = rows_of(block.head_groups, per_key * block.head_size)
    of_keys = rows_of(block.head_groups, block.head_size)
    sides = [(block.query, False, of_queries), (block.output, True, of_queries)]
    sides += [(block.key, False, of_keys), (block.value, False, of_keys)]
    return WeightGroup(block.head_groups, [member(*side) for side in sides])


def neuron_group(block: transformer.Block) -> WeightGroup:
    """The rows of a neuron and of its gate, and the column that reads it."""
    entering: Sequence[nn.Module] = [block.up, *([block.gate] if block.gate is not None else [])]
    channels = rows_of(block.neurons, 1)
    sides = [(layer, False, channels) for layer in entering] + [(block.down, True, channels)]
    return WeightGroup(block.neurons, [member(*side) for side in sides])


def rows_of(channels: int, rows: int) -> Tensor:
    """The channel that each row belongs to, `(channels * rows,)`, for `rows` consecutive rows of a channel."""
    return torch.arange(channels).repeat_interleave(rows)


def member(layer: nn.Module, of_inputs: bool, channel: Tensor) -> GroupMember:
    """The weight of `layer`, whose rows (columns, if `of_inputs`) belong to the channels given."""
    return GroupMember(layer, of_inputs, torch.arange(len(channel)), channel, is_norm=False)
