"""Tucker-2 decomposition: a convolution over few channels between two 1x1 convolutions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from tensorly import backend_context
from tensorly.decomposition import partial_tucker
from torch import Tensor, nn

from compression.methods.decompose.factorization.costs import FactorSize, FeatureMapSizes
from compression.methods.decompose.factorization.decomposition import Decomposition
from compression.methods.decompose.factorization.factors import Factorization, chain_of_layers, relative_error
from compression.nn.layers import weight

if TYPE_CHECKING:
    from compression.methods.decompose.factorization.candidate import Ranks

# Change of the relative error at which the iteration ends. It starts near its optimum: on a random 512x512x3x3 kernel a
# tenth of this took three times as long and lowered the error by 0.2%.
CONVERGED = 1e-3


@dataclass(frozen=True)
class Tucker(Decomposition):
    """Replace convolutions by a 1x1 to fewer channels, a convolution between these, and a 1x1 to the outputs.

    Kim et al. 2016, arXiv:1511.06530: Tucker-2 by higher-order orthogonal iteration, the two ranks by EVBMF. A 1x1
    convolution that would not reduce the channels (three colours) is left out. Those of 1x1 and of groups stay.
    """

    kinds: ClassVar[str] = "convolution larger than 1x1 without groups"

    def can_decompose(self, layer: nn.Module) -> bool:
        """Convolutions without groups and larger than 1x1."""
        return type(layer) is nn.Conv2d and layer.groups == 1 and layer.kernel_size != (1, 1)

    def unfoldings(self, layer: nn.Module) -> list[Tensor]:
        """The unfoldings `(out, in * h * w)` and `(in, out * h * w)` along the channels."""
        return [weight(layer).flatten(1), weight(layer).transpose(0, 1).flatten(1)]

    def full_ranks(self, layer: nn.Module) -> Ranks:
        """The largest possible ranks of the outputs and of the inputs."""
        return tuple(min(matrix.shape) for matrix in self.unfoldings(layer))

    def factor_sizes(self, layer: nn.Module, sizes: FeatureMapSizes, ranks: Ranks) -> list[FactorSize]:
        """Sizes of the 1x1, the core and the 1x1 convolution; a 1x1 at full rank is left out."""
        outputs, inputs, *kernel = weight(layer).shape
        inner_out, inner_in = ranks
        factors = [
            FactorSize(inner_in * inputs, sizes.input),
            FactorSize(inner_out * inner_in * kernel[0] * kernel[1], sizes.output),
            FactorSize(outputs * inner_out, sizes.output),
        ]
        # True counts as 1: the first one goes where the input rank is full, the last one where the output rank is.
        return factors[inner_in == inputs : 3 - (inner_out == outputs)]

    def factorize(self, layer: nn.Module, ranks: Ranks, seed: int) -> Factorization:  # noqa: ARG002 - the base's signature
        """Fit the kernel by higher-order orthogonal iteration."""
        factors = tucker2(weight(layer), ranks)
        assert isinstance(layer, nn.Conv2d)
        return Factorization(
            factor_layers(layer, *factors), relative_error(weight(layer).double(), reconstruct(*factors))
        )


def tucker2(kernel: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor, Tensor]:
    """The core `(out', in', h, w)` and orthonormal factors `(out, out')`, `(in, in')` of a kernel `(out, in, h, w)`.

    `ranks` is (out', in'). Computed in double precision. At full rank a factor is the identity.
    """
    # To the CPU, since tensorly works on NumPy arrays here.
    values = kernel.detach().double().cpu()
    # A mode of full rank would only get another basis: the others alone are iterated.
    modes = [mode for mode in (0, 1) if ranks[mode] < kernel.shape[mode]]
    factors = [torch.eye(size, dtype=torch.float64) for size in kernel.shape[:2]]
    if modes:
        with backend_context("numpy", local_threadsafe=True):
            (core, found), _ = partial_tucker(values.numpy(), [ranks[mode] for mode in modes], modes, tol=CONVERGED)
        values = torch.from_numpy(core)
        for mode, factor in zip(modes, found, strict=True):
            factors[mode] = torch.from_numpy(factor)
    outer, inner = (factor.to(kernel.device) for factor in factors)
    return values.to(kernel.device), outer, inner


def reconstruct(core: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """The kernel `(out, in, h, w)` that the factors make up; Kim et al. 2016, eq. 2."""
    return torch.einsum("pqhw,op,iq->oihw", core, outer, inner)


def factor_layers(layer: nn.Conv2d, core: Tensor, outer: Tensor, inner: Tensor) -> nn.Sequential:
    """The convolutions, Kim et al. 2016, eqs. 3 to 5: the middle one has stride, padding and dilation of `layer`."""
    (inner_out, inner_in), bias = core.shape[:2], layer.bias is not None
    geometry: Any = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "padding_mode")}
    narrows, widens = inner_in < layer.in_channels, inner_out < layer.out_channels
    kernel: Any = layer.kernel_size
    made = [(nn.Conv2d(inner_in, inner_out, kernel, **geometry, bias=bias and not widens), core)]
    if narrows:
        made.insert(0, (nn.Conv2d(layer.in_channels, inner_in, 1, bias=False), inner.T))
    if widens:
        made.append((nn.Conv2d(inner_out, layer.out_channels, 1, bias=bias), outer))
    layers, weights = zip(*made, strict=True)
    return chain_of_layers(layers, weights, layer.bias)
