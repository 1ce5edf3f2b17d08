"""Scores of blocks of weights that are learned in a training, and the masks they make during and after it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from compression.methods.prune.masks.scores import intersect_mask
from compression.nn import layers
from compression.nn.graph import replace_module

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class BlockGrid:
    """A weight divided into blocks of `height` outputs by `width` inputs, numbered row by row; edge blocks are smaller.

    A convolution's inputs are its input channels times the positions of its kernel.
    """

    shape: torch.Size  # of the weight
    height: int
    width: int

    @classmethod
    def of_layer(cls, layer: nn.Module, height: int, width: int) -> BlockGrid:
        """Divide the layer's weight, with blocks no larger than the weight itself."""
        shape = layers.weight(layer).shape
        return cls(shape, min(height, shape[0]), min(width, shape[1:].numel()))

    @property
    def blocks(self) -> tuple[int, int]:
        """The number of rows of blocks and of columns of blocks."""
        return math.ceil(self.shape[0] / self.height), math.ceil(self.shape[1:].numel() / self.width)

    def expand(self, values: Tensor) -> Tensor:
        """Repeat a value for each block, `(blocks,)`, for each of its weights; in the weight's shape."""
        rows, columns = self.blocks
        # A view (rows, height, columns, width) of stride 0; only `reshape` copies. Blocks at the edge are then cut to
        # the weight, since the grid is rounded up.
        repeated = values.view(rows, 1, columns, 1).expand(-1, self.height, -1, self.width)
        padded = repeated.reshape(rows * self.height, columns * self.width)
        return padded[: self.shape[0], : self.shape[1:].numel()].reshape(self.shape)

    def sum_blocks(self, values: Tensor) -> Tensor:
        """The sums `(blocks,)` of values in the weight's shape over each block: the transpose of `expand`."""
        flat, (rows, columns) = values.flatten(1), self.blocks
        # `pad` takes the last dimension first. Zeros add nothing, so blocks at the edge sum what there is of them.
        padding = (0, columns * self.width - flat.shape[1], 0, rows * self.height - flat.shape[0])
        padded = nn.functional.pad(flat, padding)
        # (rows, height, columns, width) -> (rows, columns)
        return padded.view(rows, self.height, columns, self.width).sum((1, 3)).flatten()


class BlockScores(nn.Module):
    """A learned score for each block of a group, and which blocks are kept at present.

    The weights of several layers may share one score: blocks of theirs that are kept or pruned together. `sizes`
    `(blocks,)` counts the weights that each score decides on, without those pruned by an earlier step; `total` counts
    all of them.
    """

    def __init__(self, sizes: Tensor, total: int, initial: float = 0.0) -> None:
        super().__init__()
        self.total = total
        self.scores = nn.Parameter(torch.full(sizes.shape, initial, device=sizes.device))
        self.register_buffer("sizes", sizes)
        self.register_buffer("keep", torch.ones_like(sizes, dtype=torch.bool))

    sizes: Tensor
    keep: Tensor

    def forward(self) -> Tensor:
        """The mask `(blocks,)` of zeros and ones, whose gradient goes straight to the scores (Sanh et al. 2020, eq. 3).

        A straight-through estimator: the difference added is zero, and its gradient by the scores is one.
        """
        return self.keep + (self.scores - self.scores.detach())

    def count_to_prune(self, sparsity: float) -> float:
        """The number of weights to prune for `sparsity`, beyond those that an earlier step has pruned."""
        return sparsity * self.total - (self.total - int(self.sizes.sum()))

    def count_kept(self) -> int:
        """The number of weights in the blocks that are kept."""
        return int(self.sizes[self.keep].sum())


class ScoredLayer(nn.Module):
    """A layer whose weight W is used as W' = W * mask.

    A score therefore has the gradient dL/dmask = dL/dW' * W, summed over the weights of its block.
    """

    def __init__(self, layer: nn.Module, scores: BlockScores, grid: BlockGrid) -> None:
        super().__init__()
        self.layer, self.scores, self.grid = layer, scores, grid

    def forward(self, input: Tensor) -> Tensor:
        """The layer's outputs with the masked weight."""
        # The weight stays whole underneath: the score of a pruned block still has a gradient, and it may come back.
        weight = cast("Tensor", self.layer.weight) * self.grid.expand(self.scores())
        outputs: Tensor = functional_call(self.layer, {"weight": weight}, (input,))
        return outputs


