"""GPTQ's updates against the formula and worked cases, and the method on decoders."""

import copy

import pytest
import torch

from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods import method
from compression.methods.blockwise.blocks import find_blocks, short_example
from compression.methods.blockwise.moments import inverse_factor
from compression.methods.quantize.calibration.rounding import column_order, round_columns
from compression.methods.quantize.calibration.weights import quantize_dequantize, weight_qparams
from compression.models import storage
from compression.nn.inputs import forward
from compression.nn.quantized import QParams, QuantLinear, dequantize, merge_groups, split_groups
from compression.runs.machine import accelerator
from compression.tasks.task import evaluate
from compression.training.context import Context
from tests.conftest import Kept, kept_child
from tests.methods.blockwise.decoders import FORMS, make
from tests.methods.tiny_language import language_task


def correlated(count=300, features=24, seed=0):
    torch.manual_seed(seed)
    return (torch.randn(count, 5) @ torch.randn(5, features) + 0.3 * torch.randn(count, features)).double()


def rounded(weight, qparams, hessian, order=None, keep=None, dampening=0.01):
    order = torch.arange(len(hessian)) if order is None else order
    return round_columns(weight, qparams, inverse_factor(hessian[order][:, order], dampening), order, keep)


def values_of(codes, qparams):
    groups = split_groups(codes.float(), qparams.granularity, qparams.group_size)
    return merge_groups(dequantize(groups, qparams.scale.unsqueeze(2), qparams.zero_point.unsqueeze(2)), codes.shape)


