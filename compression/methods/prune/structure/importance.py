"""The importance of channels, over the weights of all layers that lose a channel together.

torch-pruning's dependency graph (Fang et al. 2023, arXiv:2301.12900) says which weights go together; the scores are
computed here. Those of torch-pruning agree for l1, l2, lamp and bn_scale, as the tests check; its fpgm measures
distances between squared weights, and its hessian keeps the gradient of the last example only (version 1.6.1).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from compression.methods.prune.masks.example_loss import batch_losses, differentiable_copy, single_losses
from compression.methods.prune.masks.scores import prunable_weights
from compression.methods.prune.structure.dependencies import INPUTS, OUTPUTS, channel_rows
from compression.nn import layers
from compression.nn.gradients import empirical_fisher, loss_gradients, sum_tensors

if TYPE_CHECKING:
    from compression.training.context import Context

_NORMS = (tp.prune_batchnorm_out_channels, tp.prune_layernorm_out_channels)


@dataclass(frozen=True)
class GroupMember:
    """A weight that loses slices with a group: that of its channel `index[i]` belongs to the group's `channel[i]`.

    Of a flattened feature map, several slices of a linear layer belong to one channel.
    """

    module: nn.Module
    of_inputs: bool  # slices of input channels, not of output channels
    index: Tensor
    channel: Tensor
    is_norm: bool  # the scale of a batch or layer norm

    def slices(self, tensor: Tensor) -> Tensor:
        """The slices of a tensor of the weight's shape, `(len(index), numbers in a slice)`."""
        return channel_rows(self.module, tensor, self.of_inputs).index_select(0, self.index.to(tensor.device))


@dataclass(frozen=True)
class WeightGroup:
    """The weights that lose slices together, where torch-pruning's graph is not asked: those of a decoder's part."""

    channels: int
    members: Sequence[GroupMember]


def group_members(group: Any) -> Iterator[GroupMember]:
    """The weights that have a slice for each channel of a group: one of torch-pruning's graph, or a `WeightGroup`."""
    if isinstance(group, WeightGroup):
        yield from group.members
        return
    for item in group:
        handler, module = item.dep.handler, item.dep.target.module
        if None in item.root_idxs or getattr(module, "weight", None) is None:
            continue
        if handler in (*OUTPUTS, *INPUTS, *_NORMS):
            index, channel = torch.tensor(item.idxs), torch.tensor(item.root_idxs)
            yield GroupMember(module, handler in INPUTS, index, channel, handler in _NORMS)


Formula = Callable[[Tensor, Tensor], Tensor]  # slices of a weight and of its gradients, (n, numbers) -> scores (n,)


@dataclass(frozen=True)
class Criterion:
    """How slices are scored, and which of a group's weights count."""

    formula: Formula
    uses_weights: bool = True  # those of convolutions and linear layers
    uses_norms: bool = True  # the scales of norms
    gradients: str = ""  # "mean": gradient of the mean loss; "squared": the mean of squared per-example gradients

    def scored_members(self, group: Any) -> Iterator[GroupMember]:
        """Yield the members of a group that count; it is one of torch-pruning's, or a `WeightGroup`."""
        for member in group_members(group):
            has_gradients = not self.gradients or isinstance(member.module, layers.PRUNABLE)
            if has_gradients and (self.uses_norms if member.is_norm else self.uses_weights):
                yield member


def _square_sums(w: Tensor, _g: Tensor) -> Tensor:
    return w.square().sum(1)


def _absolute_sums(w: Tensor, _g: Tensor) -> Tensor:
    return w.abs().sum(1)


