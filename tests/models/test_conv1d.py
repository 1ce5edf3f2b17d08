"""GPT-2's layers become linear ones that every method knows, and its files stay those of transformers."""

import pytest
import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

from compression import models
from compression.methods.prune.magnitude import Magnitude
from compression.models import storage
from compression.models.conv1d import as_stored, linearize, linearized
from compression.nn.inputs import forward
from tests.conftest import words_task


@pytest.fixture
def gpt2():
    torch.manual_seed(0)
    size = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 40, "vocab_size": 30, "pad_token_id": 0}
    config = transformers.GPT2Config(**size, num_labels=3)
    config._attn_implementation = "eager"
    return transformers.GPT2ForSequenceClassification(config).eval()


@pytest.fixture
def task():
    return words_task()


def test_a_linear_layer_takes_its_place_and_answers_alike(gpt2, task):
    expected = forward(gpt2, task.example(4))
    assert any(type(m) is Conv1D for m in gpt2.modules())
    linearize(gpt2)
    assert not any(type(m) is Conv1D for m in gpt2.modules())
    torch.testing.assert_close(forward(gpt2, task.example(4)), expected)
    assert len(linearized(gpt2)) == 8


def test_pruning_reaches_its_blocks_and_what_is_stored_is_read_by_transformers_too(gpt2, task, make_context, tmp_path):
    gpt2.save_pretrained(tmp_path / "whole")
    model = models.build(str(tmp_path / "whole"), task)
    pruned = Magnitude(sparsity=0.9).apply(model, make_context(task, model)).eval()
    weight = pruned.get_submodule("transformer.h.0.attn.c_proj").weight  # square: the wrong way round fits, too
    assert (weight == 0).float().mean() > 0.8
    folder = storage.save(pruned, tmp_path / "pruned", {})
    expected = forward(pruned, task.example(4))
    assert torch.equal(forward(storage.load(folder), task.example(4)), expected)
    again = transformers.AutoModelForSequenceClassification.from_pretrained(folder)
    torch.testing.assert_close(forward(again.eval(), task.example(4)), expected)


def test_a_layer_of_another_shape_or_class_is_stored_as_it_is(gpt2, task, tmp_path):
    gpt2.save_pretrained(tmp_path / "whole")
    model = models.build(str(tmp_path / "whole"), task).eval()
    mlp = model.transformer.h[0].mlp
    mlp.c_fc, mlp.c_proj = nn.Linear(32, 8), nn.Linear(8, 32)
    model.transformer.h[1].mlp.c_fc = nn.Sequential(nn.Linear(32, 4), nn.Linear(4, 128))
    again = storage.load(storage.save(model, tmp_path / "cut", {}))
    assert torch.equal(forward(again, task.example(4)), forward(model, task.example(4)))


def test_weights_are_the_other_way_round_within_the_block_alone(gpt2):
    model = linearize(gpt2)
    weight = model.transformer.h[0].attn.c_attn.weight
    with as_stored(model, linearized(model)):
        assert weight.shape == (32, 96)
    assert weight.shape == (96, 32)
