"""How far a training has come, for a loss that depends on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Clock(nn.Module):
    """The share `done` of the steps. A module, so that it travels in checkpoints and a resumed training goes on."""

    done = 0.0

    def get_extra_state(self) -> Tensor:
        return torch.tensor(self.done, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        self.done = float(state)
