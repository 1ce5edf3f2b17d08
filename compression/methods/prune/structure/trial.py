"""Trials of removals: whether a network without some channels answers as the network in which nothing reads them.

torch-pruning derives from the recorded operations which channels depend on one another, and knows no sizes that are
written in a network's code, nor how a view or a shuffle orders channels. So each of its groups is tried.
"""

from __future__ import annotations

import contextlib
import copy
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from compression.errors import UserError, first_line
from compression.methods.prune.structure.dependencies import channels_together, ignore_inputs, remove_channels
from compression.methods.prune.structure.plan import parallel_channels
from compression.nn.graph import tensors_in
from compression.nn.inputs import Inputs, map_inputs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compression.methods.prune.structure.dependencies import Names, Removal

BATCHES = (2, 3)  # sizes of batches; with one, batch norms cannot train


class Trial:
    """Tries removals on copies of `model`, whose groups have the names `names`.

    `model` is copied in double precision, with every channel different from its neighbours: a new network's batch norms
    are alike, scales of residual branches begin at zero, and a wrong cut of them would go unseen.
    """

    def __init__(self, model: nn.Module, names: Names, example: Inputs) -> None:
        self.names, self.generator = names, torch.Generator().manual_seed(0)
        self.training_shapes: list[torch.Size] | None = None  # of the outputs; None where the model cannot train
        try:
            self.model, self.dtype = copy.deepcopy(model).cpu(), torch.float64
            self.perturb()
            try:
                self.prepare(example)
            except RuntimeError:  # it may make tensors in single precision itself
                self.dtype = torch.float32
                self.prepare(example)
        except Exception as error:
            raise UserError(
                f"A copy of a {type(model).__name__} does not run on {BATCHES[0]} and on {BATCHES[1]} examples "
                f"({first_line(error)}), so structured cannot try what it removes."
            ) from error

    @torch.no_grad()
    def perturb(self) -> None:
        """Scale all numbers by a random factor, and add to vectors (of any axis) and to what is zero."""
        for tensor in [*self.model.parameters(), *self.model.buffers()]:
            if tensor.is_floating_point():
                # By 0.75 to 1.25: no two alike, all of their old size. Nothing negative is added: variances stay valid.
                tensor.mul_(0.75 + self.random(tensor) / 2)
                if tensor.numel() in tensor.shape or not tensor.any():
                    tensor.add_(self.random(tensor) / 5)

    def random(self, like: Tensor) -> Tensor:
        """Random numbers in [0, 1) in the shape of `like`."""
        return torch.rand(like.shape, generator=self.generator, dtype=like.dtype)

    def prepare(self, example: Inputs) -> None:
        """Run the model as it is in the present precision."""
        self.model.to(self.dtype)
        self.batches = [map_inputs(partial(self.batch_like, n), example) for n in BATCHES]
        # Of the larger batch: a size written into the code, such as view(2, -1), shows on a second size only.
        self.shapes = [shapes(run(self.model, inputs)) for inputs in self.batches][-1]
        with contextlib.suppress(Exception):  # a batch norm over one number, say
            self.training_shapes = shapes(run(copy.deepcopy(self.model).train(), self.batches[0]))

    def batch_like(self, n: int, tensor: Tensor) -> Tensor:
        """`n` examples: random numbers in the shape of one of `tensor`, but its own where they are integers."""
        examples = tensor[:1].cpu().expand(n, *tensor.shape[1:]).clone()
        # In [-1, 1). Integers are ids or masks, and random ones could lie beyond a table of embeddings.
        return self.random(examples).to(self.dtype) * 2 - 1 if tensor.is_floating_point() else examples

    def passes(self, removal: Removal) -> bool:
        """Whether the model without the channels of `removal` gives the answers of the one in which nothing reads them.

        It has to run on two sizes of batches, and in training as the whole one does. Layer and group norms then average
        over fewer channels, so they are taken to scale and shift alone where answers are compared.
        """
        # The same copy before and after the cut: first nothing reads the channels, then they are gone.
        tried, (few, more) = copy.deepcopy(self.model), self.batches
        try:
            ignore_inputs(tried, self.names, removal)
            with NormsAlone():
                expected = run(tried, few)
            remove_channels(tried, self.names, removal)
            with NormsAlone():
                found = run(tried, few)
            return (
                all(is_close(one, other) for one, other in zip(found, expected, strict=True))
                and shapes(run(tried, more)) == self.shapes
                and (self.training_shapes is None or shapes(run(tried.train(), few)) == self.training_shapes)
            )
        except Exception:  # noqa: BLE001 - the network or torch-pruning, on shapes that do not fit
            return False

    def passes_all(self, groups: Sequence[Any]) -> bool:
        """Whether random channels of all `groups` at once can be removed, and so those of a random half of them."""
        # Two wrong cuts may fit together and pass in one another's company; a random half parts them.
        some = [group for group in groups if torch.rand((), generator=self.generator) < 0.5]
        return all(self.passes([(g, self.draw(g)) for g in chosen]) for chosen in (groups, some) if chosen)

    def draw(self, group: Any) -> list[int]:
        """Random channels of `group`, at least as many as must go together; as many stay."""
        together = channels_together(group)
        positions = len(group[0].idxs) // together
        count = 1 + int(torch.randint(positions - 1, (), generator=self.generator))
        chosen = torch.randperm(positions, generator=self.generator)[:count].tolist()
        return parallel_channels(chosen, positions, together)

    def select(self, groups: Sequence[Any], known: Sequence[Any] = ()) -> list[Any]:
        """Those of `groups` whose channels can be removed beside those of `known`; halving them takes few trials."""
        if not groups or self.passes_all([*known, *groups]):
            return list(groups)
        if len(groups) == 1:
            return []
        # One bad group among n costs about 2 log2 n rounds of trials, none costs one.
        first = self.select(groups[: len(groups) // 2], known)
        return [*first, *self.select(groups[len(groups) // 2 :], [*known, *first])]


# A mode and not hooks on modules, since networks (torchvision's LayerNorm2d) call F.layer_norm themselves.
class NormsAlone(TorchFunctionMode):
    """While active, norms over channels scale and shift each channel and leave out the normalization.

    A group norm also adds a number to each of its groups, so that it shows where a channel changes its group.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        return NORMS.get(func, func)(*args, **kwargs)


def layer_norm(
    input: Tensor, _shape: Any = None, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """A layer norm that does not normalize."""
    scaled = input if weight is None else input * weight
    return scaled if bias is None else scaled + bias


def group_norm(
    input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *_: Any, **__: Any
) -> Tensor:
    """A group norm that does not normalize, and adds 1 to the first of its groups, 2 to the next one, …"""
    shape = (1, -1, *[1] * (input.ndim - 2))
    scaled = input if weight is None else input * weight.view(shape)
    shifted = scaled if bias is None else scaled + bias.view(shape)
    numbers = torch.arange(1, num_groups + 1, device=input.device).repeat_interleave(input.shape[1] // num_groups)
    return shifted + numbers.view(shape)


NORMS: dict[Any, Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    torch.layer_norm: layer_norm,
    F.rms_norm: lambda input, shape, weight=None, *_, **__: layer_norm(input, shape, weight),
    torch.rms_norm: lambda input, shape, weight=None, *_, **__: layer_norm(input, shape, weight),
    F.group_norm: group_norm,
    torch.group_norm: group_norm,
    F.local_response_norm: lambda input, *_, **__: input,
}


@torch.no_grad()
def run(model: nn.Module, inputs: Inputs) -> list[Tensor]:
    """All tensors that `model` returns, with the same random numbers in every run."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return list(tensors_in(model(**inputs) if isinstance(inputs, dict) else model(inputs)))


def shapes(tensors: Sequence[Tensor]) -> list[torch.Size]:
    """The shape of each tensor."""
    return [tensor.shape for tensor in tensors]


def is_close(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors differ by rounding alone."""
    if one.shape != other.shape or not other.isfinite().all():
        return False
    largest = (one - other).abs().max() if one.numel() else torch.tensor(0.0)
    # eps^(2/3): 4e-11 of the largest answer in double precision, 2e-5 in single, above rounding and below a wrong cut
    return bool(largest <= torch.finfo(other.dtype).eps ** (2 / 3) * other.abs().max().clamp_min(1e-30))
