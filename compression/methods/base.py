"""What every compression method is: a frozen dataclass with one function."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from compression import params

if TYPE_CHECKING:
    from torch import nn

    from compression.training.context import Context


@dataclass(frozen=True)
class Method:
    """A compression method: its fields are its parameters, `apply` is what it does.

    `apply` returns a plain module: no parametrizations, hooks or observers left behind, at most mask buffers.
    It may change `model` in place; it never changes `context.original`.
    """

    family: ClassVar[str]
    seals: ClassVar[bool] = False  # leaves no weights in floats: no other step comes after it
    unfinished: ClassVar[bool] = False  # made for weights yet to train: its result is of use once finetune came after
    needs: ClassVar[str] = ""  # "text": works on transformers alone, and refuses others in one sentence

    def __post_init__(self) -> None:
        params.check(self)

    def unused(self) -> frozenset[str]:
        """The fields that change nothing with the others as they are; tuning does not search them."""
        return frozenset()

    @property
    def restarts(self) -> bool:
        """Whether it begins with untrained weights, and so undoes what came before it."""
        return False

    def check(self, model: nn.Module, context: Context) -> None:
        """UserError where it cannot work on networks of the form of `model`; asked before a baseline is trained.

        `model` is untrained, and so are `context.original` and what `context.load` gives. Nothing is recorded.
        """

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """The compressed model."""
        raise NotImplementedError
