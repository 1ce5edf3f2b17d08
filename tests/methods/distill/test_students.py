"""Students that are cut from their teacher, and settings that contradict one another."""

import copy

import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.methods import method, of_family, parse
from compression.methods.distill.students.copies import evenly_spaced, shallower_copy, thinner_copy
from compression.models import storage
from compression.nn import layers, transformer
from compression.tasks.task import predict
from tests.conftest import stripes_task, tiny_bert, words_task

Response = method("response")


@pytest.mark.parametrize(
    ("total", "count", "kept"), [(12, 4, [2, 5, 8, 11]), (6, 3, [1, 3, 5]), (3, 2, [0, 2]), (5, 5, [0, 1, 2, 3, 4])]
)
def test_layers_are_taken_evenly_and_the_last_is_among_them(total, count, kept):
    assert evenly_spaced(total, count) == kept


def test_a_thinner_copy_has_that_share_of_the_channels_and_a_spec_that_says_so():
    teacher = models.build("resnet8", stripes_task())
    student = thinner_copy(thinner_copy(teacher, 0.5), 0.5)
    assert student.stages[2][0].conv1.out_channels == 16
    assert models.spec_of(student)["arguments"]["width"] == 0.25


@pytest.mark.parametrize("text", ["structured:sparsity=0.5", "tucker:rank=ratio,ratio=0.3", "half"])
def test_a_thinner_copy_of_a_compressed_teacher_is_refused_for_it_could_be_the_larger_one(text, task, make_context):
    original = models.build("digits_cnn", task).eval()
    [step] = parse(text)
    teacher = step.apply(copy.deepcopy(original), make_context(task, original))
    with pytest.raises(UserError, match="compression changed the teacher's layers; name a model in its place"):
        thinner_copy(teacher, 0.9)


def test_zeros_are_no_hindrance_to_a_thinner_copy(task):
    teacher = models.build("digits_cnn", task)
    layers.set_mask(teacher.fc, torch.rand_like(teacher.fc.weight) > 0.5)
    assert layers.count_parameters(thinner_copy(teacher, 0.5)) < layers.count_parameters(teacher)


def test_a_shallower_transformer_is_made_of_the_teachers_layers():
    teacher = tiny_bert(num_hidden_layers=4).requires_grad_(False)
    student = shallower_copy(teacher, 2)
    ours, theirs = transformer.blocks(student), transformer.blocks(teacher)
    assert student.config.num_hidden_layers == len(ours) == 2
    assert len(theirs) == 4
    for one, other in zip(ours, (theirs[1], theirs[3]), strict=True):
        assert torch.equal(one.query.weight, other.query.weight)
        assert one.query.weight is not other.query.weight
    assert all(p.requires_grad for p in student.parameters())


def test_a_shallower_residual_network_keeps_as_many_blocks_in_each_stage_and_reloads(tmp_path):
    task = stripes_task()
    teacher = models.build("resnet20", task).eval()
    student = shallower_copy(teacher, 6)
    assert [len(stage) for stage in student.stages] == [2, 2, 2]
    assert torch.equal(student.stages[1][1].conv1.weight, teacher.stages[1][2].conv1.weight)
    assert layers.count_parameters(student) < layers.count_parameters(teacher)
    again = storage.load(storage.save(student, tmp_path, {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(student, task.test)[0])


@pytest.mark.parametrize(
    ("name", "fields", "sentence"),
    [
        ("digits_cnn", {"layers": 2}, "layers=2 drops layers of .* a ConvNet is neither"),
        ("resnet20", {"layers": 4}, "3 stages; take a multiple of it, 9 at most"),
        ("resnet20", {"layers": 12}, "3 stages; take a multiple of it, 9 at most"),
    ],
)
def test_a_copy_that_cannot_be_is_refused_in_a_sentence(task, make_context, name, fields, sentence):
    model = models.build(name, task)
    with pytest.raises(UserError, match=sentence):
        Response(**fields).apply(copy.deepcopy(model), make_context(task, model))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [({"width": 0.5}, "thinner copies .* is none"), ({"layers": 9}, "more than the 3 layers")],
)
def test_a_transformer_gets_no_thinner_and_no_deeper(make_context, fields, sentence):
    task, model = words_task(), tiny_bert()
    with pytest.raises(UserError, match=sentence):
        Response(**fields).apply(copy.deepcopy(model), make_context(task, model))


def test_two_ways_to_say_the_student_are_refused():
    with pytest.raises(UserError, match="student=resnet8 and width=0.5 each say what the student is; give one"):
        parse("response:student=resnet8,width=0.5")


def test_without_a_small_model_the_task_says_what_to_name(make_context):
    task, model = words_task(), tiny_bert()
    with pytest.raises(UserError, match="has no small model of its own; name one, .* layers=NUMBER"):
        Response().apply(copy.deepcopy(model), make_context(task, model))


def test_the_student_of_a_chain_is_the_chains_model(task, make_context):
    model, original = models.build("digits_cnn", task), models.build("digits_cnn", task)
    assert Response(epochs=1).apply(model, make_context(task, original, model_changed=True)) is model


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("response:student=nothing", "no model 'nothing'"),
        ("decoupled:layers=2", "a ConvNet is neither"),
        ("feature:pairs=stages.7", "no layer 'stages.7'"),
        ("relational:student=nothing", "no model 'nothing'"),
        ("attention:student=mlp", "cannot be compared|gives none"),
        ("layerwise", "no attention heads or layers"),
        ("multi_teacher:teachers=mlp//nothing", "no model 'nothing'"),
        ("mutual:peers=nothing", "no model 'nothing'"),
        ("self_distill:student=nothing", "no model 'nothing'"),
        ("progressive:assistants=nothing", "no model 'nothing'"),
        ("progressive:style=blocks,student=mlp", "do not fit a ConvNet"),
    ],
)
def test_an_untrained_model_is_enough_to_refuse(text, sentence, task, make_context):
    [step], model = parse(text), models.build("digits_cnn", task)
    with pytest.raises(UserError, match=sentence):
        step.check(model, make_context(task, model))


@pytest.mark.parametrize("name", of_family("distill"))
def test_a_look_ahead_records_nothing_and_lets_defaults_pass(name, task, make_context):
    text = method(name).requires == "text"
    task, model = (words_task(), tiny_bert()) if text else (task, models.build("digits_cnn", task))
    context = make_context(task, model)
    method(name)().check(model, context)
    assert not context.record.history
    assert not context.record.warnings
