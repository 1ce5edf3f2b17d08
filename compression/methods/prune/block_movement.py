"""Block movement pruning: movement pruning of whole blocks, so that the pruned model is small and fast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.methods.prune.masks.block_scores import BlockGrid, GriddedLayer
from compression.methods.prune.masks.score_based import ScoreBasedPruning
from compression.methods.prune.structure.empty_units import remove_empty_units
from compression.methods.prune.structure.layer_sizes import layer_sizes, log_layer_sizes
from compression.nn import layers, transformer
from compression.params import param

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context


@dataclass(frozen=True)
class BlockMovement(ScoreBasedPruning):
    """Prune blocks of weights by learned scores, then cut empty heads and neurons.  Lagunas et al. 2021,
    arXiv:2109.04838.

    The defaults are the paper's hybrid: blocks in the attention, whole neurons (a row of one weight and the column of
    the next) in the feed-forward part. Blocks at the edge of a layer that they do not divide are smaller. On models
    other than encoders all layers have blocks, and zeros stay as masks. The sparsity counts what is cut.
    """

    block_rows: int = param(4, "outputs in a block", interval="[1, inf)", search=(1, 32), log=True)
    block_columns: int = param(4, "inputs in a block", interval="[1, inf)", search=(1, 32), log=True)
    attention: str = param("blocks", "units to prune in a transformer's attention", choices=("blocks", "heads"))
    ffn: str = param("neurons", "units to prune in its feed-forward part", choices=("blocks", "neurons"))

    def groups(self, model: nn.Module) -> list[list[GriddedLayer]]:
        """Heads and neurons, over the layers that each spans, then the blocks of every other layer."""
        units = list(self.unit_groups(model)) if transformer.is_encoder(model) else []
        in_units = {name for group in units for name, _ in group}
        others = {name: layer for name, layer in layers.prunable_layers(model).items() if name not in in_units}
        return units + [
            [(name, BlockGrid.of_layer(layer, self.block_rows, self.block_columns))] for name, layer in others.items()
        ]

    def unit_groups(self, model: nn.Module) -> list[list[GriddedLayer]]:
        """Heads and neurons: rows of the weights before, columns of the one after, under one score."""
        names = {id(module): name for name, module in model.named_modules()}

        def rows(layer: nn.Linear, count: int) -> GriddedLayer:
            # `count` rows over all inputs
            return names[id(layer)], BlockGrid.of_layer(layer, count, layer.in_features)

        def columns(layer: nn.Linear, count: int) -> GriddedLayer:
            # `count` columns over all outputs
            return names[id(layer)], BlockGrid.of_layer(layer, layer.out_features, count)

        groups = []
        for block in transformer.blocks(model):
            if self.attention == "heads":
                projections = [rows(layer, block.head_size) for layer in (block.query, block.key, block.value)]
                groups.append([*projections, columns(block.output, block.head_size)])
            if self.ffn == "neurons":
                groups.append([rows(block.up, 1), columns(block.down, 1)])
        return groups

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Prune by masks, then remove a transformer's heads and neurons that are empty."""
        # Decoders have gates and shared keys, which `remove_empty_units` does not know.
        if not transformer.is_encoder(model):
            context.record.warn("Only an encoder's empty parts are cut out: here zeros stay, as masks.")
            return super().apply(model, context)
        before = layer_sizes(model)
        model = remove_empty_units(super().apply(model, context))
        log_layer_sizes(before, layer_sizes(model), context.record)
        return model