CRITERIA = {
    "l1": Criterion(_absolute_sums),  # Li et al. 2017, arXiv:1608.08710, over the group
    "l2": Criterion(_square_sums),
    "lamp": Criterion(_square_sums),  # Lee et al. 2021, arXiv:2010.07611, over channels
    "group": Criterion(_square_sums),  # Fang et al. 2023, section 3.3
    "bn_scale": Criterion(_absolute_sums, uses_weights=False),  # Liu et al. 2017, arXiv:1708.06519
    # He et al. 2019, arXiv:1811.00250, section 3: the others can replace the channel that is nearest to them all
    "fpgm": Criterion(lambda w, _g: torch.cdist(w, w).sum(1), uses_norms=False),
    # Molchanov et al. 2019, arXiv:1906.10771, first order, with |g w| for its square
    "taylor": Criterion(lambda w, g: (w * g).abs().sum(1), uses_norms=False, gradients="mean"),
    # LeCun et al. 1990, eq. 5, with the diagonal of the Fisher matrix
    "hessian": Criterion(lambda w, g: (w.square() * g).sum(1) / 2, uses_norms=False, gradients="squared"),
    "random": Criterion(lambda w, _g: torch.zeros(len(w))),
}


@dataclass(frozen=True)
class Importance:
    """`importance(group)`: a score for each of the group's channels, or None where the criterion has nothing to score.

    The members' scores are averaged and divided by their mean over the group, so that groups can be compared.
    """

    criterion: str
    gradients: Mapping[nn.Module, Tensor]
    generator: torch.Generator

    @torch.no_grad()
    def __call__(self, group: Any) -> Tensor | None:
        """Score the channels of a group, as `Criterion.scored_members` takes it, `(channels,)` on the CPU."""
        channels = count_channels(group)
        if self.criterion == "random":
            return torch.rand(channels, generator=self.generator)
        members = list(self.scored_members(group))
        if not members:
            return None
        total = torch.zeros(channels)
        for member, scores in members:
            total.index_add_(0, member.channel, scores.float().cpu())
        return normalise_scores(total / len(members), self.criterion)

    def scored_members(self, group: Any) -> Iterator[tuple[GroupMember, Tensor]]:
        """The group's members that count for the criterion, with the scores of their slices."""
        rule = CRITERIA[self.criterion]
        for member in rule.scored_members(group):
            weight: Any = member.module.weight
            gradients = self.gradients[member.module] if rule.gradients else weight
            yield member, rule.formula(member.slices(weight), member.slices(gradients))


def equal_scores(criterion: str, group: Any) -> Tensor | None:
    """Zero for each channel of `group`, or None where the criterion has nothing to score: needs no gradients."""
    is_scored = criterion == "random" or any(CRITERIA[criterion].scored_members(group))
    return torch.zeros(count_channels(group)) if is_scored else None


def count_channels(group: Any) -> int:
    """The number of channels of a group of torch-pruning's, or of a `WeightGroup`."""
    return group.channels if isinstance(group, WeightGroup) else len(group[0].idxs)


def normalise_scores(scores: Tensor, criterion: str) -> Tensor:
    """Scores over their mean; for lamp each over the sum of those that are no smaller (Lee et al. 2021, eq. 2)."""
    if criterion != "lamp":
        return scores / scores.mean().clamp_min(torch.finfo(scores.dtype).tiny)
    ranked, order = scores.sort()
    # sums[i] = ranked[i] + all that are larger
    sums = ranked.flip(0).cumsum(0).flip(0)
    return torch.empty_like(scores).index_copy_(0, order, ranked / sums)


def importance(model: nn.Module, criterion: str, examples: int, context: Context) -> Importance:
    """The importance of the model's channels by `criterion`, with gradients on random training `examples`."""
    generator = torch.Generator().manual_seed(context.seed)
    return Importance(
        criterion, gradient_statistics(model, CRITERIA[criterion].gradients, examples, context), generator
    )


def gradient_statistics(model: nn.Module, kind: str, examples: int, context: Context) -> dict[nn.Module, Tensor]:
    """The gradients of `kind` (see `Criterion`) of each prunable weight, in its shape; none if `kind` is empty."""
    if not kind:
        return {}
    copied = differentiable_copy(model, context, batch_statistics=False)
    weights = prunable_weights(copied)
    if kind == "mean":
        gradients = sum_tensors(loss_gradients(batch_losses(copied, context, examples), list(weights.values())))
    else:
        gradients = empirical_fisher(single_losses(copied, context, examples), list(weights.values()))
    return {model.get_submodule(name): g for name, g in zip(weights, gradients, strict=True)}
