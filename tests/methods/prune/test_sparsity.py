import pytest

from compression import methods
from compression.errors import UserError
from compression.methods.prune.masks.sparsity import layer_sparsities, layer_targets, mean_sparsity, sparsity_table
from tests.methods.prune.conftest import sparsity


def test_sparsities_of_layers_read_within_the_grammar_of_chains():
    [step] = methods.parse("magnitude:sparsity=0.5,layers=stages.0.conv:0.2/fc:0")
    assert step.layers == {"stages.0.conv": 0.2, "fc": 0.0}
    assert methods.parse(methods.text([step])) == (step,)


@pytest.mark.parametrize("text", ["fc", "fc:", ":0.5", "fc:1", "fc:-0.1", "fc:much", "fc:0.5/", "fc:nan"])
def test_what_is_no_sparsity_is_refused_with_the_form_it_takes(text):
    with pytest.raises(
        UserError, match=r"layers=.*; it takes a name with a number for each, a:x/b:y, each in \[0, 1\)"
    ):
        methods.method("magnitude")(layers=text)


def test_the_longest_name_wins():
    names = ["stages.0.conv", "stages.1.conv", "stages.10.conv", "fc"]
    assert layer_targets({"stages": 0.1, "stages.1": 0.2}, names) == {
        "stages.0.conv": 0.1,
        "stages.1.conv": 0.2,
        "stages.10.conv": 0.1,
    }


def test_a_layer_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(UserError, match="names 'conv9', which is no prunable layer of the model; it has conv, fc"):
        layer_targets({"conv9": 0.1}, ["conv", "fc"])


def test_the_table_adds_up(knowing):
    model, _ = knowing
    before = layer_sparsities(model)
    methods.method("magnitude")(sparsity=0.7).apply(model, knowing[1])
    table = sparsity_table(before, model)
    assert [row["layer"] for row in table[:-1]] == list(before)
    assert (table[-1]["layer"], table[-1]["before"]) == ("total", 0.0)
    assert table[-1]["after"] == pytest.approx(sparsity(model), abs=1e-6)
    assert table[-1]["weights"] == sum(row["weights"] for row in table[:-1])
    assert mean_sparsity(layer_sparsities(model), model) == pytest.approx(sparsity(model), abs=1e-6)
