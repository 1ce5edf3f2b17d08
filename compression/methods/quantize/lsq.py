"""LSQ: the step between levels is learned with the weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from compression.methods.quantize.fake.aware import Aware
from compression.methods.quantize.fake.rounding import Rounding
from compression.methods.quantize.fake.steps import learned
from compression.params import param


@dataclass(frozen=True)
class Lsq(Aware):
    """Learn the step of each layer's weights and inputs.  Esser et al. 2020, arXiv:1902.08153.

    One step a layer, as in the paper; eight-bit weights use the codes -64..64, which every CPU adds up exactly.
    Inputs that are never negative get all codes for positive values, others are symmetric around zero.
    """

    bits: int = param(4, "bits of a weight", interval="[2, 8]", search=(2, 8))
    activation_bits: int = param(4, "bits of what goes into a layer", interval="[2, 8]", search=(2, 8))

    def roundings(self, layer: nn.Linear | nn.Conv2d) -> tuple[Rounding, nn.Module]:
        return learned(layer, self.bits, self.activation_bits)
