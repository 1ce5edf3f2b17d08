"""The figures of pruning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.reporting.figures.style import AFTER, BEFORE, canvas, styled

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from matplotlib.figure import Figure


@styled
def sparsity_curve(points: Sequence[tuple[float, float, float]], unit: str = "step") -> Figure:
    """The scheduled sparsity and the measured one; a point is (step, scheduled, measured), sparsities in [0, 1]."""
    steps, scheduled, measured = zip(*points, strict=True)
    figure, [axes] = canvas()
    axes.plot(steps, scheduled, color=BEFORE, linewidth=4, label="target")
    axes.plot(steps, measured, color=AFTER, marker="o", markersize=3, linewidth=1, label="reached")
    axes.set(title="Sparsity during training", xlabel=unit, ylabel="sparsity", ylim=(0, 1))
    axes.legend(loc="lower right")
    return figure


@styled
def layer_sizes(before: Sequence[Mapping[str, int]], after: Sequence[Mapping[str, int]]) -> Figure:
    """The heads, neurons and hidden dimensions of each layer, before and after.

    A layer is {heads, neurons, hidden}; the hidden dimensions have a panel only where they differ.
    """
    names = ["heads", "neurons", *(["hidden"] if before[0]["hidden"] != after[0]["hidden"] else [])]
    figure, panels = canvas(len(names), width=4.5 * len(names), height=3.2)
    for axes, name in zip(panels, names, strict=True):
        for shift, layers, colour, label in ((-0.2, before, BEFORE, "before"), (0.2, after, AFTER, "after")):
            places = [index + shift for index in range(len(layers))]
            axes.bar(places, [layer[name] for layer in layers], 0.4, color=colour, label=label)
        axes.set(title=f"{name.capitalize()} by layer", xlabel="layer", xticks=range(len(before)))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)  # not over the bars
    return figure


@styled
def dropped_layers(influence: Sequence[float], dropped: Collection[int]) -> Figure:
    """Block influence by layer: 1 - cosine of the hidden states before and after it; the dropped layers are pale."""
    figure, [axes] = canvas()
    colours = [BEFORE if layer in dropped else AFTER for layer in range(len(influence))]
    axes.bar(range(len(influence)), influence, color=colours)
    axes.set(title="Layers dropped (pale) and kept", xlabel="layer", ylabel="1 - cosine of input and output")
    return figure
