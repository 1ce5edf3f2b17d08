"""A layer that can be decomposed, and what is known of it before."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.methods.decompose.factorization.costs import Cost, Places, cost
from compression.methods.decompose.factorization.spectrum import Spectrum
from compression.nn import layers

Ranks = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layer that a method can decompose: where it works, what it costs, what its unfoldings hold."""

    name: str
    layer: nn.Module
    places: Places
    spectra: tuple[Spectrum, ...]
    full: Ranks  # the ranks at which nothing is lost or nothing is saved

    @property
    def before(self) -> Cost:
        weights = layers.weight(self.layer).numel()
        return cost([(weights, 0 if isinstance(self.layer, nn.Embedding) else self.places.written)])
