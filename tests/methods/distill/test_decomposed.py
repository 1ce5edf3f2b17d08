"""Transformers whose linear layers were decomposed learn from layers, and teach by them."""

import copy

import pytest
import torch

from compression.errors import UserError
from compression.methods import parse
from compression.nn import transformer
from tests.conftest import tiny_bert, words_task

BY_LAYERS = ["feature", "relational", "attention", "layerwise", "layerwise:style=distilbert"]


def decomposed(model, context):
    [svd] = parse("svd:rank=ratio,ratio=0.25,round_to=1")
    return svd.apply(copy.deepcopy(model), context)


def short(text, **more):
    """The step that `text` names, over one epoch of few batches."""
    fields = ",".join(["epochs=1", "batch_size=128", *(f"{name}={value}" for name, value in more.items())])
    [step] = parse(f"{text}{',' if ':' in text else ':'}{fields}")
    return step


@pytest.mark.parametrize("text", BY_LAYERS)
def test_a_decomposed_student_learns_from_the_whole_teachers_layers(text, make_context):
    torch.manual_seed(0)
    task, teacher = words_task(), tiny_bert(num_hidden_layers=2)
    context = make_context(task, teacher, model_changed=True)
    start = decomposed(teacher, context)
    student = short(text).apply(start, context)
    assert student is start
    assert type(student.get_submodule("bert.encoder.layer.0.attention.self.query")) is torch.nn.Sequential
    assert "features" in context.record.figures


@pytest.mark.parametrize("text", BY_LAYERS)
def test_a_decomposed_teacher_is_learned_from(text, make_context):
    torch.manual_seed(0)
    task, whole = words_task(), tiny_bert(num_hidden_layers=2)
    teacher = decomposed(whole, make_context(task, whole))
    context = make_context(task, teacher, build=lambda name: tiny_bert(num_hidden_layers=1))
    student = short(text, student="small").apply(copy.deepcopy(teacher), context)
    assert len(transformer.layers(student)) == 1
    assert "features" in context.record.figures


@pytest.mark.parametrize("text", ["layerwise", "response:layers=1"])
def test_a_shallower_copy_of_a_decomposed_teacher_is_refused_in_a_sentence(text, make_context):
    task, whole = words_task(), tiny_bert(num_hidden_layers=2)
    teacher = decomposed(whole, make_context(task, whole))
    with pytest.raises(UserError, match="the teacher's were decomposed or quantized; name a student="):
        short(text).apply(copy.deepcopy(teacher), make_context(task, teacher))