def whole_numbers(rows=1, bits=4):
    return QParams(bits, torch.ones(rows, 1), torch.zeros(rows, 1), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def test_two_columns_by_hand():
    # H = (2, 1; 1, 2). Weight (1.4, 0.25): the first goes to 1, off by 0.4. The error that is left is least where the
    # second takes H_21 / H_22 = 1/2 of that on itself: 0.25 + 0.2 = 0.45, which goes to 0.
    hessian = torch.tensor([[2.0, 1.0], [1.0, 2.0]]).double()
    assert rounded(torch.tensor([[1.4, 0.25]]), whole_numbers(), hessian, dampening=0.0).tolist() == [[1.0, 0.0]]
    # With 0.35 it is 0.55, which goes to 1; rounding to the nearest would leave it at 0.
    assert rounded(torch.tensor([[1.4, 0.35]]), whole_numbers(), hessian, dampening=0.0).tolist() == [[1.0, 1.0]]
    # The other way round, 0.35 goes to 0 first, and 1.4 + 0.35 / 2 = 1.575 to 2.
    backwards = rounded(torch.tensor([[1.4, 0.35]]), whole_numbers(), hessian, torch.tensor([1, 0]), dampening=0.0)
    assert backwards.tolist() == [[2.0, 0.0]]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("granularity", ["channel", "group"])
def test_with_inputs_that_are_not_correlated_it_is_rounding_to_the_nearest(granularity, symmetric):
    torch.manual_seed(0)
    weight = torch.randn(6, 20)
    qparams = weight_qparams(weight, 3, granularity, 8, symmetric)
    hessian = torch.diag(torch.rand(20).double() + 0.1)
    codes = rounded(weight, qparams, hessian, column_order(hessian))
    torch.testing.assert_close(values_of(codes, qparams), quantize_dequantize(weight, qparams), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_the_outputs_are_closer_than_those_of_the_nearest_levels(bits, symmetric):
    inputs, weight = correlated(), torch.randn(16, 24)
    qparams = weight_qparams(weight, bits, "group", 8, symmetric, observer="minmax")
    hessian = inputs.T @ inputs
    nearest = quantize_dequantize(weight, qparams)
    for order in (None, column_order(hessian)):
        made = values_of(rounded(weight, qparams, hessian, order), qparams)
        errors = [(inputs @ (w - weight).double().T).square().sum() for w in (made, nearest)]
        assert errors[0] < 0.7 * errors[1]


def test_the_scales_are_those_of_each_group_whatever_the_order():
    inputs, weight = correlated(), torch.randn(4, 24)
    qparams = weight_qparams(weight, 4, "group", 8, observer="minmax")
    torch.testing.assert_close(qparams.scale[:, 1], _symmetric_scale(weight[:, 8:16]))
    codes = rounded(weight, qparams, inputs.T @ inputs, torch.randperm(24))
    assert codes.min() >= -8
    assert codes.max() <= 7
    # No code is further off than what the updates moved its weight by: in another group's scale it would be.
    assert (values_of(codes, qparams) - weight).abs().max() < 3 * qparams.scale.max()


def _symmetric_scale(group):
    return torch.maximum(group.amax(1) / 7, -group.amin(1) / 8)


@pytest.mark.parametrize("columns", [5, 8, 24])
def test_correcting_a_block_of_columns_at_a_time_changes_nothing(columns, monkeypatch):
    inputs, weight = correlated(), torch.randn(4, 24)
    qparams = weight_qparams(weight, 3)
    at_once = rounded(weight, qparams, inputs.T @ inputs)
    monkeypatch.setattr("compression.methods.quantize.calibration.rounding.COLUMNS", columns)
    assert torch.equal(rounded(weight, qparams, inputs.T @ inputs), at_once)


def test_pruned_weights_stay_zero_and_the_others_make_up_for_them():
    inputs, weight = correlated(), torch.randn(8, 24)
    keep = torch.rand(8, 24) > 0.5
    qparams = weight_qparams(weight * keep, 4, symmetric=False)
    made = values_of(rounded(weight * keep, qparams, inputs.T @ inputs, keep=keep), qparams)
    assert (made[~keep] == 0).all()


@pytest.mark.parametrize("form", FORMS)
def test_the_blocks_are_quantized_and_embeddings_and_head_are_not(form, make_context):
    task, model = language_task(), make(form)
    tokens = model.get_input_embeddings().weight.clone()
    made = method("gptq")(group_size=16, calibration_samples=32).apply(model, make_context(task, copy.deepcopy(model)))
    quantized = [name for name, m in made.named_modules() if isinstance(m, QuantLinear)]
    assert len(quantized) == len([n for n in quantized if ".0." in n]) * 2 >= 8
    assert type(made.get_output_embeddings()) is torch.nn.Linear
    assert torch.equal(made.get_input_embeddings().weight, tokens)
    assert not any(type(m) is torch.nn.Linear for name, m in made.named_modules() if ".0." in f"{name}.")
    assert forward(made, task.example(2)).isfinite().all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    task, model = language_task(), make("llama")
    none = dict.fromkeys(("load", "build"))
    folder = tmp_path_factory.mktemp("trained")
    context = Context(task, model, accelerator(True, "no"), Kept(), 0, folder, child=kept_child, **none)
    return task, method("finetune")(epochs=3).apply(model, context).eval()


class TestOnADecoderThatKnowsItsTask:
    def made(self, trained, make_context, name, **fields):
        task, model = trained
        context = make_context(task, copy.deepcopy(model))
        step = method(name)(calibration_samples=64, **fields)
        return step.apply(copy.deepcopy(model), context), context

    def test_it_loses_less_than_rounding_to_the_nearest(self, trained, make_context):
        task, model = trained
        floats = evaluate(model, task.test, task)["perplexity"]
        options = {"bits": 2, "group_size": 16}
        gptq, context = self.made(trained, make_context, "gptq", **options)
        nearest = copy.deepcopy(model)
        for name, layer in [(n, m) for n, m in nearest.named_modules() if n in _blocks_layers(context)]:
            qparams = weight_qparams(layer.weight, 2, "group", 16, observer="minmax")
            nearest.set_submodule(name, QuantLinear.from_float(layer, qparams))
        lost = [evaluate(m.eval(), task.test, task)["perplexity"] - floats for m in (gptq, nearest)]
        assert 0 < lost[0] < 0.8 * lost[1]

    @pytest.mark.parametrize("fields", [{}, {"symmetric": False}, {"granularity": "channel", "bits": 3}])
    def test_it_reloads_with_equal_answers(self, fields, trained, make_context, tmp_path):
        task, _ = trained
        model, _ = self.made(trained, make_context, "gptq", **({"group_size": 16} | fields))
        again = storage.load(storage.save(model, tmp_path / "model", {}))
        with torch.no_grad():
            torch.testing.assert_close(forward(again, task.example(4)), forward(model, task.example(4)))

    def test_it_exports_with_equal_answers(self, trained, make_context, tmp_path):
        task, _ = trained
        model, _ = self.made(trained, make_context, "gptq", group_size=16, symmetric=False)
        file = export(model, task.example(4), tmp_path / "model.onnx")
        assert check_parity(model, file, task.test, task, threads=1).agreement >= 0.998

    def test_skipped_layers_stay_in_floats(self, trained, make_context):
        model, _ = self.made(
            trained, make_context, "gptq", skip=("model.layers.0.mlp", "model.layers.1.self_attn.k_proj")
        )
        left = {name for name, m in model.named_modules() if type(m) is torch.nn.Linear}
        assert left == {
            "lm_head",
            "model.layers.1.self_attn.k_proj",
            *(f"model.layers.0.mlp.{part}_proj" for part in ("gate", "up", "down")),
        }

    def test_names_that_are_no_layer_of_a_block_are_refused(self, trained, make_context):
        with pytest.raises(UserError, match="skip names 'lm_head', which is no layer"):
            self.made(trained, make_context, "gptq", skip=("lm_head",))
        with pytest.raises(UserError, match="no linear layer in its blocks that is not skipped"):
            self.made(trained, make_context, "gptq", skip=("model",))

    def test_too_few_inputs_for_the_dampening_are_told(self, trained, make_context):
        task, model = trained
        context = make_context(task, copy.deepcopy(model))
        method("gptq")(calibration_samples=1, dampening=1e-12).apply(copy.deepcopy(model), context)
        assert "Too few different inputs for a dampening of 1e-12" in context.record.warnings[0]

    def test_a_pruned_model_stays_pruned(self, trained, make_context):
        task, model = trained
        context = make_context(task, copy.deepcopy(model))
        pruned = method("wanda")(pattern="2:4", examples=64).apply(copy.deepcopy(model), context)
        zeros = pruned.model.layers[0].mlp.up_proj.weight == 0
        made = method("gptq")(calibration_samples=64).apply(pruned, context)
        assert (made.model.layers[0].mlp.up_proj.weight[zeros] == 0).all()
        assert zeros.float().mean() == 0.5


def _blocks_layers(context):
    return find_blocks(context.original, short_example(context.task.example(2))).layers


def test_what_is_no_transformer_is_refused_before_anything_trains(task, make_context):
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    with pytest.raises(UserError, match="is no transformer that can be compressed block by block"):
        method("gptq")().check(model, make_context(task, model))
