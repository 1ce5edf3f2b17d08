"""The figures of decomposition."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.reporting.figures.style import AFTER, BEFORE, canvas, styled

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from matplotlib.figure import Figure


@styled
def singular_values(spectra: Mapping[str, Sequence[np.ndarray]], ranks: Mapping[str, Sequence[int]]) -> Figure:
    """For each layer the singular values of its unfoldings over the largest, with its ranks as dashed lines.

    A spectrum holds the singular values `(values,)` of one unfolding, descending. Of a convolution, the first colour is
    that of the outputs, the second that of the inputs. A CP decomposition has one rank for both.
    """
    figure, panels = canvas(len(spectra), width=3.0 * len(spectra) + 0.5, height=3.0)
    for axes, (name, unfoldings) in zip(panels, spectra.items(), strict=True):
        for values, colour in zip(unfoldings, (AFTER, BEFORE), strict=False):
            # A layer of zeros has no largest value to divide by.
            axes.plot(range(1, len(values) + 1), values / (values[0] or 1), color=colour)
        for rank, colour in zip(ranks[name], (AFTER, BEFORE), strict=False):
            axes.axvline(rank, color=colour, linewidth=1, linestyle="--")
        axes.set_ylim(bottom=0)
        axes.set_title(name, fontsize=8)
        axes.set_xlabel(f"singular value; rank {'x'.join(map(str, ranks[name]))}", fontsize=8)
    return figure
