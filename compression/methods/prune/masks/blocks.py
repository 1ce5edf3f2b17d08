"""Learned scores of blocks of weights: the masks they make during a training, and what is left of them after it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.methods.prune.masks.scores import set_also
from compression.nn import layers


@dataclass(frozen=True)
class Blocks:
    """A weight cut into blocks of `height` outputs by `width` inputs; the last ones of a row or column are smaller.

    A convolution's inputs are its input channels times the places of its kernel.
    """

    shape: torch.Size
    height: int
    width: int

    @classmethod
    def of(cls, layer: nn.Module, height: int, width: int) -> Blocks:
        """Blocks of at most the layer's own size."""
        shape = layers.weight(layer).shape
        return cls(shape, min(height, shape[0]), min(width, shape[1:].numel()))

    @property
    def grid(self) -> tuple[int, int]:
        """Blocks above and beside one another."""
        return math.ceil(self.shape[0] / self.height), math.ceil(self.shape[1:].numel() / self.width)

    def spread(self, values: Tensor) -> Tensor:
        """A value for each block `(blocks,)` as one for each weight, in the weight's shape."""
        down, across = self.grid
        repeated = values.view(down, 1, across, 1).expand(-1, self.height, -1, self.width)
        whole = repeated.reshape(down * self.height, across * self.width)
        return whole[: self.shape[0], : self.shape[1:].numel()].reshape(self.shape)

    def sums(self, weights: Tensor) -> Tensor:
        """The sum `(blocks,)` of values in the weight's shape over each block: the transpose of `spread`."""
        flat, (down, across) = weights.flatten(1), self.grid
        padding = (0, across * self.width - flat.shape[1], 0, down * self.height - flat.shape[0])
        padded = nn.functional.pad(flat, padding)
        return padded.view(down, self.height, across, self.width).sum((1, 3)).flatten()


class Scores(nn.Module):
    """A learned score for each block, and which blocks it keeps now. Several layers may share one.

    `sizes` `(blocks,)` are the weights that each score stands for, those pruned earlier left out; `total` counts all.
    """

    def __init__(self, sizes: Tensor, total: int, start: float = 0.0) -> None:
        super().__init__()
        self.total = total
        self.scores = nn.Parameter(torch.full(sizes.shape, start, device=sizes.device))
        self.register_buffer("sizes", sizes)
        self.register_buffer("keep", torch.ones_like(sizes, dtype=torch.bool))

    sizes: Tensor
    keep: Tensor

    def forward(self) -> Tensor:
        """The mask `(blocks,)`, whose gradient goes straight to the scores (Sanh et al. 2020, eq. 3)."""
        return self.keep + (self.scores - self.scores.detach())

    def excess(self, sparsity: float) -> float:
        """Weights still to prune, so that the share `sparsity` of all is gone."""
        return sparsity * self.total - (self.total - int(self.sizes.sum()))

    def kept(self) -> int:
        """Weights in the blocks that are kept."""
        return int(self.sizes[self.keep].sum())


class ScoredLayer(nn.Module):
    """A layer whose weight W is used as W' = W * mask, so that dL/dmask = dL/dW' * W, summed over a block."""

    def __init__(self, layer: nn.Module, scores: Scores, blocks: Blocks) -> None:
        super().__init__()
        self.layer, self.scores, self.blocks = layer, scores, blocks

    def forward(self, inputs: Tensor) -> Tensor:
        weight = cast(Tensor, self.layer.weight) * self.blocks.spread(self.scores())
        return functional_call(self.layer, {"weight": weight}, (inputs,))


Part = tuple[str, Blocks]  # a layer's name and the blocks of it that scores are for


def attach(model: nn.Module, groups: Sequence[Sequence[Part]], start: float = 0.0) -> list[Scores]:
    """Put every layer that `groups` names behind scores that start at `start`; the parts of a group share theirs."""
    made = []
    for parts in groups:
        found = {name: model.get_submodule(name) for name, _ in parts}
        live = [blocks.sums(left(found[name])) for name, blocks in parts]
        scores = Scores(torch.stack(live).sum(0).long(), sum(b.shape.numel() for _, b in parts), start)
        for name, blocks in parts:
            model.set_submodule(name, ScoredLayer(found[name], scores, blocks))
        made.append(scores)
    return made


def left(layer: nn.Module) -> Tensor:
    """Ones where no earlier mask has pruned the layer's weight."""
    mask = getattr(layer, "mask", None)
    return mask.to(torch.float32) if isinstance(mask, Tensor) else torch.ones_like(layers.weight(layer))


def detach(model: nn.Module) -> nn.Module:
    """Put the plain layers back, masked where their scores do not keep them."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ScoredLayer):
            set_also(module.layer, module.blocks.spread(module.scores.keep))
            model.set_submodule(name, module.layer)
    return model


def pruned_before(scored: Sequence[Scores]) -> float:
    """The share of all their weights that an earlier step has pruned."""
    return 1 - sum(int(s.sizes.sum()) for s in scored) / sum(s.total for s in scored)


def pruned_share(scored: Sequence[Scores]) -> float:
    """The share of all their weights that is gone now."""
    return 1 - sum(s.kept() for s in scored) / sum(s.total for s in scored)


def choose_globally(scored: Sequence[Scores], sparsity: float, per_weight: bool) -> None:
    """Keep the highest scores of all groups, so that the share `sparsity` of all weights is gone, to half a block.

    `per_weight` divides a score by the weights of its block, as it gathers the gradients of all of them: so blocks of
    several sizes compare.
    """
    sizes = torch.cat([s.sizes for s in scored])
    ranked = torch.cat([s.scores.detach() for s in scored]) / (sizes.clamp_min(1) if per_weight else 1)
    gone = lowest(ranked, sizes, sum(s.excess(sparsity) for s in scored))
    for scores, part in zip(scored, gone.split([len(s.sizes) for s in scored]), strict=True):
        scores.keep.copy_(~part)


def choose_locally(scored: Sequence[Scores], sparsity: float) -> None:
    """Keep the highest scores of each group, so that the share `sparsity` of its weights is gone.

    At least one block stays; what whole blocks cannot meet in one group is made up for in the next.
    """
    missing = 0.0
    for scores in scored:
        ranked = scores.scores.detach()
        scores.keep.copy_(~lowest(ranked, scores.sizes, missing + scores.excess(sparsity)))
        scores.keep[ranked.argmax()] = True
        missing += scores.excess(sparsity) - int(scores.sizes[~scores.keep].sum())


def lowest(ranked: Tensor, sizes: Tensor, count: float) -> Tensor:
    """A mask of the lowest entries of `ranked`, whose `sizes` add up to `count` as nearly as whole blocks can."""
    gone = torch.zeros_like(ranked, dtype=torch.bool)
    if (size := int(sizes[0])) and bool((sizes == size).all()):  # a selection is much faster than a sort
        number = min(len(sizes), max(0, round(count / size)))
        index = ranked.topk(number, largest=False, sorted=False).indices
    else:
        order = ranked.argsort(stable=True)
        in_order = sizes[order]
        index = order[in_order.cumsum(0) - in_order / 2 < count]
    gone[index] = True
    return gone
