"""What the channels of a network are worth, over all the layers that lose a channel together.

torch-pruning's dependency graph (Fang et al. 2023, arXiv:2301.12900) says which weights go together; the scores are
ours. Its own agree for l1, l2, lamp and bn_scale, as the tests hold; its fpgm measures distances between squared
weights, and its hessian keeps the gradient of the last example only (version 1.6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from compression.methods.prune.masks import scores
from compression.methods.prune.obd import fisher
from compression.training.context import Context

_OUT = (tp.prune_conv_out_channels, tp.prune_linear_out_channels, tp.prune_depthwise_conv_out_channels)
_IN = (tp.prune_conv_in_channels, tp.prune_linear_in_channels)
_NORM = (tp.prune_batchnorm_out_channels, tp.prune_layernorm_out_channels)


@dataclass(frozen=True)
class Member:
    """A weight that loses slices with a group: entry `index[i]` along `axis` goes with its channel `roots[i]`."""

    module: nn.Module
    axis: int
    index: Tensor
    roots: Tensor
    norm: bool  # the scale of a batch or layer norm

    def rows(self, tensor: Tensor) -> Tensor:
        """The slices of a tensor of the weight's shape, `(len(index), numbers in a slice)`."""
        taken = tensor.index_select(self.axis, self.index.to(tensor.device)).transpose(0, self.axis)
        return taken.reshape(len(self.index), -1)


def members(group: Any) -> Iterator[Member]:
    """The weights of a group of torch-pruning's that have a part for each of its channels."""
    for item in group:
        handler, module = item.dep.handler, item.dep.target.module
        if None in item.root_idxs or getattr(module, "weight", None) is None:
            continue
        if handler in (*_OUT, *_IN, *_NORM):
            index, roots = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
            yield Member(module, int(handler in _IN), index, roots, handler in _NORM)


Formula = Callable[[Tensor, Tensor], Tensor]  # rows of weights and of slopes, both (n, numbers) -> scores (n,)


@dataclass(frozen=True)
class Criterion:
    """How slices are scored and which of a group's weights have a say."""

    formula: Formula
    weights: bool = True  # those of convolutions and linear layers
    norms: bool = True  # the scales of norms
    slopes: str = ""  # what is known of the loss: its gradient or its curvature


def _squares(w: Tensor, g: Tensor) -> Tensor:
    return w.square().sum(1)


CRITERIA = {
    "l1": Criterion(lambda w, g: w.abs().sum(1)),  # Li et al. 2017, arXiv:1608.08710, over the group
    "l2": Criterion(_squares),
    "lamp": Criterion(_squares),  # Lee et al. 2021, arXiv:2010.07611, over channels
    "group": Criterion(_squares),  # Fang et al. 2023, section 3.3
    "bn_scale": Criterion(lambda w, g: w.abs().sum(1), weights=False),  # Liu et al. 2017, arXiv:1708.06519
    # He et al. 2019, arXiv:1811.00250, section 3: the others can stand in for the channel that is nearest to all
    "fpgm": Criterion(lambda w, g: torch.cdist(w, w).sum(1), norms=False),
    # Molchanov et al. 2019, arXiv:1906.10771, first order, with |g w| for its square
    "taylor": Criterion(lambda w, g: (w * g).abs().sum(1), norms=False, slopes="gradient"),
    # LeCun et al. 1990, eq. 5, with the diagonal of the Fisher matrix
    "hessian": Criterion(lambda w, g: (w.square() * g).sum(1) / 2, norms=False, slopes="curvature"),
    "random": Criterion(lambda w, g: torch.zeros(len(w))),
}


@dataclass(frozen=True)
class Importance:
    """`importance(group)`: a score for each of the group's channels, or None where the criterion has nothing to rank.

    The members' scores are averaged and divided by their mean over the group, so that groups can be compared.
    """

    criterion: str
    slopes: Mapping[nn.Module, Tensor]
    generator: torch.Generator

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        channels = len(group[0].idxs)
        if self.criterion == "random":
            return torch.rand(channels, generator=self.generator)
        found = list(self.parts(group))
        if not found:
            return None
        total = torch.zeros(channels)
        for part, member in found:
            total.index_add_(0, member.roots, part.float().cpu())
        return normalised(total / len(found), self.criterion)

    def parts(self, group: Any) -> Iterator[tuple[Tensor, Member]]:
        rule = CRITERIA[self.criterion]
        for member in members(group):
            if rule.norms if member.norm else rule.weights:
                weight: Any = member.module.weight
                slope = self.slopes[member.module] if rule.slopes else weight
                yield rule.formula(member.rows(weight), member.rows(slope)), member


def normalised(found: Tensor, criterion: str) -> Tensor:
    """Scores over their mean; for lamp each over the sum of those that are no smaller (Lee et al. 2021, eq. 2)."""
    if criterion != "lamp":
        return found / found.mean().clamp_min(torch.finfo(found.dtype).tiny)
    ranked, order = found.sort()
    left = ranked.flip(0).cumsum(0).flip(0)
    return torch.empty_like(found).index_copy_(0, order, ranked / left)


def importance(model: nn.Module, criterion: str, examples: int, context: Context) -> Importance:
    """The scores of `model` by `criterion`; slopes of the loss are taken on random training `examples`."""
    generator = torch.Generator().manual_seed(context.seed)
    return Importance(criterion, slopes(model, CRITERIA[criterion].slopes, examples, context), generator)


def slopes(model: nn.Module, kind: str, examples: int, context: Context) -> dict[nn.Module, Tensor]:
    """The gradient of the mean loss by each prunable weight, or its curvature (the empirical Fisher's diagonal)."""
    if not kind:
        return {}
    copied = scores.differentiable(model, context, batch_statistics=False)
    weights = scores.weights(copied)
    if kind == "gradient":
        parts = scores.losses(copied, context, examples)
        found = scores.add_up(scores.gradients(parts, list(weights.values())))
    else:
        count = min(examples, len(context.task.train))
        single = (scores.loss_of(copied, *batch, context) for batch in scores.batches(context, count, size=1))
        found = fisher(single, list(weights.values()), count)
    return {model.get_submodule(name): slope for name, slope in zip(weights, found, strict=True)}
