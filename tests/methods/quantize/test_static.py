import copy

import pytest
import torch
from torch import nn

from compression import methods, models
from compression.deploy import measure
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods.quantize.calibration.activations import calibration_batches, observe_inputs
from compression.methods.quantize.graph.folding import fold_batch_norms
from compression.methods.quantize.static import Static, mean_output_error
from compression.models import storage
from compression.nn.hooks import on_forward
from compression.nn.quantized import QuantAdd, QuantAvgPool2d, QuantConv2d, QuantEmbedding, QuantInput, QuantLinear
from compression.tasks.task import evaluate, predict
from tests.conftest import tiny_bert, words_task
from tests.deploy.graphs import optimized_graph
from tests.methods.quantize.test_folding import model_with_statistics


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A residual network trained on the stripes."""
    from compression.runs.machine import accelerator
    from compression.training.context import Context
    from tests.conftest import Kept, stripes_task

    task = stripes_task()
    torch.manual_seed(0)
    model = models.build("resnet8", task)
    context = Context(
        task, model, accelerator(True, "no"), Kept(), 0, tmp_path_factory.mktemp("trained"), None, None, None
    )
    methods.method("finetune")(epochs=4).apply(model, context)
    return task, model.eval()


def apply(step, model, task, make_context):
    context = make_context(task, model)
    return step.apply(copy.deepcopy(model), context).eval(), context


def noise(model, other, task):
    """The mean squared difference of the logits."""
    return (predict(model, task.test)[0] - predict(other, task.test)[0]).square().mean().item()


def test_everything_between_input_and_logits_becomes_integers(trained, make_context):
    task, model = trained
    made, context = apply(Static(), model, task, make_context)
    kinds = [type(m) for m in made.modules()]
    assert not {nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.AdaptiveAvgPool2d} & set(kinds)
    assert (kinds.count(QuantConv2d), kinds.count(QuantLinear)) == (9, 1)
    assert (kinds.count(QuantAdd), kinds.count(QuantAvgPool2d)) == (3, 1)
    assert evaluate(made, task.test, task)["accuracy"] >= evaluate(model, task.test, task)["accuracy"] - 0.02
    assert set(context.record.figures) == {"activation-ranges", "weight-ranges"}


# entropy clips this small network's activations too hard: it loses 6 points here, which is not understood yet
@pytest.mark.parametrize("observer", ["minmax", "moving_average", "percentile", "entropy", "mse"])
def test_every_observer_keeps_the_quality(observer, trained, make_context):
    task, model = trained
    made, _ = apply(Static(observer=observer, calibration_samples=64), model, task, make_context)
    assert evaluate(made, task.test, task)["accuracy"] >= evaluate(model, task.test, task)["accuracy"] - 0.05


def test_more_bits_are_closer_to_the_floats(trained, make_context):
    task, model = trained
    errors = [
        noise(apply(Static(bits=bits, activation_bits=max(2, bits)), model, task, make_context)[0], model, task)
        for bits in (2, 4, 6, 8)
    ]
    assert errors == sorted(errors, reverse=True)


def test_layers_that_share_an_input_get_the_same_range(trained, make_context):
    task, model = trained
    made, _ = apply(Static(observer="mse"), model, task, make_context)
    block = made.stages[0][0]
    assert torch.equal(block.conv1.input.scale, block.add.right.scale)
    assert torch.equal(block.conv1.input.zero_point, block.add.right.zero_point)


def test_skipped_layers_stay_and_unknown_ones_are_refused(trained, make_context):
    task, model = trained
    made, _ = apply(Static(skip="stem/fc"), model, task, make_context)
    assert type(made.stem.conv) is nn.Conv2d
    assert [type(m) for m in made.fc] == [QuantInput, nn.Linear]  # behind integers, which go to it in 8 bits
    assert torch.equal(made.fc.layer.weight, model.fc.weight)
    assert type(made.stages[0][0].conv1) is QuantConv2d
    with pytest.raises(UserError, match="skip names 'head', which is no layer of the model; it has stem.conv, .*fc"):
        apply(Static(skip="head"), model, task, make_context)
    with pytest.raises(UserError, match="nothing to quantize"):
        apply(Static(skip="stem/stages/fc"), model, task, make_context)


def test_quantizing_twice_is_refused(trained, make_context):
    task, model = trained
    made, _ = apply(Static(), model, task, make_context)
    with pytest.raises(UserError, match="The model is quantized already"):
        apply(Static(), made, task, make_context)


def test_calibration_uses_training_examples_only(trained, make_context):
    task, model = trained
    context = make_context(task, model)
    data = calibration_batches(context, 40)
    assert [len(b) for b in data] == [32, 8]
    training_examples = {tuple(image.flatten().tolist()) for image in task.train.prepare(task.train.inputs)}
    assert all(tuple(image.flatten().tolist()) in training_examples for batch in data for image in batch)
    assert torch.equal(calibration_batches(context, 40)[0], data[0])


def test_statistics_are_those_of_the_inputs_of_a_layer(trained, make_context):
    task, model = trained
    data = calibration_batches(make_context(task, model), 64)
    statistics = observe_inputs(model, {"stem.conv": model.stem.conv, "add": model.stages[0][0].add}, data)
    [first] = statistics["stem.conv"]
    assert first.minima.tolist() == [batch.min().item() for batch in data]
    assert first.maxima.tolist() == [batch.max().item() for batch in data]
    torch.testing.assert_close(first.means, torch.stack([b.mean((0, 2, 3)) for b in data]).mean(0))
    assert len(statistics["add"]) == 2
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_padding_is_in_no_statistics():
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(3, 2)

        def forward(self, input_ids, attention_mask):
            return self.fc(input_ids.float().unsqueeze(2).expand(-1, -1, 3)).mean(1)

    ids = torch.tensor([[1, 2, 900], [3, -900, -900]])
    inputs = {"input_ids": ids, "attention_mask": (ids.abs() < 10).long()}
    model = Reader()
    [found] = observe_inputs(model, {"fc": model.fc}, [inputs])["fc"]
    assert (found.minima.tolist(), found.maxima.tolist()) == ([1.0], [3.0])
    assert set(found.sample.tolist()) == {1.0, 2.0, 3.0}
    assert found.means.tolist() == [2.0, 2.0, 2.0]


def test_the_mean_error_of_a_weight_by_hand():
    error = torch.tensor([[[[1.0, 2.0]], [[0.0, -1.0]]]])  # one output, two inputs, a kernel of 1x2
    assert mean_output_error(error, torch.tensor([10.0, 100.0])).tolist() == [3 * 10 - 1 * 100]
    grouped = torch.tensor([[[[1.0]]], [[[2.0]]]])  # two groups of one channel
    assert mean_output_error(grouped, torch.tensor([10.0, 100.0]), groups=2).tolist() == [10, 200]
    assert mean_output_error(torch.tensor([[1.0, -1.0]]), torch.tensor([5.0, 2.0])).tolist() == [3]


def output_error(made, model, name, task):
    """The mean squared error of the outputs of a layer of the integer network on what it is given there."""
    caught = []
    layer = made.get_submodule(name)
    with on_forward({name: layer}, lambda call: caught.append((call.inputs[0], call.output))):
        predict(made, task.test)
    [(inputs, outputs)] = caught[:1]
    exact = model.get_submodule(name)
    with torch.no_grad():
        return (outputs - exact(layer.input(inputs))).square().mean().item()


@pytest.mark.parametrize("bits", [3, 4])
def test_gptq_rounds_weights_so_that_the_outputs_are_nearer(bits, trained, make_context):
    task, model = trained
    folded = copy.deepcopy(model)
    fold_batch_norms(folded, task.example(4))
    errors = {}
    for rounding in ("nearest", "gptq"):
        step = Static(bits=bits, rounding=rounding, weight_observer="minmax")
        made, _ = apply(step, model, task, make_context)
        errors[rounding] = [
            output_error(made, folded, name, task) for name, m in made.named_modules() if isinstance(m, QuantConv2d)
        ]
    ratios = [gptq / nearest for gptq, nearest in zip(errors["gptq"], errors["nearest"], strict=True)]
    assert max(ratios) < 1.05
    assert sum(ratios) / len(ratios) < 0.6


def test_gptq_keeps_scales_and_what_was_pruned(trained, make_context):
    task, model = trained
    sparse = methods.method("magnitude")(sparsity=0.5).apply(copy.deepcopy(model), make_context(task, model))
    nearest, _ = apply(Static(bits=4, rounding="nearest"), sparse, task, make_context)
    found, _ = apply(Static(bits=4), sparse, task, make_context)
    for name, layer in found.named_modules():
        if isinstance(layer, (QuantConv2d, QuantLinear)):
            other = nearest.get_submodule(name)
            assert torch.equal(layer.scale, other.scale)
            assert not torch.equal(layer.codes, other.codes)
            pruned = sparse.get_submodule(name).weight == 0
            assert (layer.codes[pruned] == 0).all()


@pytest.mark.parametrize("fields", [{"granularity": "tensor"}, {"granularity": "group", "group_size": 8}, {"bits": 2}])
def test_gptq_rounds_whatever_shares_a_scale_and_grouped_convolutions(fields, make_context):
    torch.manual_seed(0)
    from tests.conftest import stripes_task

    task = stripes_task()
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(288, 3),
    ).eval()
    errors = []
    for rounding in ("nearest", "gptq"):
        step = Static(**({"bits": 3} | fields), rounding=rounding, weight_observer="minmax")
        made, _ = apply(step, model, task, make_context)
        errors.append(noise(made, model, task))
    assert errors[1] < errors[0]


def test_rounding_is_to_the_nearest_at_8_bits_and_by_gptq_below(trained, make_context):
    task, model = trained
    for bits, same in ((8, "nearest"), (6, "gptq")):
        auto, named = (apply(Static(bits=bits, rounding=r), model, task, make_context)[0] for r in ("auto", same))
        assert all(
            torch.equal(a, b) for a, b in zip(auto.state_dict().values(), named.state_dict().values(), strict=True)
        )


def test_bias_correction_takes_the_mean_error_out_of_a_linear_layer(make_context):
    from compression.nn.quantized import weight_code_range
    from tests.conftest import stripes_task

    task = stripes_task()
    model = model_with_statistics("mlp", task)
    first = model.stages[0].fc
    inputs = task.train.prepare(task.train.inputs).flatten(1)
    means = []
    for correct in (False, True):
        step = Static(bits=2, bias_correction=correct, calibration_samples=256)
        made, _ = apply(step, model, task, make_context)
        means.append((made.stages[0].fc(inputs) - first(inputs)).mean(0).abs().mean().item())
    assert means[1] < means[0] / 5
    assert weight_code_range(2, 8) == (-2, 1)


def test_equalization_helps_uneven_channels(make_context):
    from tests.conftest import stripes_task

    task = stripes_task()
    model = model_with_statistics("resnet8", task)
    with torch.no_grad():  # the same function, with channels of very different sizes between two layers
        spread = torch.logspace(-2, 2, model.stages[0][0].conv1.out_channels)
        model.stages[0][0].bn1.weight.mul_(spread)
        model.stages[0][0].bn1.bias.mul_(spread)
        model.stages[0][0].conv2.weight.div_(spread.view(1, -1, 1, 1))
    errors = [
        noise(apply(Static(granularity="tensor", equalize=e), model, task, make_context)[0], model, task)
        for e in (False, True)
    ]
    assert errors[1] < errors[0] / 2


def test_a_bert_with_static_ranges_answers_as_its_file(make_context, tmp_path):
    task = words_task()
    torch.manual_seed(0)
    model = tiny_bert(num_hidden_layers=1)
    made, _ = apply(Static(calibration_samples=64), model, task, make_context)
    kinds = [type(m) for m in made.modules()]
    assert (kinds.count(QuantLinear), kinds.count(QuantEmbedding)) == (6 + 2, 3)
    file = export(made, task.example(4), tmp_path / "model.onnx")
    check_parity(made, file, task.test, task, threads=1)


@pytest.mark.parametrize("chain", ["dynamic", "weight_only:group_size=16", "weight_only:bits=8,granularity=channel"])
def test_text_models_keep_their_answers(chain, make_context):
    task = words_task()
    torch.manual_seed(0)
    model = tiny_bert()
    [step] = methods.parse(chain)
    made, context = apply(step, model, task, make_context)
    assert not any(type(m) in (nn.Linear, nn.Embedding) for m in made.modules())
    ours, true = predict(made, task.test)[0], predict(model, task.test)[0]
    assert (ours - true).square().mean() < 0.01 * true.square().mean()
    assert set(context.record.figures) == {"weight-ranges"}


FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul")


@pytest.mark.parametrize("skipped", ["stages.0.0.conv2", "stages.1.0.conv1", "fc"])
def test_a_skipped_layer_is_the_only_one_that_is_computed_in_floats(skipped, trained, make_context, tmp_path):
    task, model = trained
    made, _ = apply(Static(skip=skipped, calibration_samples=64), model, task, make_context)
    file = export(made, task.example(4), tmp_path / "model.onnx")
    check_parity(made, file, task.test, task, threads=1)
    run = [node.op_type for node in optimized_graph(file).node]
    assert sum(kind in FLOAT_KERNELS for kind in run) == 1, run
    assert run.count("QLinearAdd") == 3
    tables = [measure.layer_table(m, task.example()) for m in (model, made)]
    assert [row["layer"] for row in tables[0]] == [row["layer"] for row in tables[1]]
    again = storage.load(storage.save(made, tmp_path / "model", {}))
    assert torch.equal(predict(again, task.test)[0], predict(made, task.test)[0])


@pytest.mark.parametrize(
    "recipe",
    ["static:activation_bits=4", "qat:activation_bits=3,epochs=0", "lsq:epochs=1", "lsq:activation_bits=8"],
)
def test_a_tensor_that_is_quantized_in_several_ways_leaves_no_layer_in_floats(recipe, trained, make_context, tmp_path):
    task, model = trained
    [step] = methods.parse(recipe)
    step = step.resolved(task)
    made, _ = apply(step, model, task, make_context)
    file = export(made, task.example(4), tmp_path / "model.onnx")
    check_parity(made, file, task.test, task, threads=1)
    run = [node.op_type for node in optimized_graph(file).node]
    assert not {*FLOAT_KERNELS, "Add"} & {*run}, run
    block = made.stages[0][0]
    assert [(type(m).__name__, m.bits) for m in block.conv1][0] == ("Quantize", 8)
    assert torch.equal(block.conv1.input.scale, block.add.right.scale)
