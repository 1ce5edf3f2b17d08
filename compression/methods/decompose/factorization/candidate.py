"""A layer that can be decomposed, with what the choice of its ranks needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from compression.methods.decompose.factorization.costs import Cost, FactorSize, FeatureMapSizes, total_cost
from compression.nn import layers

if TYPE_CHECKING:
    from compression.methods.decompose.factorization.spectrum import Spectrum

Ranks = tuple[int, ...]  # one for SVD and CP, (outputs, inputs) for Tucker-2


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that a method can decompose: its feature-map sizes and the spectra of its weight's unfoldings."""

    name: str
    layer: nn.Module
    sizes: FeatureMapSizes
    spectra: tuple[Spectrum, ...]
    full_ranks: Ranks  # SVD, Tucker: those at which the factors are exact; CP: the largest that does not cost more

    @property
    def cost(self) -> Cost:
        """The layer's cost before it is decomposed; an embedding multiplies nothing."""
        positions = 0 if isinstance(self.layer, nn.Embedding) else self.sizes.output
        return total_cost([FactorSize(layers.weight(self.layer).numel(), positions)])
