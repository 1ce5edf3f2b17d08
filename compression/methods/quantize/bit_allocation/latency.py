"""How many layers have to be integers for a model to meet a latency, measured on the deployed file."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from compression.deploy.onnx.export import export
from compression.deploy.timing import latencies
from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from compression.nn.inputs import Inputs


def fewest_layers(count: int, target: float, latency_of: Callable[[int], float]) -> int:
    """Find by bisection a number up to `count` with `latency_of(number) <= target`, but not for one less.

    It is the least such number if `latency_of` falls steadily from 1 at no layers. Calls it about log2(count) times.
    Raises UserError if not even `count` layers are enough.
    """
    if (least := latency_of(count)) > target:
        raise UserError(
            f"latency={target:g} cannot be met: with every layer in integers an example takes {least:.2f} of the time "
            "of the floats; raise it."
        )
    # Throughout, `enough` meets the target and `too_few` does not: no layer in integers takes 1, above any target.
    too_few, enough = 0, count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if latency_of(middle) <= target else (middle, enough)
    return enough


def relative_latency(quantized: nn.Module, floats: nn.Module, example: Inputs) -> float:
    """Latency of one example in the ONNX file of `quantized` over that of `floats`, in ONNX Runtime on the CPU.

    `example` is a batch of at least 2, of which the first is timed. The second of two files is often the faster one:
    they are timed in both orders, and the result is the geometric mean of the two ratios.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [export(m, example, Path(folder) / f"{i}.onnx") for i, m in enumerate((quantized, floats))]
        threads = torch.get_num_threads()
        quantized_first, floats_second = latencies(files, example, threads)
        floats_first, quantized_second = latencies(files[::-1], example, threads)
    return float((quantized_first / floats_second * quantized_second / floats_first) ** 0.5)
