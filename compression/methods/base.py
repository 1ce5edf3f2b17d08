"""What every compression method is: a frozen dataclass with one function."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

from compression import params

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from compression.tasks.task import Task
    from compression.training.context import Context
    from compression.training.hyperparameters import Training


@dataclass(frozen=True)
class Method(metaclass=params.Flat):
    """A compression method: its fields are its parameters, `apply` is what it does.

    `apply` returns a plain module: no parametrizations, hooks or observers left behind, at most mask buffers.
    It may change `model` in place; it never changes `context.original`. A method that trains holds the hyperparameters:
    `training: Training = params.group(Training)`; `Structured(epochs=3)` sets one of them.
    """

    family: ClassVar[str]
    terminal: ClassVar[bool] = False  # leaves no float weights: no other step comes after it
    needs_finetune: ClassVar[bool] = False  # the model is of use only once a finetune step came after
    drops_layers: ClassVar[bool] = False  # removes whole layers, and leaves the others as they are on purpose
    requires: ClassVar[str] = ""  # "text": works on transformers alone, and refuses others in one sentence

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Let `apply` tell its context the method's fields: checkpoints keep them, see `training.conditions`."""
        super().__init_subclass__(**kwargs)
        if "apply" in vars(cls):
            cls.apply = _under_own_fields(cls.apply)  # type: ignore[method-assign]

    def __post_init__(self) -> None:
        params.check(self)

    def inactive(self) -> frozenset[str]:
        """The fields that have no effect with the others as they are: neither logged nor searched by tuning."""
        return params.inactive(self)

    def active_values(self) -> dict[str, Any]:
        """The values of the fields that have an effect, by name."""
        inactive = self.inactive()
        return {name: value for name, value in params.values(self).items() if name not in inactive}

    @property
    def reinitializes(self) -> bool:
        """Whether it starts from untrained weights, and so undoes the steps before it."""
        return False

    def training_defaults(self, task: Task) -> Mapping[str, Any]:
        """The values of unset training fields, by name."""
        return task.training

    def training_for(self, task: Task) -> Training:
        """The training of a method that has one, with the defaults for `task` filled in."""
        held: Training = getattr(self, "training")  # noqa: B009 - a field of those subclasses that train
        return held.resolved(self.training_defaults(task))

    def resolved(self, task: Task) -> Self:
        """The method with its unset training fields filled in for `task`."""
        changes: dict[str, Any] = {"training": self.training_for(task)} if hasattr(self, "training") else {}
        return replace(self, **changes)

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError if it cannot work on networks of the form of `model`; called before a baseline is trained.

        `model` is untrained, and so are `context.original` and what `context.load` gives. Nothing is recorded.
        """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """The compressed model."""
        raise NotImplementedError


def _under_own_fields(apply: Callable[[Any, nn.Module, Context], nn.Module]) -> Any:
    """`apply` of a method, in a context whose conditions have the method and its fields."""

    @functools.wraps(apply)
    def apply_under_own_fields(self: Method, model: nn.Module, context: Context) -> nn.Module:
        values = self.resolved(context.task).active_values()
        return apply(self, model, context.under({"method": type(self).__name__, **values}))

    return apply_under_own_fields
