"""Pruning after training, layer by layer, each on the inputs that the pruned layers before it give."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from compression import params
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.prune.masks import amounts, scores
from compression.nn import layers
from compression.nn.inputs import Inputs, forward
from compression.params import param
from compression.training.context import Context, RunLogger


@dataclass(frozen=True)
class Layerwise(Method):
    """What the pruners that look at a layer's inputs share.

    A convolution is taken as the linear layer over the patches it sees. Each layer loses the same share.
    """

    family: ClassVar[str] = "prune"

    sparsity: float = param(0.5, "share of each layer's weights to prune", interval="[0, 1)", search=(0.3, 0.8))
    pattern: str = param("", "n:m, to keep n of every m consecutive inputs, as 2:4; the sparsity is then 1 - n/m")
    examples: int = param(128, "training examples whose activations are looked at", interval="[1, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kept_of and self.sparsity not in (params.fields(type(self))["sparsity"].default, self.share):
            raise UserError(f"pattern={self.pattern} prunes {self.share:.0%}: leave sparsity={self.sparsity:g} out.")

    def inactive(self) -> frozenset[str]:
        return super().inactive() | ({"sparsity"} if self.pattern else set())

    @property
    def kept_of(self) -> tuple[int, int] | None:
        """n and m of the pattern."""
        if not self.pattern:
            return None
        kept, colon, of = self.pattern.partition(":")
        if not (colon and kept.isdecimal() and of.isdecimal() and 0 < int(kept) < int(of)):
            raise UserError(f"pattern={self.pattern!r} is no pattern; it takes n:m with 0 < n < m, as 2:4.")
        return int(kept), int(of)

    @property
    def share(self) -> float:
        """The share of a layer's weights that goes."""
        return 1 - self.kept_of[0] / self.kept_of[1] if self.kept_of else self.sparsity

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device).eval()
        seen, before = list(scores.batches(context, self.examples, size=32)), amounts.sparsity(model)
        for layer in self.fitting(model, context.record):
            moments = moments_of(model, layer, seen, self.moment)
            parts = [self.pruned(*part) for part in zip(matrices(layer), moments, earlier(layer), strict=True)]
            write(layer, [weight for weight, _ in parts], [keep for _, keep in parts])
        amounts.report(before, model, self.share, context.record)
        return model

    def fitting(self, model: nn.Module, record: RunLogger) -> list[nn.Module]:
        """The layers whose inputs divide into the pattern; UserError if there are none, the others are told."""
        found = layers.prunable_layers(model)
        if not self.kept_of:
            return list(found.values())
        fitting = {name: layer for name, layer in found.items() if divisible(layer, self.kept_of[1])}
        if not fitting:
            raise UserError(f"No layer's inputs divide by the m of pattern={self.pattern}, so nothing would be pruned.")
        if dense := [name for name in found if name not in fitting]:
            record.warn(f"Inputs that do not divide by {self.pattern}'s m stay dense: {', '.join(dense)}.")
        return list(fitting.values())

    def moment(self, rows: Tensor) -> Tensor:
        """What is to be known, summed over batches, of a layer's inputs `(groups, n, columns)`; first dim groups."""
        raise NotImplementedError

    def pruned(self, weight: Tensor, moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The new weight `(rows, columns)` and its mask, no true where `allowed` (an earlier mask) is false."""
        raise NotImplementedError


def matrices(layer: Any, values: Tensor | None = None) -> Tensor:
    """The layer's weight (or `values` of its shape) as `(groups, outputs / groups, columns)`.

    A convolution's columns run over the kernel's places and, within each, over the input channels, so that n of m
    neighbours are n of m channels, as sparse tensor cores want it.
    """
    values = layer.weight.detach() if values is None else values
    groups = getattr(layer, "groups", 1)
    spread = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    return spread.transpose(2, 3).flatten(2)


def restored(layer: Any, matrix: Tensor) -> Tensor:
    """The inverse of `matrices`: values in the shape of the layer's weight."""
    shape = layer.weight.shape
    groups, outputs, _ = matrix.shape
    return matrix.reshape(groups, outputs, -1, shape[1]).transpose(2, 3).reshape(shape)


def divisible(layer: Any, m: int) -> bool:
    """Whether each output's weights fall into whole groups of `m` consecutive inputs."""
    return layer.weight.shape[1] % m == 0


def earlier(layer: Any) -> Tensor:
    """The mask the layer has already, in the shape of `matrices`; all true if it has none."""
    mask = getattr(layer, "mask", None)
    return matrices(layer, mask if isinstance(mask, Tensor) else torch.ones_like(layer.weight, dtype=torch.bool))


@torch.no_grad()
def write(layer: Any, weights: Sequence[Tensor], keeps: Sequence[Tensor]) -> None:
    layer.weight.copy_(restored(layer, torch.stack(list(weights))))
    layers.set_mask(layer, restored(layer, torch.stack(list(keeps))))


@torch.no_grad()
def moments_of(
    model: nn.Module, layer: nn.Module, seen: Sequence[tuple[Inputs, Tensor]], moment: Callable[[Tensor], Tensor]
) -> Tensor:
    """The sum over the batches of `moment(rows)`, of the inputs that `layer` gets in `model`."""
    total: Tensor | None = None
    there: Tensor | None = None

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        nonlocal total
        found = moment(rows_of(module, given[0], there))
        total = found if total is None else total + found

    hook = layer.register_forward_pre_hook(look)
    try:
        for inputs, _ in seen:
            there = inputs.get("attention_mask") if isinstance(inputs, dict) else None
            forward(model, inputs)
    finally:
        hook.remove()
    if total is None:
        raise UserError(f"The model never uses its layer {layer}, so nothing is known of its inputs; take magnitude.")
    return total


def rows_of(layer: nn.Module, given: Tensor, there: Tensor | None) -> Tensor:
    """What the layer multiplies its weights with, `(groups, n, columns)`, columns as in `matrices`.

    `there` `(batch, length)` says which places of a text are no padding: the others are left out.
    """
    if isinstance(layer, nn.Linear):
        if there is not None and given.shape[:-1] == there.shape:
            given = given[there.bool()]
        return given.flatten(0, -2).unsqueeze(0)
    return patches(cast(nn.Conv2d, layer), given)


def patches(layer: Any, images: Tensor) -> Tensor:
    """What a convolution (of 1, 2 or 3 dimensions) sees at each place: `(groups, batch * places, columns)`.

    A depthwise convolution with one-hot kernels picks them out, whatever stride, padding and dilation are.
    """
    channels, size = layer.in_channels, math.prod(layer.kernel_size)
    arguments = {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    pick = type(layer)(channels, channels * size, groups=channels, bias=False, **arguments).to(images)
    one_hot = torch.eye(size, device=images.device, dtype=images.dtype)
    pick.weight.data = one_hot.view(size, 1, *layer.kernel_size).repeat(channels, *[1] * (images.ndim - 1))
    picked = pick(images).flatten(2).unflatten(1, (layer.groups, channels // layer.groups, size))
    return picked.permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)


def least(saliency: Tensor, counts: Sequence[int]) -> Tensor:
    """A mask, true at the `counts[i]` smallest entries of row i of `saliency` `(rows, columns)`."""
    ranks = saliency.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < torch.tensor(counts, device=saliency.device)[:, None]


def least_of_each(saliency: Tensor, kept: int, of: int) -> Tensor:
    """A mask, true at the `of - kept` smallest of every `of` consecutive entries of a row."""
    groups = saliency.reshape(-1, of)
    return least(groups, [of - kept] * len(groups)).view_as(saliency)
