"""How far a training has come, for a loss or a mask that depends on it."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class TrainingProgress(nn.Module):
    """The share `fraction` of the steps that are done, from 0 to 1.

    It is a module without parameters so that, passed to `fit` as `extra`, it is saved in the training's checkpoints and
    a resumed training continues with the right value.
    """

    fraction = 0.0

    def get_extra_state(self) -> Tensor:
        """The state that checkpoints save: a scalar in double precision."""
        return torch.tensor(self.fraction, dtype=torch.float64)

    def set_extra_state(self, state: Tensor) -> None:
        """Restore what `get_extra_state` gave."""
        self.fraction = float(state)
