"""The bytes of a tensor, for comparisons and checksums."""

from __future__ import annotations

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> Tensor:
    """Return the bytes `(n,)` of a tensor of any dtype, uint8 on the CPU: NaN equals NaN there, and -0.0 is not 0.0.

    numpy alone would not do: it has no bfloat16.
    """
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
