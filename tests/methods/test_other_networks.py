"""Networks of other people, at settings that lose next to nothing: each method answers as the floats do, or refuses."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression import methods
from compression.tasks.task import predict
from tests.conftest import stripes_task
from tests.networks import Network

QUANTIZERS = ("static", "qat:epochs=0", "lsq:epochs=0,bits=8,activation_bits=8", "mixed:widths=8,budget=1")
BOUND = 0.15  # of the logits' norm; a defect of the kinds below costs 0.3 to 1


def with_statistics(model):
    """Give batch norms statistics as a training leaves them."""
    torch.manual_seed(0)
    for m in model.modules():
        if isinstance(m, nn.modules.batchnorm._BatchNorm):
            if m.running_mean is not None:
                m.running_mean.normal_(0, 0.3)
                m.running_var.uniform_(0.3, 2.0)
            if m.affine:
                m.weight.data.uniform_(0.5, 2.0)
                m.bias.data.normal_(0, 0.3)
    return model.eval()


def conv(inputs=8, **options):
    return nn.Conv2d(inputs, 8, 3, **({"padding": 1} | options))


def norm_after_two_layers():
    return Network(
        lambda m, x: m.fc(m.relu(m.norm(m.b(m.relu(m.norm(m.a(x)))))).flatten(1)),
        a=conv(1), b=conv(), norm=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def norm_beside_its_input():
    def call(m, x):
        y = m.b(m.relu(m.a(x)))
        return m.fc(m.relu(m.norm(y) - y).flatten(1))

    return Network(call, a=conv(1), b=conv(), norm=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(512, 3))


def relu_in_place_before_norm():
    return Network(
        lambda m, x: m.fc(m.norm(m.relu(m.a(x))).flatten(1)),
        a=conv(1), norm=nn.BatchNorm2d(8), relu=nn.ReLU(inplace=True), fc=nn.Linear(512, 3),
    )  # fmt: skip


def layer_called_twice_with_two_norms():
    return Network(
        lambda m, x: m.fc(m.relu(m.second(m.b(m.relu(m.first(m.b(m.a(x))))))).flatten(1)),
        a=conv(1), b=conv(), first=nn.BatchNorm2d(8), second=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def norm_over_tokens():
    return Network(
        lambda m, x: m.fc(m.relu(m.norm(m.a(x.flatten(1).reshape(-1, 16, 4)))).flatten(1)),
        a=nn.Linear(4, 16), norm=nn.BatchNorm1d(16), relu=nn.ReLU(), fc=nn.Linear(256, 3),
    )  # fmt: skip


def other_paddings():
    return Network(
        lambda m, x: m.fc(m.relu(m.b(m.relu(m.a(x + 1)))).flatten(1)),
        a=conv(1, padding_mode="reflect"), b=conv(padding_mode="circular"), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def module_under_two_names():
    shared = conv()
    return Network(
        lambda m, x: m.fc(m.relu(m.q(m.relu(m.p(m.relu(m.a(x)))))).flatten(1)),
        a=conv(1), p=shared, q=shared, relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def norm_without_statistics():
    return Network(
        lambda m, x: m.fc(m.relu(m.norm(m.a(x))).flatten(1)),
        a=conv(1), norm=nn.BatchNorm2d(8, track_running_stats=False), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def weight_of_another_layer():
    def call(m, x):
        y = m.norm(m.a(x))
        return m.fc(m.relu(F.conv2d(y, m.b.weight, padding=1) + m.normb(m.b(y))).flatten(1))

    return Network(
        call, a=conv(1), norm=nn.BatchNorm2d(8), b=conv(), normb=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(512, 3)
    )


def weight_in_two_layers():
    a, b, c = conv(1), conv(), conv()
    c.weight = b.weight
    return Network(
        lambda m, x: m.fc(m.relu(m.norm(m.c(m.relu(m.b(m.relu(m.a(x))))))).flatten(1)),
        a=a, b=b, c=c, norm=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def arguments_by_name():
    return Network(
        lambda m, x: m.fc(input=m.relu(input=m.norm(input=m.a(input=x))).flatten(1)),
        a=conv(1), norm=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


def sum_in_place():
    def call(m, x):
        y = m.relu(m.norm(m.a(x)))
        z = m.b(y)
        z += y
        return m.fc(F.relu(z, inplace=True).mean((2, 3)))

    return Network(call, a=conv(1), norm=nn.BatchNorm2d(8), b=conv(), relu=nn.ReLU(inplace=True), fc=nn.Linear(8, 3))


def pool_before_a_relu_used_twice():
    return Network(
        lambda m, x: m.fc(m.relu(m.b(m.relu(m.pool(m.a(x))))).flatten(1)),
        a=conv(1), b=conv(), pool=nn.MaxPool2d(2), relu=nn.ReLU(), fc=nn.Linear(128, 3),
    )  # fmt: skip


def two_heads_in_a_dict():
    def call(m, x):
        y = m.relu(m.norm(m.a(x))).mean((2, 3))
        return {"logits": m.fc(y), "aux": m.aux(y)}

    return Network(call, a=conv(1), norm=nn.BatchNorm2d(8), relu=nn.ReLU(), fc=nn.Linear(8, 3), aux=nn.Linear(8, 3))


NETWORKS = {
    f.__name__: f
    for f in (
        norm_after_two_layers, norm_beside_its_input, relu_in_place_before_norm, layer_called_twice_with_two_norms,
        norm_over_tokens, other_paddings, module_under_two_names, norm_without_statistics, weight_of_another_layer,
        weight_in_two_layers, arguments_by_name, sum_in_place, pool_before_a_relu_used_twice, two_heads_in_a_dict,
    )
}  # fmt: skip


def difference(model, other, task):
    """RMS of the difference of the logits on the test split, as a share of their own RMS."""
    logits, others = predict(model, task.test)[0], predict(other, task.test)[0]
    return ((logits - others).square().mean() / logits.square().mean()).sqrt().item()


@pytest.fixture(scope="module")
def task():
    return stripes_task()


@pytest.mark.parametrize("recipe", QUANTIZERS)
@pytest.mark.parametrize("network", NETWORKS)
def test_eight_bits_answer_as_the_floats_do(network, recipe, task, make_context):
    torch.manual_seed(0)
    model = with_statistics(NETWORKS[network]())
    [step] = methods.parse(recipe)
    context = make_context(task, model)
    made = step.resolved(task).apply(copy.deepcopy(model).requires_grad_(True), context).eval()
    assert difference(model, made, task) < BOUND


def scaled_for_equalization(model):
    """Make the outputs of the layers very different, so that there is something to equalize."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.weight *= torch.logspace(-1, 1, len(module.weight)).view(-1, *[1] * (module.weight.ndim - 1))
    return model


def layer_fed_by_two():
    return Network(
        lambda m, x: m.fc(m.relu(m.c(m.relu(m.a(x))) + m.c(m.relu(m.b(x)))).flatten(1)),
        a=conv(1), b=conv(1), c=conv(), relu=nn.ReLU(), fc=nn.Linear(512, 3),
    )  # fmt: skip


@pytest.mark.parametrize("network", [layer_fed_by_two, weight_in_two_layers, sum_in_place, module_under_two_names])
def test_equalization_changes_no_answer(network, task):
    from compression.methods.quantize.graph.equalization import equalize
    from compression.methods.quantize.graph.folding import fold_batch_norms

    torch.manual_seed(0)
    model = scaled_for_equalization(with_statistics(network()))
    equalized = copy.deepcopy(model)
    fold_batch_norms(equalized, task.example(2))
    equalize(equalized, task.example(2))
    assert difference(model, equalized, task) < 1e-4
