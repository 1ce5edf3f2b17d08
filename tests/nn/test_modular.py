"""Functions on images become modules that quantizers find; what would not stay the same network is left as it is."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression import models
from compression.nn.layers import Add, Concat
from compression.nn.modular import Modularized, modularize
from tests.networks import Network

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(call, **layers):
    torch.manual_seed(0)
    return Network(call, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), fc=nn.Linear(8, 2), **layers)


def pooled(pool):
    return network(lambda m, x: m.fc(pool(m.b(m.a(x))).flatten(1)))


def classes(model):
    return [type(m) for m in model.modules()]


@pytest.mark.parametrize("add", [torch.add, lambda y, x: y + x, lambda y, x: y.add(x), lambda y, x: y.add_(x)])
@pytest.mark.parametrize(
    "relu", [F.relu, torch.relu, torch.relu_, lambda y: y.relu(), lambda y: F.relu(y, inplace=True)]
)
def test_sums_and_relus_become_modules(add, relu):
    model = network(lambda m, x: (lambda y: m.fc(relu(add(m.b(y), y)).mean((2, 3))))(relu(m.a(x))))
    expected = model(IMAGES)
    made = modularize(model, IMAGES)
    assert isinstance(made, Modularized)
    assert (classes(made).count(Add), classes(made).count(nn.ReLU)) == (1, 2)
    torch.testing.assert_close(made(IMAGES), expected)
    assert dict(made.named_parameters()).keys() == dict(model.named_parameters()).keys()
    assert type(made).__name__ == "Network"


def test_a_sum_in_place_becomes_a_module():
    def call(m, x):
        y = m.a(x)
        z = m.b(y)
        z += y
        return m.fc(z.mean((2, 3)))

    assert classes(modularize(network(call), IMAGES)).count(Add) == 1


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: F.avg_pool2d(x, 8),
        lambda x: F.avg_pool2d(x, x.size()[3]),
        lambda x: F.avg_pool2d(x, x.shape[-2:]),
        lambda x: F.adaptive_avg_pool2d(x, 1),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)),
        lambda x: x.mean((2, 3)),
        lambda x: x.mean([-1, -2]),
        lambda x: torch.mean(x, dim=(2, 3), keepdim=True),
    ],
)
def test_every_way_to_average_an_image_becomes_the_pooling_that_is_quantized(pool):
    model = pooled(pool)
    made = modularize(model, IMAGES)
    assert classes(made).count(nn.AdaptiveAvgPool2d) == 1
    torch.testing.assert_close(made(IMAGES[:3]), model(IMAGES[:3]))


@pytest.mark.parametrize(
    "cat",
    [
        lambda x, y: torch.cat([x, y], 1),
        lambda x, y: torch.concat((x, y), dim=1),
        lambda x, y: torch.concatenate([x, y, x], axis=-3)[:, :16],
        lambda x, y: torch.cat(tensors=[x, y], dim=1),
    ],
)
def test_a_concatenation_of_channels_becomes_a_module(cat):
    model = Network(
        lambda m, x: m.fc(cat(m.a(x), m.b(x)).mean((2, 3))),
        a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(3, 8, 1), fc=nn.Linear(16, 2),
    )  # fmt: skip
    made = modularize(model, IMAGES)
    assert classes(made).count(Concat) == 1
    torch.testing.assert_close(made(IMAGES), model(IMAGES))


@pytest.mark.parametrize(
    "cat",
    [
        lambda x: torch.cat([x, x], 2).mean((2, 3)),  # along the height
        lambda x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1)[:, :8],  # of vectors
        lambda x: torch.cat(x.chunk(2, 1), 1).mean((2, 3)),  # of a tuple that is not known in advance
    ],
)
def test_other_concatenations_stay_functions(cat):
    model = network(lambda m, x: m.fc(cat(F.relu(m.b(m.a(x))))))
    made = modularize(model, IMAGES)
    assert Concat not in classes(made)
    torch.testing.assert_close(made(IMAGES), model(IMAGES))


def test_other_poolings_keep_their_options():
    model = pooled(
        lambda x: F.avg_pool2d(F.max_pool2d(x, 3, stride=2, padding=1, ceil_mode=True), 2, padding=1).amax((2, 3))
    )
    made = modularize(model, IMAGES)
    assert {nn.MaxPool2d, nn.AvgPool2d} <= set(classes(made))
    torch.testing.assert_close(made(IMAGES), model(IMAGES))


def test_dropout_stays_active_in_training_alone():
    model = network(lambda m, x: m.fc(F.dropout(F.relu(m.b(m.a(x))).mean((2, 3)), 0.5, m.training)))
    made = modularize(model.eval(), IMAGES)
    assert classes(made).count(nn.Dropout) == 1
    assert torch.equal(made(IMAGES), made(IMAGES))
    assert not torch.equal(made.train()(IMAGES), made(IMAGES))


def only_in_training(m, x):
    y = F.relu(m.b(m.a(x)))
    return m.fc((y * 2 if m.training else y).mean((2, 3)))


def by_values(m, x):
    y = F.relu(m.b(m.a(x)))
    return m.fc((y if y.sum() > 0 else -y).mean((2, 3)))


def seen_elsewhere_after_a_sum_in_place(m, x):
    y = m.a(x)
    first = y
    y = y.add_(1.0).add_(m.b(y))
    return m.fc((y + first).mean((2, 3)))


@pytest.mark.parametrize("call", [only_in_training, by_values, seen_elsewhere_after_a_sum_in_place])
def test_what_would_compute_something_else_stays_as_it_is(call):
    model = network(call)
    before = copy.deepcopy(model)(IMAGES)
    made = modularize(model, IMAGES)
    torch.testing.assert_close(made(IMAGES), before)
    assert made is model


def test_sums_that_are_no_residual_ones_stay():
    model = network(
        lambda m, x: m.fc((F.relu(m.a(x)) + 1 + m.bias).mean((2, 3)) + 3), bias=nn.Parameter(torch.ones(8, 1, 1))
    )
    made = modularize(model, IMAGES)
    assert Add not in classes(made)
    torch.testing.assert_close(made(IMAGES), model(IMAGES))


def test_a_network_of_modules_and_a_text_model_are_given_back():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 2))
    assert modularize(model, IMAGES) is model
    assert modularize(model, {"input_ids": torch.zeros(1, 1)}) is model


def test_a_copy_keeps_its_spec_and_the_name_of_its_class():
    model = network(lambda m, x: m.fc(F.relu(m.b(m.a(x))).mean((2, 3))))
    made = modularize(models.adopt(model, model, [3, 8, 8]), IMAGES)
    copied = copy.deepcopy(made)
    assert type(copied).__name__ == "Network"
    assert copied.spec == made.spec
    assert copied.spec is not made.spec
