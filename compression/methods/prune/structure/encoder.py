"""Attention heads, feed-forward neurons and hidden dimensions of a transformer: as many from each of its layers."""

from __future__ import annotations

from typing import Any

import torch_pruning as tp
from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.prune.structure import cutting
from compression.methods.prune.structure.importance import Importance
from compression.methods.prune.structure.removal import Block, Cut, runs
from compression.nn import transformer
from compression.nn.inputs import Inputs
from compression.training.context import RunLogger

PARTS = ("heads", "ffn", "hidden")
Scores = dict[tuple[int, str], Tensor]  # (layer, part) -> a score for each head, neuron or dimension


class Encoder:
    """What of a transformer can go. A cut names (layer, part); hidden dimensions stand under layer 0 for all layers."""

    def __init__(self, model: nn.Module, example: Inputs, parts: tuple[str, ...]):
        self.model, self.example, self.parts = model, example, parts

    def blocks(self, importance: Importance, everywhere: bool, round_to: int) -> list[Block]:
        """What goes, in its order: the same number from every layer, the same share of each part.

        Heads and hidden dimensions that both go do so together, a head with as many dimensions as it is wide: the
        config takes the width of a head to be their quotient. UserError if `everywhere` asks for another order.
        """
        if everywhere:
            raise UserError("scope=global would leave a transformer's layers with different widths; use scope=local.")
        scores, size = self.scores(importance), transformer.blocks(self.model)[0].head_size
        together = {"heads", "hidden"} <= set(self.parts)
        steps = {"heads": 1, "ffn": round_to, "hidden": size if together else round_to}
        found = {part: level(scores[part], steps[part]) for part in self.parts}
        if together:
            found["hidden"] = coupled(found.pop("heads"), found["hidden"])
        return sorted((block for blocks in found.values() for block in blocks), key=lambda block: block.place)

    def scores(self, importance: Importance) -> dict[str, Scores]:
        """The scores of each part; a head's is the mean over its rows."""
        graph = tp.DependencyGraph().build_dependency(
            self.model.eval(), example_inputs=self.example, output_transform=lambda output: output.logits
        )
        found: dict[str, Scores] = {part: {} for part in PARTS}
        blocks = transformer.blocks(self.model)
        for layer, block in enumerate(blocks):
            rows = score(graph, importance, block.query)
            found["heads"][layer, "heads"] = rows.view(block.heads, -1).mean(1)
            found["ffn"][layer, "ffn"] = score(graph, importance, block.up)
        found["hidden"][0, "hidden"] = score(graph, importance, blocks[0].output)
        return found

    def count(self, model: nn.Module) -> int:
        """Rows of the heads, neurons and hidden dimensions of `model`, as far as they are to be cut."""
        blocks = transformer.blocks(model)
        rows = {"heads": sum(b.query.out_features for b in blocks), "ffn": sum(b.neurons for b in blocks)}
        return sum((rows | {"hidden": transformer.hidden_size(model)})[part] for part in self.parts)

    def sizes(self, model: nn.Module) -> list[cutting.Sizes]:
        """Heads, neurons and hidden dimensions of each layer."""
        return cutting.sizes(model)

    def show(self, before: list[Any], model: nn.Module, record: RunLogger) -> None:
        """Leave a table and a picture of what each layer kept."""
        cutting.show(before, model, record)

    def cut(self, model: nn.Module, cut: Cut) -> None:
        """Remove what `cut` names from `model`, a copy of this one or itself, in place."""
        blocks = transformer.blocks(model)
        for (layer, part), gone in cut.items():
            if part == "heads":
                transformer.cut_heads(model, layer, others(blocks[layer].heads, gone))
            elif part == "ffn":
                transformer.cut_ffn(model, layer, others(blocks[layer].neurons, gone))
            else:
                transformer.cut_hidden(model, others(transformer.hidden_size(model), gone))


def score(graph: Any, importance: Importance, root: nn.Linear) -> Tensor:
    found = importance(graph.get_pruning_group(root, tp.prune_linear_out_channels, list(range(root.out_features))))
    assert found is not None
    return found


def level(scores: Scores, step: int) -> list[Block]:
    """Blocks that take `step` of the least important from every layer."""
    orders = {where: list(runs(found.argsort(stable=True).tolist(), step)) for where, found in scores.items()}
    total = max(map(len, scores.values()))
    blocks, gone = [], 0
    for cut in zip(*orders.values(), strict=True):
        gone += len(cut[0])
        blocks.append(Block(dict(zip(orders, cut, strict=True)), gone / total))
    return blocks


def coupled(heads: list[Block], hidden: list[Block]) -> list[Block]:
    """A head of every layer and the dimensions beside it, as one block each."""
    if len(heads) != len(hidden):
        raise UserError("Heads were cut before, so heads and hidden cannot go together any more; cut one of them.")
    return [Block(one.cut | other.cut, one.place) for one, other in zip(heads, hidden, strict=True)]


def others(total: int, gone: list[int]) -> list[int]:
    return sorted(set(range(total)) - set(gone))
