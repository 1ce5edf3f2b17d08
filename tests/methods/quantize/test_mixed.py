import copy
import itertools
import math

import pytest
import torch
from torch import nn

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods import method, parse
from compression.methods.quantize.bit_allocation.knapsack import Option, allocate_bits
from compression.methods.quantize.bit_allocation.latency import fewest_layers
from compression.methods.quantize.bit_allocation.sensitivity import temporary_weight, weight_fisher
from compression.methods.quantize.calibration.weights import quantize_dequantize, weight_qparams
from compression.nn import layers
from compression.nn.quantized import QuantLinear


def least_cost(options, budget):
    """The least cost of any choice that fits."""
    fitting = [c for c in itertools.product(*options.values()) if sum(o.size for o in c) <= budget]
    return min(sum(o.cost for o in choice) for choice in fitting)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_the_assignment_is_the_best_of_all(seed, share):
    generator = torch.Generator().manual_seed(seed)
    draw = lambda low, high: int(torch.randint(low, high, (), generator=generator))  # noqa: E731
    sizes = [draw(10, 200) for _ in range(6)]
    options = {str(i): [Option(b, size * b, draw(0, 50) / b) for b in (2, 4, 8)] for i, size in enumerate(sizes)}
    budget = int(share * 8 * sum(sizes))
    chosen = allocate_bits(options, budget)
    assert sum(o.size for o in chosen.values()) <= budget
    assert sum(o.cost for o in chosen.values()) == pytest.approx(least_cost(options, budget))


def test_a_budget_that_nothing_meets_is_refused():
    with pytest.raises(UserError, match="budget allows 5 bytes, but the narrowest widths take 8"):
        allocate_bits({"a": [Option(2, 8, 0.0), Option(4, 16, 0.0)]}, 5)


@pytest.mark.parametrize(
    ("widths", "error"),
    [
        ("", "leaves every layer in floats"),
        ("2/9", "widths has 9; it takes bits from 1 to 8, or 32"),
        ("0/4", "widths=0 is out of range; it takes a list of whole numbers"),
        ("12", "widths has 12; it takes bits from 1 to 8, or 32"),
        ("8/16", "widths has 16; it takes bits from 1 to 8, or 32"),
        ("2/four", "widths='2/four' is not a list of whole numbers"),
    ],
)
def test_invalid_widths_are_refused(widths, error):
    with pytest.raises(UserError, match=error):
        method("mixed")(widths=widths)


@pytest.mark.parametrize("widths", ["2/4", "2,4", "2//4"])
def test_widths_are_a_list_with_any_separator(widths):
    assert method("mixed")(widths=widths).widths == (2, 4)


def test_widths_that_change_nothing_are_refused():
    with pytest.raises(UserError, match="leaves every layer in floats"):
        method("mixed")(widths="32")


@pytest.mark.parametrize("count", [1, 2, 7, 20])
def test_as_few_layers_become_integers_as_the_latency_asks_for(count):
    for needed in range(1, count + 1):
        asked = []
        assert fewest_layers(count, 0.5, lambda n: asked.append(n) or (0.5 if n >= needed else 0.6)) == needed  # noqa: B023
        assert len(asked) <= 2 + math.log2(count)


def test_a_latency_that_no_integers_meet_is_refused():
    with pytest.raises(UserError, match="latency=0.3 cannot be met: with every layer in integers .* takes 0.62 of"):
        fewest_layers(4, 0.3, lambda n: 1 - 0.095 * n)


def test_a_temporary_weight_is_taken_back():
    layer = nn.Linear(4, 3)
    before = layer.weight.detach().clone()
    with temporary_weight(layer, torch.ones(3, 4)):
        assert (layer.weight == 1).all()
    assert torch.equal(layer.weight, before)


def test_fisher_is_the_mean_of_squared_gradients(task, make_context):
    """One example alone: its squared gradient, whatever the batch."""
    torch.manual_seed(0)
    model = models.build("mlp", task).eval()
    context = make_context(task, copy.deepcopy(model))
    one = weight_fisher(model, {"fc": model.fc}, context, samples=1)["fc"]
    chosen = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(0))[:1]
    inputs, targets = next(task.train.select(chosen).batches(1))
    model.zero_grad()
    task.loss(model(inputs), targets).backward()
    torch.testing.assert_close(one, model.fc.weight.grad.square())


def test_the_model_keeps_its_budget_and_gives_bits_where_they_count(task, make_context):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    method("finetune")(epochs=2).apply(model, context)
    found = {}
    for budget in (0.13, 0.2):
        [step] = parse(f"mixed:budget={budget},calibration_samples=64")
        made = step.apply(copy.deepcopy(model), context)
        rows = context.record.tables["widths"]
        assert {row["layer"]: row["bits"] for row in rows} == {
            n: m.bits for n, m in layers.prunable_layers(made).items()
        }
        held = sum(m.packed.numel() + 4 * m.scale.numel() for m in layers.prunable_layers(made).values())
        assert held == sum(row["bytes"] for row in rows)
        assert held <= budget * 4 * sum(m.weight.numel() for m in layers.prunable_layers(model).values())
        found[budget] = sum(max(0.0, row[f"loss_{row['bits']}"]) for row in rows)
    assert found[0.2] <= found[0.13]
    assert set(context.record.figures) >= {"widths"}


def test_wider_is_less_sensitive():
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    errors = [
        (quantize_dequantize(weight, weight_qparams(weight, bits)) - weight).square().sum() for bits in (1, 2, 4, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_a_budget_of_time_is_kept_by_integers_in_as_few_layers_as_were_timed_to_keep_it(task, make_context):
    torch.manual_seed(0)
    spec = {"builder": "mlp", "arguments": {"outputs": 3, "input_shape": [1, 8, 8], "width": 8.0}}
    context = make_context(task, models.rebuild(spec))
    step = method("mixed")(latency=0.95, examples=32, calibration_samples=32)
    made = step.apply(copy.deepcopy(context.original), context)
    timed, rows = context.record.tables["latency"], context.record.tables["widths"]
    fewest = min(row["layers in integers"] for row in timed if row["share of time"] <= 0.95)
    sizes = {
        name: layer.weight.numel() for name, layer in layers.prunable_layers(context.original).items()
    }  # and its MACs
    order = sorted(rows, key=lambda row: max(0.0, row["loss_8"]) / sizes[row["layer"]])
    assert [row["bits"] for row in order] == [8] * fewest + [32] * (len(rows) - fewest)
    assert sum(isinstance(m, QuantLinear) for m in made.modules()) == fewest


def test_layers_that_lose_most_stay_in_floats_where_there_is_room(task, make_context, tmp_path):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    made = method("mixed")(widths="2/32", budget=0.7, examples=32, calibration_samples=32).apply(model, context).eval()
    rows = context.record.tables["widths"]
    assert {row["bits"] for row in rows} == {2, 32}
    held = sum(row["bytes"] for row in rows)
    assert held <= 0.7 * 4 * sum(m.weight.numel() for m in layers.prunable_layers(context.original).values())
    file = export(made, task.example(4), tmp_path / "model.onnx")
    check_parity(made, file, task.test, task, threads=1)
