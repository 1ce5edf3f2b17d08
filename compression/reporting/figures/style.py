"""The colours and the style of all figures."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, ParamSpec

import matplotlib
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Callable

    from matplotlib.axes import Axes

BEFORE, AFTER, INK, FAINT = "#8da0b6", "#1f6f5c", "#22303c", "#d9e0e6"
SHADES = LinearSegmentedColormap.from_list("shades", ["#ffffff", AFTER])
STYLE: Any = {
    "font.size": 10,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#eef1f4",
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "savefig.dpi": 144,
}

P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Make `draw` use STYLE.

    matplotlib reads the style when it creates an element of a figure, so it must hold for the whole drawing.
    """

    @functools.wraps(draw)
    def draw_in_style(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return draw_in_style


def canvas(columns: int = 1, width: float = 6.0, height: float = 3.6) -> tuple[Figure, list[Axes]]:
    """Create a figure, in inches, with `columns` axes side by side, for a `styled` function.

    It is made without pyplot, whose global state it leaves alone.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def name_ticks(axes: Axes, names: list[str]) -> None:
    """Write `names` below the x axis, upright, and smaller the more there are."""
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=max(5, 9 - len(names) // 20))