GriddedLayer = tuple[str, BlockGrid]  # a layer's name and its blocks


def attach_scores(
    model: nn.Module, groups: Sequence[Sequence[GriddedLayer]], initial: float = 0.0
) -> list[BlockScores]:
    """Wrap every layer of `groups` in a ScoredLayer, in place; one BlockScores for the layers of each group."""
    group_scores = []
    for group in groups:
        modules = {name: model.get_submodule(name) for name, _ in group}
        # A block all of whose weights an earlier step has pruned has size 0: to prune it again counts nothing.
        sizes = torch.stack([grid.sum_blocks(unpruned(modules[name])) for name, grid in group]).sum(0).long()
        scores = BlockScores(sizes, sum(grid.shape.numel() for _, grid in group), initial)
        for name, grid in group:
            replace_module(model, name, ScoredLayer(modules[name], scores, grid))
        group_scores.append(scores)
    return group_scores


def unpruned(layer: nn.Module) -> Tensor:
    """Ones where no earlier mask has pruned the layer's weight, else zeros; in the weight's shape."""
    mask = getattr(layer, "mask", None)
    return mask.to(torch.float32) if isinstance(mask, Tensor) else torch.ones_like(layers.weight(layer))


def detach_scores(model: nn.Module) -> nn.Module:
    """Replace every ScoredLayer by its plain layer, masked where the scores do not keep the blocks; in place."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ScoredLayer):
            intersect_mask(module.layer, module.grid.expand(module.scores.keep))
            replace_module(model, name, module.layer)
    return model


def earlier_sparsity(groups: Sequence[BlockScores]) -> float:
    """The share of the groups' weights that an earlier step has pruned."""
    return 1 - sum(int(s.sizes.sum()) for s in groups) / sum(s.total for s in groups)


def achieved_sparsity(groups: Sequence[BlockScores]) -> float:
    """The share of the groups' weights that is pruned at present."""
    return 1 - sum(s.count_kept() for s in groups) / sum(s.total for s in groups)


def select_globally(groups: Sequence[BlockScores], sparsity: float, per_weight: bool) -> None:
    """Keep the blocks with the highest scores of all groups; weights pruned meet `sparsity` to half a block.

    `per_weight` divides a score by the number of weights in its block, over which it has summed gradients, so that
    blocks of different sizes compare.
    """
    sizes = torch.cat([s.sizes for s in groups])
    # Single weights and a head of thousands are ranked together; `clamp_min` is for blocks that were pruned before.
    scores = torch.cat([s.scores.detach() for s in groups]) / (sizes.clamp_min(1) if per_weight else 1)
    pruned = lowest_blocks(scores, sizes, sum(s.count_to_prune(sparsity) for s in groups))
    for group, part in zip(groups, torch.split(pruned, [len(s.sizes) for s in groups]), strict=True):
        group.keep.copy_(~part)


def select_locally(groups: Sequence[BlockScores], sparsity: float) -> None:
    """Keep the blocks with the highest scores of each group, so that each loses the share `sparsity` of its weights.

    At least one block of a group stays; what whole blocks cannot meet in one group is carried over to the next.
    """
    # Carried over, so that the total is off by half a block at most, and not by as much in every group.
    missing = 0.0
    for group in groups:
        scores, count = group.scores.detach(), group.count_to_prune(sparsity)
        group.keep.copy_(~lowest_blocks(scores, group.sizes, missing + count))
        group.keep[scores.argmax()] = True
        missing += count - int(group.sizes[~group.keep].sum())


def lowest_blocks(scores: Tensor, sizes: Tensor, count: float) -> Tensor:
    """A mask `(blocks,)` of the lowest scores, whose `sizes` add up to `count` as nearly as whole blocks can."""
    lowest = torch.zeros_like(scores, dtype=torch.bool)
    if (size := int(sizes[0])) and bool((sizes == size).all()):  # a selection is much faster than a sort
        number = min(len(sizes), max(0, round(count / size)))
        index = scores.topk(number, largest=False, sorted=False).indices
    else:
        order = scores.argsort(stable=True)
        in_order = sizes[order]
        # A block goes if its middle lies below the count: then the sum is off by half of the last block at most.
        index = order[in_order.cumsum(0) - in_order / 2 < count]
    lowest[index] = True
    return lowest
