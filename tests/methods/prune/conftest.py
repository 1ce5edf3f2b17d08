"""Fixtures of the pruners' tests: a trained model, and the zeros in a model's weights."""

import pytest
import torch

from compression import models
from compression.methods import method
from compression.nn import layers


@pytest.fixture
def knowing(task, make_context):
    """A context and a model that has learned the task."""
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, model)
    return method("finetune")(epochs=3).apply(model, context), context


def zeros(model):
    return {name: layers.weight(m) == 0 for name, m in layers.prunable_layers(model).items()}


def sparsity(model):
    return torch.cat([z.flatten() for z in zeros(model).values()]).float().mean().item()
