"""Random networks: at settings that lose next to nothing, every method answers as the floats do, or refuses."""

import copy
import os

import pytest
import torch

import compression as lab
from compression import methods
from compression.errors import UserError
from compression.methods.quantize.graph.equalization import equalize
from compression.methods.quantize.graph.folding import fold_batch_norms
from compression.nn.inputs import forward
from compression.nn.modular import modularize
from tests.conftest import stripes_task
from tests.methods.test_other_networks import BOUND, difference
from tests.random_networks import random_network

# Settings at which each method has next to nothing to lose; per tensor scales (lsq) and training lose more.
LOSSLESS = (
    "static", "static:equalize=true,bias_correction=true", "qat:epochs=0", "mixed:widths=8,budget=1", "dynamic:bits=8",
    "weight_only:bits=8", "half", "cluster:bits=8,epochs=0", "magnitude:sparsity=0", "svd:rank=energy,energy=0.9999",
    "tucker:rank=energy,energy=0.9999",
)  # fmt: skip
# `make test-networks` tries 300, benchmarks/random_networks.py every recipe on as many as it is told.
SEEDS = range(int(os.environ.get("RANDOM_NETWORKS", "66")))
EXACT = 1e-4


@pytest.fixture(scope="module")
def task():
    return stripes_task()


def applied(recipe, model, context):
    [step] = methods.parse(recipe)
    return step.resolved(context.task).apply(copy.deepcopy(model).requires_grad_(True), context).eval()


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_network_answers_as_before(seed, task, make_context):
    model = random_network(seed)
    recipe = LOSSLESS[seed % len(LOSSLESS)]
    try:
        made = applied(recipe, model, make_context(task, model))
    except UserError:  # one sentence: it cannot be done
        return
    assert difference(model, made, task) < BOUND, recipe


@pytest.mark.parametrize("seed", SEEDS)
def test_rewriting_a_random_network_changes_no_answer(seed, task):
    model = random_network(seed)
    rewritten = modularize(copy.deepcopy(model), task.example(4))
    fold_batch_norms(rewritten, task.example(4))
    equalize(rewritten, task.example(4))
    assert difference(model, rewritten, task) < EXACT


@pytest.mark.parametrize("seed", range(0, 66, 11))
def test_a_random_network_is_deployed_stored_and_read_back(seed, task, tmp_path):
    model = random_network(seed)
    data = {split: (part.prepare(part.inputs), part.targets) for split, part in task.splits().items()}
    result = lab.compress(model, "static", lab.task(**data, classes=task.labels), threads=1)  # compares with its file
    again = lab.load(result.save(tmp_path / "small"), like=lambda: random_network(seed))
    assert torch.equal(forward(again, task.example(4)), forward(result.model, task.example(4)))
