"""How many layers have to be integers for a model to be fast enough, by the clock."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from compression.deploy.onnx.export import export
from compression.deploy.timing import latencies
from compression.errors import UserError
from compression.nn.inputs import Inputs


def fewest(count: int, wanted: float, share: Callable[[int], float]) -> int:
    """A number up to `count` for which `share(number)` is at most `wanted`, and for one less it is not.

    The least one, if `share` falls all the way from 1 for none. Asks for it about log2(count) times. UserError where
    not even all are enough.
    """
    if (least := share(count)) > wanted:
        raise UserError(
            f"latency={wanted:g} cannot be met: with every layer in integers an example takes {least:.2f} of the time "
            "of the floats; raise it."
        )
    too_few, enough = 0, count
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        too_few, enough = (too_few, middle) if share(middle) <= wanted else (middle, enough)
    return enough


def share_of_time(made: nn.Module, floats: nn.Module, example: Inputs) -> float:
    """Time of one example in the deployed file of `made` over that of `floats`, in ONNX Runtime on the CPU.

    `example` is a batch of at least 2, of which the first is timed, in both orders of the files: the second is often
    the faster one. The geometric mean of the two.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [export(m, example, Path(folder) / f"{i}.onnx") for i, m in enumerate((made, floats))]
        threads = torch.get_num_threads()
        ours, theirs = latencies(files, example, threads)
        theirs_first, ours_second = latencies(files[::-1], example, threads)
    return float((ours / theirs * ours_second / theirs_first) ** 0.5)
