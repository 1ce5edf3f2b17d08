"""LSQ: the step between two levels is learned together with the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.methods.quantize.fake_quant.base import FakeQuantTraining
from compression.methods.quantize.fake_quant.learned_step import learned_steps
from compression.params import param

if TYPE_CHECKING:
    from torch import nn

    from compression.methods.quantize.fake_quant.layers import WeightFakeQuantize


@dataclass(frozen=True)
class Lsq(FakeQuantTraining):
    """Learn the step of each layer's weights and inputs.  Esser et al. 2020, arXiv:1902.08153.

    One step per layer, as in the paper. Eight-bit weights use the codes -64..64, whose sums are exact on every CPU.
    Inputs that are never negative use all codes for positive values, others are symmetric around zero.
    """

    bits: int = param(4, "bits of a weight", interval="[2, 8]", search=(2, 8))
    activation_bits: int = param(4, "bits of what goes into a layer", interval="[2, 8]", search=(2, 8))

    def fake_quantizers(self, layer: nn.Linear | nn.Conv2d) -> tuple[WeightFakeQuantize, nn.Module]:
        """Learned steps for the weight and the input."""
        return learned_steps(layer, self.bits, self.activation_bits)
