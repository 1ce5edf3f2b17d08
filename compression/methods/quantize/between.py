"""What lies between layers of integers, and has to be rounded so that they get integer kernels where they are deployed.

A kernel gives integers: a convolution whose output nobody rounds is computed in floats, slower than before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.layers import Add
from compression.methods.quantize.calibration import observe, watched
from compression.methods.quantize.observers import Observed, minmax
from compression.methods.quantize.scheme import SUM_BITS
from compression.quantized import Numbers, QuantAdd, QuantAvgPool2d, QuantInput, Weighted, choose_range, code_range
from compression.tasks.task import Inputs, forward


def join(model: nn.Module, data: list[Inputs]) -> nn.Module:
    """`model` with residual sums and mean poolings on 8-bit inputs, in place, over the ranges that `data` shows.

    Where signs go from layer to layer all of it stays in floats: no kernel takes them, and a sum in integers, which may
    round a tie otherwise, would turn some.
    """
    if any(isinstance(m, Weighted) and m.activation == "odd" for m in model.modules()):
        return model
    between = {name: m for name, m in model.named_modules() if type(m) in (Add, nn.AdaptiveAvgPool2d)}
    for name, held in observe(model, between, data).items():
        pool = between[name]
        whole = isinstance(pool, nn.AdaptiveAvgPool2d)
        numbers = [_numbers(observed) for observed in held]
        made = QuantAvgPool2d.from_float(pool, numbers[0]) if whole else QuantAdd.from_numbers(*numbers)
        model.set_submodule(name, made)
    return round_inputs(model, floats_seen(model, data), data[0])


def floats_seen(model: nn.Module, data: list[Inputs]) -> dict[str, Numbers]:
    """The numbers that `round_inputs` takes, over the whole range of what goes into each layer in floats."""
    return {name: _numbers(observed) for name, [observed] in observe(model, floats(model), data).items()}


def floats(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers that are in floats, by name."""
    return {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}


def round_inputs(model: nn.Module, numbers: Mapping[str, Numbers], inputs: Inputs) -> nn.Module:
    """`model` with inputs in these `numbers`, in place, of the layers that stay in floats behind layers of integers.

    `inputs` are some to see which these are. A layer of sequences needs none: what comes before it has a kernel that
    gives floats.
    """
    for name in _behind_integers(model, inputs):
        layer = model.get_submodule(name)
        parts = OrderedDict(input=QuantInput.of(numbers[name]), layer=layer)
        model.set_submodule(name, nn.Sequential(parts))
    return model


def _behind_integers(model: nn.Module, inputs: Inputs) -> list[str]:
    """The layers in floats that run on images or rows after a layer of integers has run."""
    modules, in_floats = dict(model.named_modules()), floats(model)
    integers = {n for n, m in modules.items() if isinstance(m, Weighted) and getattr(m, "activation", "") == "affine"}
    if not integers or not in_floats:
        return []
    found: dict[str, None] = {}
    begun = False

    def look(name: str, given: tuple[Tensor, ...]) -> None:
        nonlocal begun
        begun = begun or name in integers
        if begun and name in in_floats and given[0].ndim != 3:
            found[name] = None

    with torch.no_grad(), watched({name: modules[name] for name in integers | in_floats.keys()}, look):
        forward(model.eval(), inputs)
    return list(found)


def _numbers(observed: Observed) -> Numbers:
    codes = code_range(SUM_BITS, signed=False)
    return Numbers(SUM_BITS, *choose_range(*minmax(observed), *codes, symmetric=False), *codes)
