"""Matching of classes by their names."""

import random

import pytest
import torch
from torch import nn

from compression.models.classes import class_numbers, match_names, name_key, output_order, reorder_outputs
from compression.nn.inputs import forward
from tests.conftest import tiny_bert, words_task
from tests.random_networks import random_network

MNLI = ("entailment", "neutral", "contradiction")


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (("NEGATIVE", "POSITIVE"), ("negative", "positive"), [0, 1]),
        (("Positive", "negative"), ("negative", "positive"), [1, 0]),
        (("CONTRADICTION", "NEUTRAL", "ENTAILMENT"), MNLI, [2, 1, 0]),
        (("not entailment", "Entailment"), ("entailment", "not_entailment"), [1, 0]),
        (("C++", "C", "C#"), ("c", "c#", "c++"), [1, 2, 0]),
        (("cafe\u0301", "bar"), ("bar", "caf\u00e9"), [1, 0]),
        (("1", "-1"), ("-1", "1"), [1, 0]),
        (("+", "-"), ("-", "+"), [1, 0]),
    ],
)
def test_names_are_matched_whatever_their_case_and_signs(names, labels, order):
    assert match_names(names, labels) == order
    assert output_order(names, labels) == (order, True)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (("spam", "ham"), ("negative", "positive")),
        (("negative", "neutral", "positive"), MNLI),
        (("positive", "positive"), ("negative", "positive")),
        (("positive", "negative", "neutral"), ("negative", "positive")),
    ],
)
def test_other_names_do_not_match(names, labels):
    assert output_order(names, labels)[0] is None


@pytest.mark.parametrize(
    ("names", "labels", "order"),
    [
        (("LABEL_0", "LABEL_1", "LABEL_2"), MNLI, [0, 1, 2]),
        (("LABEL_2", "LABEL_0", "LABEL_1"), MNLI, [1, 2, 0]),
        (("class 1", "class 2", "class 3"), MNLI, [0, 1, 2]),
        (MNLI, ("0", "1", "2"), [0, 1, 2]),
        (("1", "0"), ("negative", "positive"), [1, 0]),
    ],
)
def test_names_that_are_numbers_only_say_the_order_and_no_more(names, labels, order):
    assert output_order(names, labels) == (order, False)


def test_a_number_keeps_its_sign():
    assert name_key("-1") != name_key("1")
    assert class_numbers(["LABEL_0", "1 star"]) is None


@pytest.mark.parametrize("seed", range(8))
def test_any_networks_outputs_are_reordered(seed):
    model, inputs = random_network(seed), torch.randn(4, 1, 8, 8)
    before = forward(model, inputs)
    order = random.Random(seed).sample(range(3), 3)
    reorder_outputs(model, order, inputs)
    torch.testing.assert_close(forward(model, inputs), before[:, order])


def test_a_transformers_outputs_are_reordered():
    model, inputs = tiny_bert(), words_task().example(4)
    before = model(**inputs).logits
    reorder_outputs(model, [2, 0, 1], inputs)
    torch.testing.assert_close(model(**inputs).logits, before[:, [2, 0, 1]])


def test_outputs_that_no_layer_makes_are_left_alone_and_refused():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x):
            return self.layer(x).sort(1).values

    model, inputs = Sorted(), torch.randn(5, 4)
    before = model(inputs)
    with pytest.raises(ValueError, match="no single layer"):
        reorder_outputs(model, [2, 0, 1], inputs)
    assert torch.equal(model(inputs), before)
