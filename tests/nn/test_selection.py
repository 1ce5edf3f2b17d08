"""Names and beginnings of names select layers; the longest wins, and an unknown one is an error of the user."""

import pytest

from compression.errors import UserError
from compression.nn.selection import resolve_names

LAYERS = ["stem", "stages.0.conv1", "stages.0.conv2", "stages.01.conv1", "classifier"]


def test_a_name_selects_its_layer_and_a_beginning_the_layers_within():
    found = resolve_names(["classifier", "stages.0"], LAYERS, "skip")
    assert found == {"stages.0.conv1": "stages.0", "stages.0.conv2": "stages.0", "classifier": "classifier"}
    assert list(found) == ["stages.0.conv1", "stages.0.conv2", "classifier"]


def test_the_longest_name_wins():
    found = resolve_names(["stages", "stages.0.conv2", "stages.0"], LAYERS, "layers")
    assert found == {"stages.0.conv1": "stages.0", "stages.0.conv2": "stages.0.conv2", "stages.01.conv1": "stages"}


def test_no_names_select_no_layers():
    assert resolve_names([], LAYERS, "skip") == {}


@pytest.mark.parametrize("name", ["stage", "stem.0", ""])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(UserError, match=f"layers names '{name}', which is no prunable layer .*stem, .*classifier"):
        resolve_names([name], LAYERS, "layers", "prunable layer")


def test_the_refusal_says_that_a_model_has_no_layers():
    with pytest.raises(UserError, match="it has none"):
        resolve_names(["stem"], [], "skip")
