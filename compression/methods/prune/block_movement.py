"""Block movement pruning: movement pruning of whole blocks, so that what is left is small and fast."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.methods.prune.masks.blocks import Blocks, Part
from compression.methods.prune.movement import Learned
from compression.methods.prune.structure import cutting
from compression.nn import layers, transformer
from compression.params import param
from compression.training.context import Context


@dataclass(frozen=True)
class BlockMovement(Learned):
    """Prune blocks of weights by learned scores, then cut empty heads and neurons.  Lagunas et al. 2021,
    arXiv:2109.04838.

    The defaults are the paper's hybrid: blocks in the attention, whole neurons (a row of one weight and the column of
    the next) in the feed-forward part. Blocks at the edge of a layer that they do not divide are smaller. On models
    without attention all layers have blocks, and zeros stay as masks. The sparsity counts what is cut.
    """

    block_rows: int = param(4, "outputs in a block", interval="[1, inf)", search=(1, 32), log=True)
    block_columns: int = param(4, "inputs in a block", interval="[1, inf)", search=(1, 32), log=True)
    attention: str = param("blocks", "what goes in the attention of a transformer", choices=("blocks", "heads"))
    ffn: str = param("neurons", "what goes in its feed-forward part", choices=("blocks", "neurons"))

    def groups(self, model: nn.Module) -> list[list[Part]]:
        joint = list(self.joint(model)) if transformer.is_transformer(model) else []
        taken = {name for parts in joint for name, _ in parts}
        alone = {name: layer for name, layer in layers.prunable_layers(model).items() if name not in taken}
        return joint + [[(n, Blocks.of(m, self.block_rows, self.block_columns))] for n, m in alone.items()]

    def joint(self, model: nn.Module) -> list[list[Part]]:
        """Heads and neurons: rows of the weights before, columns of the one after, under one score."""
        names = {id(module): name for name, module in model.named_modules()}

        def rows(layer: nn.Linear, count: int) -> Part:
            return names[id(layer)], Blocks.of(layer, count, layer.in_features)

        def columns(layer: nn.Linear, count: int) -> Part:
            return names[id(layer)], Blocks.of(layer, layer.out_features, count)

        groups = []
        for block in transformer.blocks(model):
            if self.attention == "heads":
                inner = [rows(layer, block.head_size) for layer in (block.query, block.key, block.value)]
                groups.append([*inner, columns(block.output, block.head_size)])
            if self.ffn == "neurons":
                groups.append([rows(block.up, 1), columns(block.down, 1)])
        return groups

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        if not transformer.is_transformer(model):
            context.record.warn("Only a transformer's empty parts are cut out: here zeros stay, as masks.")
            return super().apply(model, context)
        before = cutting.sizes(model)
        model = cutting.cut_empty(super().apply(model, context))
        cutting.show(before, model, context.record)
        return model
