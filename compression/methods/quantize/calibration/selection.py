"""Which layers a method is to quantize: all that it can, but for those that its field `skip` names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import nn

from compression.errors import UserError
from compression.nn.quantized import QuantWeightLayer
from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.quantized.half import HalfLayer
from compression.nn.recurrent import BiLSTM
from compression.training.context import RunLogger

SKIP = "layers to leave in floats: names, or beginnings of names, with / between them"  # help of the field `skip`


def chosen(
    model: nn.Module,
    candidates: Iterable[str],
    skip: Sequence[str],
    kinds: str = "linear layer, convolution or embedding in floats",
) -> list[str]:
    """The layers among `candidates`, which are of `kinds`, that are to be quantized; UserError where none is left."""
    candidates = list(candidates)
    skipped = named(skip, candidates)
    left = [name for name in candidates if name not in skipped]
    if left:
        return left
    if any(isinstance(m, (QuantWeightLayer, HalfLayer, ClusteredLayer)) for m in model.modules()):
        raise UserError("The model is quantized already: begin with the one in floats that it was made from.")
    raise UserError(f"There is nothing to quantize: the model has no {kinds} that is not skipped.")


def tell_recurrent(model: nn.Module, record: RunLogger) -> None:
    """Say which recurrent layers a method has left in floats, which it quantizes all or not at all."""
    left = [
        name
        for name, m in model.named_modules()
        if isinstance(m, nn.RNNBase) or isinstance(m, BiLSTM) and any(isinstance(g, nn.Linear) for g in m.modules())
    ]
    if left:
        record.warn(
            f"Recurrent layers stay in floats: {', '.join(left)}; dynamic has integer kernels for LSTMs of the lab, "
            "and weight_only, half and cluster store them small."
        )


def named(skip: Sequence[str], candidates: list[str]) -> set[str]:
    """The layers among `candidates` that `skip` gives, names or beginnings of names.

    UserError for a part that no layer has.
    """
    found: set[str] = set()
    for part in skip:
        fitting = {name for name in candidates if name == part or name.startswith(f"{part}.")}
        if not fitting:
            raise UserError(f"skip={part!r} is no layer of the model; its layers are {', '.join(candidates)}.")
        found |= fitting
    return found
