"""Which layers a method quantizes: all that it can, except those that its field `skip` names."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeGuard

from torch import nn

from compression.errors import UserError
from compression.nn.graph import record_graph
from compression.nn.layers import tied_clause, tied_layers
from compression.nn.quantized import QuantWeightLayer
from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.quantized.half import HalfLayer
from compression.nn.recurrent import BiLSTM, Direction
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
    out: a function takes no integers. So is one of `tied_layers` without its embedding, and the embedding without it:
    they would be stored twice, the one in floats and the other in integers. `kinds` says in the error what the
    candidates are. Raises UserError if nothing is left, or if a name in `skip` selects nothing.
    """
    read_by_functions = record_graph(model, example).read_by_functions
    candidates = [name for name in candidates if name not in read_by_functions]
    skipped = resolve_names(skip, candidates, option="skip")
    chosen = {name for name in candidates if name not in skipped}
    alone = {name for pair in tied_layers(model).items() for name in pair if not chosen.issuperset(pair)}
    if selected := [name for name in candidates if name in chosen - alone]:
        return selected
    require_in_floats(model)
    raise UserError(f"There is nothing to quantize: the model has no {kinds} that is not skipped{tied_clause(alone)}.")


def require_in_floats(model: nn.Module) -> None:
    """Raise UserError if a layer of the model is quantized."""
    if any(isinstance(m, (QuantWeightLayer, HalfLayer, ClusteredLayer)) for m in model.modules()):
        raise UserError("The model is quantized already: begin with the one in floats that it was made from.")


def is_quantizable(module: nn.Module) -> TypeGuard[nn.Linear | nn.Conv2d]:
    """Whether `module` is a plain linear layer or convolution, which has an integer form.

    Subclasses have none, nor have convolutions that pad with anything but zeros.
    """
    return type(module) is nn.Linear or (type(module) is nn.Conv2d and module.padding_mode == "zeros")


def warn_of_float_recurrent_layers(model: nn.Module, record: RunLogger) -> None:
    """Warn of the recurrent layers that still have float weights: a method quantizes all of them or none."""
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, (nn.RNNBase, BiLSTM, Direction))]
    whole = tuple(f"{name}." for name, m in layers if isinstance(m, BiLSTM))  # its two directions are not told apart
    in_floats = [
        name
        for name, m in layers
        if not name.startswith(whole)
        and (isinstance(m, nn.RNNBase) or any(isinstance(gates, nn.Linear) for gates in m.modules()))
    ]
    if in_floats:
        record.warn(
            f"Recurrent layers stay in floats: {', '.join(in_floats)}; dynamic has integer kernels for the lab's "
            "bidirectional ones, and weight_only, half and cluster store them small."
        )
