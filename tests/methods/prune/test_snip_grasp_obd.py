"""The pruners that score every weight by derivatives of the loss, against formulas and a worked case."""

import copy

import pytest
import torch
from torch.nn import functional as F

from compression import models
from compression.methods import method
from compression.methods.prune import grasp, obd, snip
from compression.tasks.task import evaluate
from tests.methods.prune.conftest import sparsity, zeros

NAMES = ["snip", "grasp", "obd"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("wanted", [0.3, 0.9])
def test_the_target_is_met(name, wanted, knowing):
    model, context = knowing
    assert sparsity(method(name)(sparsity=wanted, examples=64).apply(model, context)) == pytest.approx(wanted, abs=1e-3)


@pytest.mark.parametrize("name", NAMES)
def test_zeros_stay_zeros_through_finetune(name, knowing):
    model, context = knowing
    model = method(name)(examples=64).apply(model, context)
    before = zeros(model)
    after = zeros(method("finetune")(epochs=1).apply(model, context))
    assert all((after[layer] >= gone).all() for layer, gone in before.items())
    assert sparsity(model) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize("name", ["snip", "grasp"])
def test_pruned_before_training_the_task_is_still_learned(name, task, make_context):
    torch.manual_seed(0)
    old = models.build("digits_cnn", task)
    context = make_context(task, old)
    model = method(name)(sparsity=0.8, untrained=True).apply(copy.deepcopy(old), context)
    assert not torch.equal(model.fc.weight, old.fc.weight)
    model = method("finetune")(epochs=5).apply(model, context)
    assert sparsity(model) == pytest.approx(0.8, abs=1e-3)
    assert evaluate(model, task.test, task)["accuracy"] > 0.9


@pytest.mark.parametrize("name", NAMES)
def test_every_score_changes_with_the_data_and_none_changes_the_weights_that_stay(name, knowing):
    model, context = knowing
    before = copy.deepcopy(model).state_dict()
    pruned = method(name)(examples=64).apply(model, context)
    for layer, gone in zeros(pruned).items():
        assert torch.equal(pruned.get_submodule(layer).weight[~gone], before[f"{layer}.weight"][~gone])


def test_connection_sensitivity_is_the_normalised_product_of_gradient_and_weight():
    found = snip.sensitivity(
        {"a": torch.tensor([1.0, -2.0]), "b": torch.tensor([3.0])},
        {"a": torch.tensor([-4.0, 1.0]), "b": torch.tensor([0.0])},
    )
    torch.testing.assert_close(found, {"a": torch.tensor([4 / 6, 2 / 6]), "b": torch.tensor([0.0])})


def test_connection_sensitivity_is_the_derivative_by_the_connection(task, make_context):
    torch.manual_seed(0)
    model = models.build("mlp", task)
    context = make_context(task, model)
    weights, gradient = method("snip")(examples=1000).weights_and_gradients(model, context)
    torch.testing.assert_close(weights["fc"], model.fc.weight.detach())
    inputs, targets = next(task.train.batches(1000))
    connections = torch.ones_like(model.fc.weight, requires_grad=True)
    last = F.linear(model.stages(inputs.flatten(1)), model.fc.weight * connections, model.fc.bias)
    [wanted] = torch.autograd.grad(F.cross_entropy(last, targets), connections)
    torch.testing.assert_close(gradient["fc"] * weights["fc"], wanted.detach(), rtol=1e-4, atol=1e-7)


def test_the_hessian_times_the_gradient_is_that_of_a_quadratic():
    hessian = torch.tensor([[2.0, 1.0], [1.0, 4.0]])
    w = torch.tensor([1.0, -1.0], requires_grad=True)

    def losses():  # in two parts, whose sum is w H w / 2
        yield 0.25 * w @ hessian @ w
        yield 0.25 * w @ hessian @ w

    # g = H w = (1, -3); H g = (2 - 3, 1 - 12)
    [product] = grasp.hessian_gradient_product(losses, [w])
    torch.testing.assert_close(product, torch.tensor([-1.0, -11.0]))
    # removing the first weight changes |g|^2 / 2 by about -w Hg = +1, the second by -11: the second is kept
    torch.testing.assert_close(grasp.grasp_scores(w, product), torch.tensor([-1.0, 11.0]))


def test_the_score_of_grasp_foretells_what_a_removal_does_to_the_gradients_norm():
    torch.manual_seed(0)
    half = torch.randn(6, 6)
    hessian, w = half @ half.T, torch.randn(6, requires_grad=True)
    [product] = grasp.hessian_gradient_product(lambda: [0.5 * w @ hessian @ w], [w])
    kept = grasp.grasp_scores(w, product)
    norm = (hessian @ w).square().sum() / 2
    step = 1e-3  # a small part of each removal, as the score is of first order
    for i in range(6):
        less = w.detach() * (1 - step * F.one_hot(torch.tensor(i), 6))
        change = ((hessian @ less).square().sum() / 2 - norm).item()
        assert change == pytest.approx(-step * kept[i].item(), rel=0.02, abs=1e-3)


def test_saliency_is_half_curvature_times_the_square():
    found = obd.saliency(torch.tensor([2.0, -3.0]), torch.tensor([0.5, 1.0]))
    assert found.tolist() == [1.0, 4.5]


def test_scores_leave_gradients_and_running_statistics_alone(knowing):
    model, context = knowing
    statistics = {n: b.clone() for n, b in model.named_buffers()}
    for name in NAMES:
        method(name)(examples=64).apply(model, context)
    assert all(p.requires_grad for p in model.parameters())
    for name, buffer in statistics.items():
        assert torch.equal(model.get_buffer(name), buffer)
