"""What lies between layers of integers, and has to be rounded so that they get integer kernels where they are deployed.

A kernel gives integers: a convolution whose output nobody rounds is computed in floats, slower than before.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from compression.methods.quantize.calibration.activations import observe, watched
from compression.methods.quantize.calibration.observers import Observed, minmax
from compression.methods.quantize.calibration.scheme import SUM_BITS
from compression.nn.inputs import Inputs, forward
from compression.nn.layers import Add
from compression.nn.quantized import (
    QParams,
    QuantAdd,
    QuantAvgPool2d,
    QuantInput,
    Quantize,
    QuantWeightLayer,
    calc_qparams,
    code_range,
)


def join(model: nn.Module, data: list[Inputs]) -> nn.Module:
    """`model` with residual sums and mean poolings on 8-bit inputs, in place, over the ranges that `data` shows.

    Where signs go from layer to layer all of it stays in floats: no kernel takes them, and a sum in integers, which may
    round a tie otherwise, would turn some.
    """
    if any(isinstance(m, QuantWeightLayer) and m.activation == "odd" for m in model.modules()):
        return model
    between = {name: m for name, m in model.named_modules() if type(m) in (Add, nn.AdaptiveAvgPool2d)}
    for name, held in observe(model, between, data).items():
        pool = between[name]
        whole = isinstance(pool, nn.AdaptiveAvgPool2d)
        numbers = [_numbers(observed) for observed in held]
        made = QuantAvgPool2d.from_float(pool, numbers[0]) if whole else QuantAdd.from_qparams(*numbers)
        model.set_submodule(name, made)
    return round_inputs(model, floats_seen(model, data), data[0])


def floats_seen(model: nn.Module, data: list[Inputs]) -> dict[str, QParams]:
    """The numbers that `round_inputs` takes, over the whole range of what goes into each layer in floats."""
    return {name: _numbers(observed) for name, [observed] in observe(model, floats(model), data).items()}


def floats(model: nn.Module) -> dict[str, nn.Module]:
    """The convolutions and linear layers that are in floats, by name."""
    return {name: m for name, m in model.named_modules() if type(m) in (nn.Conv2d, nn.Linear)}


def round_inputs(model: nn.Module, numbers: Mapping[str, QParams], inputs: Inputs) -> nn.Module:
    """`model`, in place, with the inputs rounded of layers that would keep others from their integer kernels.

    A layer in floats behind layers of integers gets these `numbers`, but on sequences, where kernels give floats too.
    Layers and sums that are given one tensor get it in one way first, since a kernel gives its integers in one way.
    `inputs` are some to see which these are.
    """
    rounded = {name: QuantInput.from_scheme(numbers[name]) for name in _behind_integers(model, inputs)}
    for name, rounding in (rounded | _shared(model, inputs)).items():
        parts = OrderedDict(input=rounding, layer=model.get_submodule(name))
        model.set_submodule(name, nn.Sequential(parts))
    return model


def _shared(model: nn.Module, inputs: Inputs) -> dict[str, nn.Module]:
    """Roundings that go before the layers of integers that are given a tensor which others round otherwise.

    All of them take it in the 8 bits of the residual sum among them, or in 8 that span what each of them covers.
    """
    takers: dict[str, list[Quantize]] = {}
    for name, module in model.named_modules():
        source = getattr(module, "input", None)
        if isinstance(module, QuantAdd):
            takers[name] = [module.left, module.right]
        elif isinstance(module, QuantWeightLayer) and isinstance(source, Quantize) and source.qscheme == "affine":
            takers[name] = [source]
    given: dict[str, tuple[Tensor, ...]] = {}  # which stay, so that no tensor takes the identity of another
    with torch.no_grad(), watched({name: model.get_submodule(name) for name in takers}, given.__setitem__):
        forward(model.eval(), inputs)
    users: dict[int, dict[str, Quantize]] = {}  # of each tensor but sequences, whose kernels give floats
    for name, tensors in given.items():
        for tensor, rounding in zip(tensors, takers[name], strict=True):
            if tensor.ndim != 3:
                users.setdefault(id(tensor), {})[name] = rounding
    return {name: rounding for several in users.values() for name, rounding in _first(several, takers).items()}


def _first(users: dict[str, Quantize], takers: dict[str, list[Quantize]]) -> dict[str, nn.Module]:
    """What goes before the layers among the `users` of one tensor, where they do not round it all alike."""
    every = [rounding.qparams for rounding in users.values()]
    if all(_same(one, every[0]) for one in every):
        return {}
    sums = [rounding.qparams for name, rounding in users.items() if len(takers[name]) > 1]
    common = sums[0] if sums else _spanning(every)
    layers = {name: rounding for name, rounding in users.items() if len(takers[name]) == 1}
    return {name: Quantize.from_scheme(common) for name, rounding in layers.items() if not _same(rounding.qparams, common)}


def _same(one: QParams, other: QParams) -> bool:
    return one.bits == other.bits and bool(one.scale == other.scale) and bool(one.zero_point == other.zero_point)


def _spanning(every: list[QParams]) -> QParams:
    """Eight bits over the ranges of all of these."""
    ends = [((n.low - n.zero_point) * n.scale, (n.high - n.zero_point) * n.scale) for n in every]
    codes = code_range(SUM_BITS, signed=False)
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return QParams(SUM_BITS, *calc_qparams(low, high, *codes, symmetric=False), *codes)


def _behind_integers(model: nn.Module, inputs: Inputs) -> list[str]:
    """The layers in floats that run on images or rows after a layer of integers has run."""
    modules, in_floats = dict(model.named_modules()), floats(model)
    integers = {n for n, m in modules.items() if isinstance(m, QuantWeightLayer) and getattr(m, "activation", "") == "affine"}
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


def _numbers(observed: Observed) -> QParams:
    codes = code_range(SUM_BITS, signed=False)
    return QParams(SUM_BITS, *calc_qparams(*minmax(observed), *codes, symmetric=False), *codes)
