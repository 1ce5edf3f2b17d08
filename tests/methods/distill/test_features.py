"""Which layers are compared, their recorded outputs, and that no hooks remain."""

import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods import method, parse, text
from compression.methods.distill.layers.features import (
    layer_listing,
    record_outputs,
    resolve_layer_pairs,
    stage_names,
)
from compression.methods.distill.layers.layer_distillation import LayerLoss, train_on_layers
from compression.methods.distill.mutual import have_equal_weights
from tests.conftest import stripes_task, tiny_bert, words_task

LAYERED = ["feature", "attention", "relational"]


def network(name):
    return models.build(name, stripes_task())


def hooks(model):
    return [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_the_outputs_of_layers_are_recorded_and_the_hooks_removed_even_after_a_failure():
    model = network("resnet8").eval()
    images = torch.randn(2, 1, 8, 8)
    with record_outputs(model, ["stem", "stages.1"]) as outputs:
        model(images)
    torch.testing.assert_close(outputs["stages.1"], model.stages[1](model.stages[0](outputs["stem"])))
    with pytest.raises(RuntimeError), record_outputs(model, ["stem"]):
        model(torch.randn(2, 3, 8, 8))
    assert not hooks(model)


def test_by_default_the_last_block_of_each_stage_is_compared():
    expected = [("stages.0", "stages.0"), ("stages.1", "stages.1"), ("stages.2", "stages.2")]
    assert resolve_layer_pairs((), network("resnet20"), network("resnet8")) == expected


def test_of_more_stages_some_are_taken_evenly_with_the_last():
    expected = [("stages.0", "stages.0"), ("stages.1", "stages.1"), ("stages.3", "stages.2")]
    assert resolve_layer_pairs((), network("resnet18"), network("cnn5")) == expected
    assert resolve_layer_pairs((), network("cnn5"), network("resnet18")) == [(b, a) for a, b in expected]


def test_of_a_transformer_layers_are_taken_evenly():
    found = resolve_layer_pairs((), tiny_bert(num_hidden_layers=6), tiny_bert(num_hidden_layers=2))
    assert found == [("bert.encoder.layer.2", "bert.encoder.layer.0"), ("bert.encoder.layer.5", "bert.encoder.layer.1")]


def test_other_cnns_are_compared_where_their_images_shrink():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.Flatten())
    assert stage_names(model) == ["1", "3"]
    with pytest.raises(UserError, match="A Sequential has no stages that could be compared; .* it has 0, 1"):
        stage_names(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_pairs_are_named_in_one_word_that_a_chain_can_carry():
    [step] = parse("feature:pairs=stages.2:stages.1/stem")
    assert parse(text([step])) == (step,)
    found = resolve_layer_pairs(step.pairs, network("resnet20"), network("resnet8"))
    assert found == [("stages.2", "stages.1"), ("stem", "stem")]


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ((("layer9", "layer9"),), "The teacher has no layer 'layer9'; it has stem, stages, pool, fc, stem.conv"),
        ((("stages.0", "body"),), "The student has no layer 'body'; it has stages, hidden, fc"),
        ((("stages.0", "stages.0"), ("", "")), "The teacher has no layer ''"),
    ],
)
def test_a_layer_that_does_not_exist_is_refused_with_those_that_do(pairs, sentence):
    with pytest.raises(UserError, match=sentence):
        resolve_layer_pairs(pairs, network("resnet8"), network("digits_cnn"))


def test_a_long_list_of_layers_is_cut():
    assert layer_listing(tiny_bert(num_hidden_layers=12)).endswith("within them")


@pytest.mark.parametrize("name", LAYERED)
def test_neither_hooks_nor_changes_stay_in_teacher_and_student(name, task, make_context):
    torch.manual_seed(0)
    teacher = network("digits_cnn").eval()
    before, context = copy.deepcopy(teacher), make_context(task, teacher)
    student = method(name)(epochs=1).apply(copy.deepcopy(teacher), context)
    assert have_equal_weights(teacher, before)
    assert not teacher.training
    assert not hooks(teacher)
    assert not hooks(student)
    assert 0 < context.record.history["teacher_time_share"][0][1] < 1
    assert {"softened", "features"} <= set(context.record.figures)


@pytest.mark.parametrize("name", LAYERED)
def test_transformers_are_compared_too(name, make_context):
    torch.manual_seed(0)
    task, teacher = words_task(), tiny_bert(num_hidden_layers=4)
    context = make_context(task, teacher)
    student = method(name)(epochs=1, layers=2).apply(copy.deepcopy(teacher), context)
    assert student.config.num_hidden_layers == 2
    assert not hooks(student)
    assert "features" in context.record.figures


class Constant(LayerLoss):
    """A loss that is its squared weight, and keeps its arguments."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, teacher, student, mask):
        self.arguments = (teacher, student, mask)
        return self.weight.square()


def test_the_layer_loss_gets_both_models_outputs_and_is_trained(task, make_context):
    teacher = network("digits_cnn").eval().requires_grad_(False)
    layer_loss = Constant([("stages.1", "stages.0")])
    student, context, step = network("digits_cnn_small"), make_context(task, teacher), method("feature")(epochs=1)
    train_on_layers(student, teacher, layer_loss, context, step.training_for(task), step.logits_loss(task))
    teacher_outputs, student_outputs, mask = layer_loss.arguments
    assert (list(teacher_outputs), list(student_outputs), mask) == (["stages.1"], ["stages.0"], None)
    assert not teacher_outputs["stages.1"].requires_grad
    assert student_outputs["stages.0"].requires_grad
    assert layer_loss.weight.item() < 0.9


def test_the_layer_loss_is_added_to_the_loss_of_response(task, make_context, monkeypatch):
    given = {}
    monkeypatch.setattr(
        "compression.methods.distill.layers.layer_distillation.fit",
        lambda student, context, training, **options: given.update(options),
    )
    teacher, student = network("digits_cnn").eval(), network("digits_cnn_small").eval()
    step = method("feature")(temperature=2.0, alpha=0.3)
    train_on_layers(
        student, teacher, Constant([]), make_context(task, teacher), step.training_for(task), step.logits_loss(task)
    )
    inputs, targets = next(task.train.batches(16))
    expected = step.logits_loss(task)(student(inputs), [teacher(inputs)], targets) + 1
    assert given["loss"](student, inputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)
