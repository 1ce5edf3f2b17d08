"""Which layers a method quantizes: all that it can, except those that its field `skip` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from compression.errors import UserError
from compression.nn.graph import record_graph
from compression.nn.quantized import QuantWeightLayer
from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.quantized.half import HalfLayer
from compression.nn.recurrent import BiLSTM
from compression.nn.selection import resolve_names

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.nn.inputs import Inputs
    from compression.training.context import RunLogger

SKIP_HELP = "layers to leave in floats: names, or beginnings of names, with / between them"


def select_layers(
    model: nn.Module,
    candidates: Iterable[str],
    skip: Sequence[str],
    example: Inputs,
    kinds: str = "linear layer, convolution or embedding in floats",
) -> list[str]:
    """The names among `candidates` that `skip` does not select.

    Layers whose weights are read by functions as well, in the forward pass on the prepared batch `example`, are left
    out: a function takes no integers. `kinds` says in the error what the candidates are. Raises UserError if nothing is
    left, or if a name in `skip` selects nothing.
    """
    read_by_functions = record_graph(model, example).read_by_functions
    candidates = [name for name in candidates if name not in read_by_functions]
    skipped = resolve_names(skip, candidates, option="skip")
    if selected := [name for name in candidates if name not in skipped]:
        return selected
    if any(isinstance(m, (QuantWeightLayer, HalfLayer, ClusteredLayer)) for m in model.modules()):
        raise UserError("The model is quantized already: begin with the one in floats that it was made from.")
    raise UserError(f"There is nothing to quantize: the model has no {kinds} that is not skipped.")


def is_quantizable(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether `module` is a plain linear layer or convolution, which has an integer form.

    Subclasses have none, nor have convolutions that pad with anything but zeros.
    """
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.padding_mode == "zeros")


def warn_of_float_recurrent_layers(model: nn.Module, record: RunLogger) -> None:
    """Warn of the recurrent layers that still have float weights: a method quantizes all of them or none."""
    in_floats = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.RNNBase) or (isinstance(m, BiLSTM) and any(isinstance(g, nn.Linear) for g in m.modules()))
    ]
    if in_floats:
        record.warn(
            f"Recurrent layers stay in floats: {', '.join(in_floats)}; dynamic has integer kernels for LSTMs of the "
            "lab, and weight_only, half and cluster store them small."
        )
