"""What decides how a model is translated into ONNX, the values of its weights aside.

Two models of equal structure give the same graph, so that the second needs none of the seconds that the exporter takes.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import types
from collections.abc import Hashable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from compression.nn.raw import raw_bytes

# Values that are compared by their type and what is printed of them: 0.0 and -0.0 differ, and so do 1 and True.
_PLAIN = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device, torch.memory_format, enum.Enum)
# Hooks run beside `forward` and may be anything.
_HOOKS = tuple(name for name in vars(nn.Module()) if name.endswith("_hooks"))


class UnknownStructureError(Exception):
    """A model holds something of which nobody can tell whether two of its kind are alike."""


def structure(model: nn.Module) -> Hashable:
    """Describe everything that `forward` of `model` and of its parts may depend on, tensors by their form alone.

    Equal descriptions mean equal graphs: classes, attributes, functions with what they enclose, and of parameters and
    buffers shape, dtype and which of them are the same tensor. A tensor that is neither is a constant of the graph and
    described by its values. What forward reads from elsewhere (a variable of a module, say) cannot be seen: whoever
    relies on equality has to compare the outputs. Raises UnknownStructureError for other objects, and for hooks.
    """
    return _Describer().describe(model)


class _Describer:
    """Describes values; remembers those it has met, as what is shared is part of a structure."""

    def __init__(self) -> None:
        self.met: dict[int, tuple[int, object]] = {}  # by id: number, and the value, so that its id stays its own

    def describe(self, value: object) -> Hashable:
        """Describe any value. Raises UnknownStructureError if it is of no known kind."""
        if isinstance(value, _PLAIN):
            return type(value), repr(value)
        if isinstance(value, type):
            return value
        return self.again(value) or (type(value), *self.parts(value))

    def again(self, value: object) -> Hashable:
        """Describe a value that was met before by its number among them; None at the first time."""
        if id(value) in self.met:
            return "again", self.met[id(value)][0]
        self.met[id(value)] = len(self.met), value
        return None

    def parts(self, value: Any) -> tuple[Hashable, ...]:
        """Describe what an object consists of."""
        match value:
            case nn.Module():
                return self.module(value)
            case Tensor():
                return *_form(value), hashlib.sha256(raw_bytes(value).numpy().tobytes()).hexdigest()
            case Mapping():
                return tuple((self.describe(key), self.describe(item)) for key, item in value.items())
            case tuple() | list():
                return tuple(map(self.describe, value))
            case set() | frozenset():
                return tuple(sorted(repr(self.describe(item)) for item in value))
            case functools.partial():
                return tuple(map(self.describe, (value.func, value.args, value.keywords)))
            case types.MethodType():
                return self.describe(value.__func__), self.describe(value.__self__)
            case types.FunctionType():
                enclosed = [cell.cell_contents for cell in value.__closure__ or ()]
                return value.__code__, self.describe(enclosed), self.describe(value.__defaults__)
            case types.BuiltinFunctionType() | torch._ops.OpOverload() | torch._ops.OpOverloadPacket():
                return (value,)
        if dataclasses.is_dataclass(value) or hasattr(value, "to_dict"):  # the configs of transformers have to_dict
            return (self.describe(vars(value)),)
        raise UnknownStructureError(f"a {type(value).__qualname__}")

    def module(self, module: nn.Module) -> tuple[Hashable, ...]:
        """Describe a module with all it holds."""
        state = vars(module)
        if any(state.get(name) for name in _HOOKS):
            raise UnknownStructureError(f"hooks of a {type(module).__qualname__}")
        held = (*module._parameters.items(), *module._buffers.items())
        tensors = [(name, self.tensor(tensor)) for name, tensor in held]
        rest = {name: value for name, value in state.items() if name not in {*_HOOKS, "_parameters", "_buffers"}}
        return tuple(tensors), self.describe(rest)

    def tensor(self, tensor: Tensor | None) -> Hashable:
        """Describe a parameter or buffer."""
        if tensor is None:
            return None
        return self.again(tensor) or (type(tensor), *_form(tensor))


def _form(tensor: Tensor) -> tuple[Hashable, ...]:
    """What a graph knows of a tensor that it is given."""
    if tensor.layout != torch.strided:
        raise UnknownStructureError(f"a {tensor.layout} tensor")
    return tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.requires_grad
