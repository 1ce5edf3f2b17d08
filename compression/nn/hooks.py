"""Watching the layers of a model during forward passes, with hooks that are always removed."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn


@dataclass(frozen=True)
class Call:
    """One call of a named module: its inputs, first those by position, and its output (None before it returns)."""

    name: str
    module: nn.Module
    inputs: tuple[Any, ...]
    output: Any = None
    names: tuple[str, ...] = ()  # of the last inputs, those that are given by name

    @property
    def output_tensor(self) -> Tensor:
        """The output, or its first element where the module returns a tuple, as transformer layers may."""
        output: Tensor = self.output[0] if isinstance(self.output, tuple) else self.output
        return output


@contextlib.contextmanager
def on_forward(
    modules: Mapping[str, nn.Module], function: Callable[[Call], Any], before: bool = False
) -> Iterator[None]:
    """Call `function` after each forward call of one of `modules`, or before it, as long as the block lasts.

    What `function` returns after a call replaces the module's output, and before a call its inputs, unless it is None.
    A call's tensors are those of the model, neither copied nor detached: gradients flow through them, and a later
    operation in place (`nn.ReLU(inplace=True)`) changes them. How modules are wired is for `graph.record_graph` to say.
    """

    def after_call(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        return function(Call(name, module, (*inputs, *named.values()), output, tuple(named)))

    def before_call(name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
        # With kwargs, torch expects arguments and keyword arguments as a pair, or None where nothing changes.
        changed = function(Call(name, module, (*inputs, *named.values()), names=tuple(named)))
        if changed is None:
            return None
        values = changed if isinstance(changed, tuple) else (changed,)
        return values[: len(inputs)], dict(zip(named, values[len(inputs) :], strict=True))

    with contextlib.ExitStack() as hooks:
        for name, module in modules.items():
            if before:
                handle = module.register_forward_pre_hook(partial(before_call, name), with_kwargs=True)
            else:
                handle = module.register_forward_hook(partial(after_call, name), with_kwargs=True)
            hooks.callback(handle.remove)
        yield
