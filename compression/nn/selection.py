"""Which layers an option names: a layer by its whole name, or all layers of a part of the model by its beginning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterable


def resolve_names(named: Iterable[str], layers: Iterable[str], option: str, kind: str = "layer") -> dict[str, str]:
    """Map each of `layers` that is selected to the name in `named` that selects it, in the order of `layers`.

    A name selects the layer of that name and every layer within the part of the model of that name: `stages.0` selects
    `stages.0.conv1`, not `stages.01`. Where several fit, the longest wins. Raises UserError for a name that selects
    nothing; `option` and `kind` ("prunable layer") are the words for its sentence.
    """
    layers, named = list(layers), list(named)
    fitting = {layer: [name for name in named if layer == name or layer.startswith(f"{name}.")] for layer in layers}
    selecting = {name for names in fitting.values() for name in names}
    for name in named:
        if name not in selecting:
            raise UserError(
                f"{option} names {name!r}, which is no {kind} of the model; it has {', '.join(layers) or 'none'}."
            )
    return {layer: max(names, key=len) for layer, names in fitting.items() if names}
