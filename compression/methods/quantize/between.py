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
from compression.quantized import (
    Numbers,
    QuantAdd,
    QuantAvgPool2d,
    QuantInput,
    Quantize,
    Weighted,
    choose_range,
    code_range,
)
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
    """`model`, in place, with the inputs rounded of layers that would keep others from their integer kernels.

    A layer in floats behind layers of integers gets these `numbers`, but on sequences, where kernels give floats too. A
    layer with fewer bits that is given what a residual sum is given gets the bits of the sum first, since a kernel
    gives its integers in one way. `inputs` are some to see which these are.
    """
    rounded = {name: QuantInput.of(numbers[name]) for name in _behind_integers(model, inputs)}
    for name, rounding in (rounded | _beside_sums(model, inputs)).items():
        parts = OrderedDict(input=rounding, layer=model.get_submodule(name))
        model.set_submodule(name, nn.Sequential(parts))
    return model


def _beside_sums(model: nn.Module, inputs: Inputs) -> dict[str, nn.Module]:
    """What a sum does to its input, by the names of the layers with fewer bits that are given the same tensor."""
    sums = {name: module for name, module in model.named_modules() if isinstance(module, QuantAdd)}
    fewer = {name: module for name, module in model.named_modules() if _bits(module) < SUM_BITS}
    if not sums or not fewer:
        return {}
    given: dict[str, tuple[Tensor, ...]] = {}  # which stay, so that no tensor takes the identity of another
    with torch.no_grad(), watched(sums | fewer, given.__setitem__):
        forward(model.eval(), inputs)
    sides = {
        id(tensor): side
        for name in sums.keys() & given.keys()
        for tensor, side in zip(given[name], (sums[name].left, sums[name].right), strict=True)
    }
    return {n: Quantize.of(sides[id(t)].fixed) for n, (t, *_) in given.items() if n in fewer and id(t) in sides}


def _bits(module: nn.Module) -> int:
    """Bits of the unsigned codes that go into a layer of integers; all that there are for other modules."""
    source = getattr(module, "input", None)
    if isinstance(module, Weighted) and isinstance(source, Quantize) and source.levels == "affine":
        return source.bits
    return SUM_BITS


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
