"""What a decomposition shows of itself."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.figure import Figure

from compression.figures import AFTER, BEFORE, canvas, styled
from compression.methods.decompose.spectrum import Spectrum


@styled
def singular_values(shown: Mapping[str, tuple[Sequence[Spectrum], Sequence[int]]]) -> Figure:
    """For each layer the singular values of its unfoldings, and as dashed lines the ranks that were chosen.

    Of a convolution, the first colour is that of the outputs, the second that of the inputs. A CP decomposition has
    one rank for both.
    """
    figure, axes = canvas(len(shown), width=3.0 * len(shown) + 0.5, height=3.0)
    for place, (name, (spectra, ranks)) in zip(axes, shown.items(), strict=True):
        for spectrum, colour in zip(spectra, (AFTER, BEFORE), strict=False):
            place.plot(range(1, len(spectrum.values) + 1), spectrum.values / spectrum.values[0], color=colour)
        for rank, colour in zip(ranks, (AFTER, BEFORE), strict=False):
            place.axvline(rank, color=colour, linewidth=1, linestyle="--")
        place.set_ylim(bottom=0)
        place.set_title(name, fontsize=8)
        place.set_xlabel(f"singular value; rank {'x'.join(map(str, ranks))}", fontsize=8)
    return figure
