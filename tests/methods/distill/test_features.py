"""Which layers are compared, what is captured of them, and that nothing of it stays behind."""

import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods import method, parse, text
from compression.methods.distill.layers.features import captured, layer_pairs, listed, stages, there
from compression.methods.distill.layers.layered import Comparison, learn_layers
from compression.methods.distill.mutual import alike
from tests.conftest import stripes_task, tiny_bert, words_task

LAYERED = ["feature", "attention", "relational"]


def network(name):
    return models.build(name, stripes_task())


def hooks(model):
    return [hook for module in model.modules() for hook in (*module._forward_hooks, *module._forward_pre_hooks)]


def test_what_a_layer_gives_is_captured_and_the_hook_is_gone_even_after_a_failure():
    model = network("resnet8").eval()
    images = torch.randn(2, 1, 8, 8)
    with captured(model, ["stem", "stages.1"]) as seen:
        model(images)
    torch.testing.assert_close(seen["stages.1"], model.stages[1](model.stages[0](seen["stem"])))
    with pytest.raises(RuntimeError), captured(model, ["stem"]):
        model(torch.randn(2, 3, 8, 8))
    assert not hooks(model)


def test_by_default_the_last_block_of_each_stage_is_compared():
    expected = [("stages.0", "stages.0"), ("stages.1", "stages.1"), ("stages.2", "stages.2")]
    assert layer_pairs((), network("resnet20"), network("resnet8")) == expected


def test_of_more_stages_some_are_taken_evenly_with_the_last():
    expected = [("stages.0", "stages.0"), ("stages.1", "stages.1"), ("stages.3", "stages.2")]
    assert layer_pairs((), network("resnet18"), network("cnn5")) == expected
    assert layer_pairs((), network("cnn5"), network("resnet18")) == [(b, a) for a, b in expected]


def test_of_a_transformer_layers_are_taken_evenly():
    found = layer_pairs((), tiny_bert(num_hidden_layers=6), tiny_bert(num_hidden_layers=2))
    assert found == [("bert.encoder.layer.2", "bert.encoder.layer.0"), ("bert.encoder.layer.5", "bert.encoder.layer.1")]


def test_other_cnns_are_compared_where_their_images_shrink():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.Flatten())
    assert stages(model) == ["1", "3"]
    with pytest.raises(UserError, match="A Sequential has no stages that could be compared; .* it has 0, 1"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))


def test_pairs_are_named_in_one_word_that_a_chain_can_carry():
    [step] = parse("feature:pairs=stages.2:stages.1/stem")
    assert parse(text([step])) == (step,)
    found = layer_pairs(step.pairs, network("resnet20"), network("resnet8"))
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
        layer_pairs(pairs, network("resnet8"), network("digits_cnn"))


def test_a_long_list_of_layers_is_cut():
    assert listed(tiny_bert(num_hidden_layers=12)).endswith("within them")


def test_padding_is_told_from_tokens():
    mask = torch.tensor([[1, 1, 0]])
    assert there({"input_ids": mask, "attention_mask": mask}).tolist() == [[True, True, False]]
    assert there(torch.zeros(2, 1, 8, 8)) is None


@pytest.mark.parametrize("name", LAYERED)
def test_neither_hooks_nor_changes_stay_in_teacher_and_student(name, task, make_context):
    torch.manual_seed(0)
    teacher = network("digits_cnn").eval()
    before, context = copy.deepcopy(teacher), make_context(task, teacher)
    student = method(name)(epochs=1).apply(copy.deepcopy(teacher), context)
    assert alike(teacher, before)
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


class Constant(Comparison):
    """A comparison that is worth its learned weight, and remembers what it was given."""

    def __init__(self, pairs):
        super().__init__(pairs)
        self.weight = nn.Parameter(torch.tensor(1.0))

    def forward(self, known, seen, tokens):
        self.given = (known, seen, tokens)
        return self.weight.square()


def test_the_comparison_gets_both_sides_of_a_batch_and_learns_along(task, make_context):
    teacher = network("digits_cnn").eval().requires_grad_(False)
    comparison = Constant([("stages.1", "stages.0")])
    student, context, step = network("digits_cnn_small"), make_context(task, teacher), method("feature")(epochs=1)
    learn_layers(student, teacher, comparison, context, step.training_for(task), step.judge(task))
    known, seen, tokens = comparison.given
    assert (list(known), list(seen), tokens) == (["stages.1"], ["stages.0"], None)
    assert not known["stages.1"].requires_grad
    assert seen["stages.0"].requires_grad
    assert comparison.weight.item() < 0.9


def test_the_comparison_is_added_to_the_loss_of_response(task, make_context, monkeypatch):
    caught = {}
    monkeypatch.setattr(
        "compression.methods.distill.layers.layered.fit", lambda student, context, recipe, **named: caught.update(named)
    )
    teacher, student = network("digits_cnn").eval(), network("digits_cnn_small").eval()
    step = method("feature")(temperature=2.0, alpha=0.3)
    learn_layers(student, teacher, Constant([]), make_context(task, teacher), step.training_for(task), step.judge(task))
    inputs, targets = next(task.train.batches(16))
    expected = step.judge(task)(student(inputs), [teacher(inputs)], targets) + 1
    assert caught["loss"](student, inputs, targets).item() == pytest.approx(expected.item(), rel=1e-5)
