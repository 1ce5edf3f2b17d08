"""Texts of one length need no attention mask: all methods on layers do with them what they do with a mask of ones."""

import copy

import pytest
import torch

from compression.methods import method
from tests.conftest import tiny_bert, words, words_task

STEPS = {
    "drop_layers": {"order": "importance", "examples": 16},
    "l0": {"epochs": 1, "batch_size": 32},
    "layerwise": {"layers": 2, "epochs": 1},
    "feature": {"layers": 2, "epochs": 1},
    "wanda": {},
}


def splits(with_mask):
    """Splits of 32 texts without padding, given with a mask of ones or without one."""
    for name, split in {"train": words(32, 1), "validation": words(32, 2), "test": words(32, 3)}.items():
        ids = split.inputs["input_ids"].clamp(min=1)
        named = {"input_ids": ids} | ({"attention_mask": torch.ones_like(ids)} if with_mask else {})
        split.inputs.clear()
        split.inputs.update(named)
        yield name, split


@pytest.mark.parametrize("name", STEPS)
def test_no_mask_is_a_mask_of_ones(name, make_context):
    torch.manual_seed(0)
    bert = tiny_bert()
    found = []
    for with_mask in (True, False):
        task = words_task(**dict(splits(with_mask)))
        torch.manual_seed(1)
        context = make_context(task, copy.deepcopy(bert))
        model = method(name)(**STEPS[name]).resolved(task).apply(copy.deepcopy(bert), context)
        found.append(model.state_dict())
    assert found[0].keys() == found[1].keys()
    for key, tensor in found[0].items():
        torch.testing.assert_close(tensor, found[1][key], msg=key)
