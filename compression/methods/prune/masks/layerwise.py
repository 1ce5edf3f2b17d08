"""The base of pruners after training, layer by layer, each on the inputs that the pruned layers before it give."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from compression import params
from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.blockwise.blocks import block_names, find_blocks, short_example
from compression.methods.blockwise.checkpoint import BlockCheckpoints
from compression.methods.blockwise.walk import batch_size, walk
from compression.methods.prune.masks.example_loss import example_batches
from compression.methods.prune.masks.sparsity import layer_sparsities, log_sparsities
from compression.nn import layers
from compression.nn.hooks import Call, on_forward
from compression.nn.inputs import Inputs, forward
from compression.params import param

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from compression.training.context import Context, RunLogger


@dataclass(frozen=True)
class LayerwisePruning(Method):
    """Pruners that use a second moment of each layer's inputs: their products, summed over examples.

    A convolution is taken as the linear layer over the patches it sees. Each layer gets the same sparsity.
    """

    family: ClassVar[str] = "prune"

    sparsity: float = param(0.5, "share of each layer's weights to prune", interval="[0, 1)", search=(0.3, 0.8))
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
        for layer, moments in self.layer_moments(model, context):
            groups = zip(weight_matrices(layer), moments, mask_matrices(layer), strict=True)
            pruned = [self.prune_matrix(*group) for group in groups]
            with torch.no_grad():
                cast("Tensor", layer.weight).copy_(from_matrices(layer, torch.stack([weight for weight, _ in pruned])))
            layers.set_mask(layer, from_matrices(layer, torch.stack([keep for _, keep in pruned])))
        log_sparsities(before, model, self.target_sparsity, context.record)
        return model

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
            yield layer, sum_second_moments(model, layer, batches, self.input_moment)

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

    def prune_matrix(self, weight: Tensor, second_moment: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """The new weight `(rows, columns)` of one group and its mask.

        The mask is false where `allowed`, the mask of earlier steps, is.
        """
        raise NotImplementedError


def weight_matrices(layer: Any, values: Tensor | None = None) -> Tensor:
    """Reshape the layer's weight (or `values` of its shape) to `(groups, outputs / groups, columns)`.

    A convolution's columns run over the kernel's positions and, within each, over the input channels, so that n of m
    neighbours are n of m channels, as sparse tensor cores want it.
    """
    values = layers.weight(layer) if values is None else values
    groups = getattr(layer, "groups", 1)
    # (groups, outputs / groups, channels, positions)
    by_position = values.reshape(groups, values.shape[0] // groups, values.shape[1], -1)
    return by_position.transpose(2, 3).flatten(2)


def from_matrices(layer: Any, matrices: Tensor) -> Tensor:
    """Reshape matrices, as `weight_matrices` gives them, to the shape of the layer's weight."""
    shape = layers.weight(layer).shape
    groups, outputs, _ = matrices.shape
    # (groups, outputs / groups, positions, channels) -> (groups, outputs / groups, channels, positions) -> the weight
    return matrices.reshape(groups, outputs, -1, shape[1]).transpose(2, 3).reshape(shape)


def mask_matrices(layer: nn.Module) -> Tensor:
    """The present mask of the layer, in the shape of `weight_matrices`; all true if it has none."""
    mask = getattr(layer, "mask", None)
    keep = mask if isinstance(mask, Tensor) else torch.ones_like(layers.weight(layer), dtype=torch.bool)
    return weight_matrices(layer, keep)


@torch.no_grad()
def sum_second_moments(
    model: nn.Module, layer: nn.Module, batches: Sequence[Inputs], moment: Callable[[Tensor], Tensor]
) -> Tensor:
    """Sum `moment(rows)` of the layer's inputs over the batches, one forward pass of `model` each.

    Raises UserError for a layer that the model never uses.
    """
    moments: list[Tensor] = []  # at most one, the running sum: the moments of all batches would not fit into memory
    attention_mask: Tensor | None = None

    def add_call(call: Call) -> None:
        added = moment(input_rows(layer, call.inputs[0], attention_mask))
        moments[:] = [moments[0] + added if moments else added]

    with on_forward({"": layer}, add_call, before=True):
        for inputs in batches:
            attention_mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
            forward(model, inputs)
    if not moments:
        raise UserError(f"The model never uses its layer {layer}, so nothing is known of its inputs; take magnitude.")
    return moments[0]


def input_rows(layer: nn.Module, inputs: Tensor, attention_mask: Tensor | None) -> Tensor:
    """The rows that the layer multiplies its weights with, `(groups, n, columns)`, columns as in `weight_matrices`.

    Tokens where `attention_mask` `(batch, length)` is 0, padding, are left out.
    """
    if isinstance(layer, nn.Linear):
        # Of other shapes are the inputs of a pooler or classifier, which read one vector of each text.
        if attention_mask is not None and inputs.shape[:-1] == attention_mask.shape:
            inputs = inputs[attention_mask.bool()]
        return inputs.flatten(0, -2).unsqueeze(0)
    return input_patches(layer, inputs)


def input_patches(layer: Any, images: Tensor) -> Tensor:
    """The patches that a 1-, 2- or 3-d convolution sees, `(groups, batch * positions, columns)`.

    A depthwise convolution with one-hot kernels picks them out, whatever stride, padding and dilation are.
    """
    channels, size = layer.in_channels, math.prod(layer.kernel_size)
    arguments = {n: getattr(layer, n) for n in ("kernel_size", "stride", "padding", "dilation", "padding_mode")}
    # Not F.unfold, which takes images alone, and neither padding="same" nor reflected or circular padding.
    pick = type(layer)(channels, channels * size, groups=channels, bias=False, **arguments).to(images)
    one_hot = torch.eye(size, device=images.device, dtype=images.dtype)
    pick.weight.data = one_hot.view(size, 1, *layer.kernel_size).repeat(channels, *[1] * (images.ndim - 1))
    # (batch, groups, channels, size, positions)
    picked: Tensor = pick(images).flatten(2).unflatten(1, (layer.groups, channels // layer.groups, size))
    return picked.permute(1, 0, 4, 3, 2).flatten(3).flatten(1, 2)  # (groups, batch, positions, size, channels) first


def smallest_per_row(saliency: Tensor, counts: Sequence[int]) -> Tensor:
    """A mask, true at the `counts[i]` smallest entries of row i of `saliency` `(rows, columns)`."""
    # Ranks, not a threshold: with equal scores (zeros of dead inputs) a threshold would prune more than the count.
    ranks = saliency.argsort(dim=1, stable=True).argsort(dim=1)
    return ranks < torch.tensor(counts, device=saliency.device)[:, None]


def smallest_of_each(saliency: Tensor, kept: int, of: int) -> Tensor:
    """A mask, true at the `of - kept` smallest of every `of` consecutive entries of a row."""
    groups = saliency.reshape(-1, of)
    return smallest_per_row(groups, [of - kept] * len(groups)).view_as(saliency)
