"""Costs of a model that a sparsity can be a share of."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch.utils.flop_counter import FlopCounterMode

from compression.nn import layers
from compression.nn.inputs import Inputs, forward

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


def count_parameters(model: nn.Module, _example: Inputs) -> int:
    """The number of parameters."""
    return layers.count_parameters(model)


@torch.no_grad()
def count_operations(model: nn.Module, example: Inputs) -> int:
    """Operations of one forward pass, twice the multiply-accumulates."""
    # Attention is counted in its eager form alone (torch 2.14.1 misses SDPA on the CPU), as the lab loads transformers.
    # Convolutions and matrix products count 2 a MAC; norms, activations and sums count nothing.
    with FlopCounterMode(display=False) as counter:
        forward(model.eval(), example)
    operations: int = counter.get_total_flops()
    return operations


COSTS: dict[str, Callable[[nn.Module, Inputs], int]] = {"params": count_parameters, "macs": count_operations}
