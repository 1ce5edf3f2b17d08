"""The figures draw the numbers that they are given."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from compression.reporting.figures import decompose, distill, quantize, runs, tuning


def heights(axes):
    return [bar.get_height() for bar in axes.patches]


def test_a_histogram_says_which_share_lies_outside_its_range():
    [axes] = quantize.histograms({"conv": np.array([-3.0, -1.0, 0.0, 1.0])}, {"conv": (-1.0, 1.0)}, "weight").axes
    assert axes.get_xlabel() == "weight; 25.00% clipped"
    assert [line.get_xdata()[0] for line in axes.lines] == [-1.0, 1.0]


def test_bits_per_weight_are_two_bars_for_each_layer():
    [axes] = quantize.bits_per_weight([{"layer": "fc", "index_bits": 5, "coded_bits": 3.5}]).axes
    assert heights(axes) == [5, 3.5]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["fc"]


def test_a_cost_below_zero_is_drawn_as_none():
    costs, widths = quantize.bit_widths({("fc", 2): 0.3, ("fc", 8): -0.1}, {"fc": 8}, "Rise").axes
    assert heights(costs) == [0.3, 0.0]
    assert heights(widths) == [8]


def test_softened_outputs_show_the_likeliest_classes_in_the_order_of_the_labels():
    classes = distill.MOST_CLASSES + 2
    plain = np.linspace(0.0, 1.0, classes)[None]  # the first two classes are the least likely
    labels = [str(i) for i in range(classes)]
    [axes] = distill.softened_outputs(plain, plain, plain, 4.0, labels, ["true"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == labels[2:]


def test_a_feature_map_is_drawn_as_it_is_and_an_image_with_its_channels_last():
    image, found = np.zeros((3, 4, 5)), np.eye(4)
    shown = [axes.images[0].get_array().shape for axes in distill.feature_maps({"image": image, "conv": found}).axes]
    assert shown == [(4, 5, 3), (4, 4)]


def test_singular_values_are_drawn_over_the_largest_with_the_ranks():
    [axes] = decompose.singular_values({"fc": [np.array([4.0, 2.0, 1.0])]}, {"fc": (2,)}).axes
    values, rank = axes.lines
    assert values.get_ydata().tolist() == [1.0, 0.5, 0.25]
    assert rank.get_xdata()[0] == 2


def test_singular_values_of_an_empty_layer_are_no_division_by_zero():
    [axes] = decompose.singular_values({"fc": [np.zeros(2)]}, {"fc": (1,)}).axes
    assert axes.lines[0].get_ydata().tolist() == [0.0, 0.0]


def test_the_pareto_front_has_a_panel_for_each_pair_of_objectives():
    trials = [[0.9, 2.0, 5.0], [0.8, 1.0, 4.0], [0.7, 3.0, 6.0]]
    figure = tuning.pareto_front(trials, {"0 knee": trials[0], "1": trials[1]}, ["accuracy", "size_mb", "latency_ms"])
    assert len(figure.axes) == 3
    assert figure.axes[0].lines[0].get_xdata().tolist() == [1.0, 2.0]  # in the order of the size
    assert {text.get_text() for text in figure.axes[0].texts} == {"0 knee", "1"}


def test_pyplot_keeps_no_figure():
    import matplotlib.pyplot as plt

    figure = tuning.with_pyplot(lambda: plt.subplots()[1])
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []


@pytest.mark.parametrize("before", [None, np.array([[1, 1], [0, 2]])])
def test_confusion_is_in_shares_of_the_true_class(before):
    figure = runs.confusion_matrices(before, np.array([[3, 1], [0, 0]]), ["a", "b"])
    assert len(figure.axes) == (1 if before is None else 2)
    assert figure.axes[-1].images[0].get_array().tolist() == [[0.75, 0.25], [0.0, 0.0]]


def test_a_layer_that_is_gone_has_an_empty_bar():
    [axes] = runs.bars_by_layer(
        [{"layer": "a", "n": 4}, {"layer": "b", "n": 2}], [{"layer": "a", "n": 3}], "n", "N"
    ).axes
    assert heights(axes) == [4, 2, 3, 0]
