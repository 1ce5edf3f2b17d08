"""The base of pruners after training, layer by layer, each on the inputs that the pruned layers before it give."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar, cast

import torch
from torch import Tensor, nn

from compression import params
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.blockwise.blocks import block_names, find_blocks, short_example
from compression.methods.blockwise.checkpoint import BlockCheckpoints
from compression.methods.blockwise.walk import batch_size, walk
from compression.methods.prune.masks.example_loss import example_batches
from compression.methods.prune.masks.scores import keep_largest
from compression.methods.prune.masks.sparsity import layer_sparsities, log_sparsities
from compression.nn import layers
from compression.nn.matrices import (
    columns_by_position,
    from_matrices,
    mask_matrices,
    sum_all_moments,
    sum_moments,
    weight_matrices,
)
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from compression.training.context import Context, RunLogger


@dataclass(frozen=True)
class LayerwisePruning(Method):
    """Pruners that use a second moment of each layer's inputs: their products, summed over examples.

    A convolution is taken as the linear layer over the patches it sees.
    """

    family: ClassVar[str] = "prune"

    sparsity: float = param(0.5, "share of each layer's weights to prune", interval="[0, 1)", search=(0.3, 0.8))
    # The papers prune as much of every layer, of language models. ResNet-32 for CIFAR-10, pruned to 70%, gives 84.0% of
    # the answers of the whole network by sparsegpt with the scope global, and 73.8% with local.
    scope: str = param(
        "auto",
        "sparsity of each layer: the same for all (local), or from ranking the weights of all layers together, each by "
        "the share of its layer's outputs (global); auto: global for networks with convolutions",
        choices=("auto", "global", "local"),
        when={"pattern": ("",)},
    )
    pattern: str = param("", "n:m, to keep n of every m consecutive inputs, as 2:4; the sparsity is then 1 - n/m")
    examples: int = param(128, "training examples whose activations are looked at", interval="[1, inf)")

    def __post_init__(self) -> None:
        super().__post_init__()
        allowed = (params.fields(type(self))["sparsity"].default, self.target_sparsity)
        if self.n_of_m and self.sparsity not in allowed:
            raise UserError(
                f"pattern={self.pattern} prunes {self.target_sparsity:.0%}: leave sparsity={self.sparsity:g} out."
            )

    def inactive(self) -> frozenset[str]:
        """A pattern fixes the sparsity."""
        return super().inactive() | ({"sparsity"} if self.pattern else set())

    @property
    def n_of_m(self) -> tuple[int, int] | None:
        """The n and m of the pattern, None without one. Raises UserError for what is no pattern."""
        if not self.pattern:
            return None
        n, colon, m = self.pattern.partition(":")
        if not (colon and n.isdecimal() and m.isdecimal() and 0 < int(n) < int(m)):
            raise UserError(f"pattern={self.pattern!r} is no pattern; it takes n:m with 0 < n < m, as 2:4.")
        return int(n), int(m)

    @property
    def target_sparsity(self) -> float:
        """The share of each layer's weights to prune: the pattern's, or `sparsity`."""
        return 1 - self.n_of_m[0] / self.n_of_m[1] if self.n_of_m else self.sparsity

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Prune the layers of `model` one after the other, in place."""
        model = model.eval()
        before = layer_sparsities(model)
        ranked = self.rank_together(model, context) if self.is_global(model) else {}
        for layer, moments in self.layer_moments(model, context):
            step = replace(self, sparsity=1 - ranked[layer].double().mean().item()) if layer in ranked else self
            order = columns_by_position(layer) if self.n_of_m else slice(None)
            weight, keep = weight_matrices(layer).clone(), mask_matrices(layer).clone()
            weight[:, :, order], keep[:, :, order] = step.prune_layer(
                layer, weight[:, :, order], _reordered(moments, order), keep[:, :, order]
            )
            with torch.no_grad():
                cast("Tensor", layer.weight).copy_(from_matrices(layer, weight))
            layers.set_mask(layer, from_matrices(layer, keep))
        log_sparsities(before, model, self.target_sparsity, context.record)
        return model

    def is_global(self, model: nn.Module) -> bool:
        """Whether layers get sparsities of their own."""
        if self.n_of_m or self.scope == "local":
            return False
        prunable = layers.prunable_layers(model).values()
        return self.scope == "global" or any(not isinstance(layer, nn.Linear) for layer in prunable)

    def rank_together(self, model: nn.Module, context: Context) -> dict[nn.Module, Tensor]:
        """Masks of all layers, in the shapes of `weight_matrices`, that together keep the share 1 - sparsity.

        Kept are those with the largest w^2 ||x||^2 over its sum in the layer, the share of its outputs' energy that a
        weight would make if inputs were uncorrelated, from the inputs x of the layers in the whole `model`.
        """
        model.to(context.device)
        batches = [inputs for inputs, _ in example_batches(context, self.examples, size=32)]
        prunable, shares = layers.prunable_layers(model), {}
        squares = sum_all_moments(model, prunable, prunable, batches, lambda rows: rows.double().square().sum(1))
        for name, layer in prunable.items():
            if name not in squares:
                raise _unused(layer)
            energies = weight_matrices(layer).double().square() * squares[name].unsqueeze(1)
            share = energies / energies.sum().clamp_min(torch.finfo(energies.dtype).tiny)
            shares[name] = share.masked_fill(~mask_matrices(layer), -torch.inf)
        return {prunable[name]: keep for name, keep in keep_largest(shares, self.sparsity).items()}

    def layer_moments(self, model: nn.Module, context: Context) -> Iterator[tuple[nn.Module, Tensor]]:
        """Yield each layer to prune with the moments of its inputs, `(groups, …)`, after those before it were pruned.

        So a later layer makes up for what earlier ones lost, and the moments of layers with one input are held at a
        time (75 MB for 3,072 inputs in doubles). `model` is moved to the device.
        """
        if context.task.predicts_tokens and block_names(model):
            yield from self._block_moments(model, context)
            return
        model.to(context.device)
        batches = [inputs for inputs, _ in example_batches(context, self.examples, size=32)]
        for layer in self.fitting(layers.prunable_layers(model), context.record).values():
            moments = sum_moments(model, layer, layer, batches, self.input_moment)
            if moments is None:
                raise _unused(layer)
            yield layer, moments

    def _block_moments(self, model: nn.Module, context: Context) -> Iterator[tuple[nn.Module, Tensor]]:
        """`layer_moments` of the linear layers in a decoder's blocks; embeddings and head, mostly one weight, stay."""
        batches = [inputs for inputs, _ in example_batches(context, self.examples, size=batch_size(context.task))]
        found = find_blocks(model, short_example(batches[0])).layers
        chosen = self.fitting({name: model.get_submodule(name) for name in found}, context.record)
        for stage in walk(model, batches, context.device, context.record, BlockCheckpoints(model, context)):
            if wanted := [layer for name, layer in stage.layers.items() if name in chosen]:
                moments = functools.reduce(torch.add, (self.input_moment(rows.unsqueeze(0)) for rows in stage.rows()))
                yield from ((layer, moments) for layer in wanted)

    def fitting(self, prunable: dict[str, nn.Module], record: RunLogger) -> dict[str, nn.Module]:
        """The layers, by name, whose number of inputs the pattern's m divides; warns of the others.

        Raises UserError if there are none.
        """
        if not self.n_of_m:
            return prunable
        m = self.n_of_m[1]
        fitting = {name: layer for name, layer in prunable.items() if layers.weight(layer).shape[1] % m == 0}
        if not fitting:
            raise UserError(f"No layer's inputs divide by the m of pattern={self.pattern}, so nothing would be pruned.")
        if dense := [name for name in prunable if name not in fitting]:
            record.warn(f"Inputs that do not divide by {self.pattern}'s m stay dense: {', '.join(dense)}.")
        return fitting

    def input_moment(self, rows: Tensor) -> Tensor:
        """Products of inputs `(groups, n, columns)`, summed over the n rows; the first dimension stays `groups`."""
        raise NotImplementedError

    def prune_layer(
        self,
        layer: nn.Module,  # noqa: ARG002 - some pruners take convolutions otherwise
        weights: Tensor,
        moments: Tensor,
        allowed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The new weights of a layer and their mask, `(groups, rows, columns)`: of each group, `prune_matrix`."""
        pruned = [self.prune_matrix(*group) for group in zip(weights, moments, allowed, strict=True)]
        return torch.stack([weight for weight, _ in pruned]), torch.stack([keep for _, keep in pruned])

    def prune_matrix(self, weight: Tensor, second_moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The new weight `(rows, columns)` of one group and its mask.

        The mask is false where `allowed`, the mask of earlier steps, is.
        """
        raise NotImplementedError


def _unused(layer: nn.Module) -> UserError:
    return UserError(f"The model never uses its layer {layer}, so nothing is known of its inputs; take magnitude.")


def _reordered(moments: Tensor, order: Tensor | slice) -> Tensor:
    """Moments `(groups, columns)` or `(groups, columns, columns)` with the columns in `order`."""
    return moments[:, order] if moments.ndim == 2 else moments[:, order][:, :, order]


def smallest_per_row(saliency: Tensor, counts: Sequence[int]) -> Tensor:
    """A mask, true at the `counts[i]` smallest entries of row i of `saliency` `(rows, columns)`."""
    # Ranks, not a threshold: with equal scores (zeros of dead inputs) a threshold would prune more than the count.
    ranks = saliency.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < torch.tensor(counts, device=saliency.device)[:, None]


def smallest_of_each(saliency: Tensor, kept: int, of: int) -> Tensor:
    """A mask, true at the `of - kept` smallest of every `of` consecutive entries of a row."""
    groups = saliency.reshape(-1, of)
    return smallest_per_row(groups, [of - kept] * len(groups)).view_as(saliency)
