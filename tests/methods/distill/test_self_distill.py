import copy
import math

import pytest
import torch
from torch.nn import functional as F

from compression import models
from compression.errors import UserError
from compression.methods import method, parse
from compression.methods.distill.mutual import have_equal_weights
from compression.methods.distill.response import soft_loss
from compression.methods.distill.self_distill import virtual_teacher
from compression.nn import layers
from compression.tasks.task import evaluate
from tests.conftest import stripes_task, tiny_bert, words_task

SelfDistillation = method("self_distill")


def test_the_virtual_teacher_gives_the_label_its_probability_and_the_rest_equal_ones():
    found = virtual_teacher(torch.tensor([2]), classes=5, target_probability=0.9).softmax(1)
    assert found[0].tolist() == pytest.approx([0.025, 0.025, 0.9, 0.025, 0.025])


def test_softened_it_is_the_distribution_to_the_power_of_one_over_t():
    # ratio of label to another class: 0.9 / 0.025 = 36, at T = 2 its root 6, so 6 : 1 : 1 : 1 : 1
    softened = (virtual_teacher(torch.tensor([0]), classes=5, target_probability=0.9) / 2).softmax(1)
    assert softened[0, 0].item() == pytest.approx(6 / 10, rel=1e-5)


def test_the_teacher_free_loss_is_that_of_the_paper(task):
    # (1 - alpha) H(q, p) + alpha KL(p_d at T || p at T), with the T^2 of response
    student, targets = torch.randn(6, 3), torch.randint(3, (6,))
    teacher = virtual_teacher(targets, 3, 0.95)
    expected = 0.4 * F.cross_entropy(student, targets) + 0.6 * soft_loss(student, teacher, 20.0)
    step = SelfDistillation(style="teacher_free", sure=0.95, temperature=20.0, alpha=0.6)
    assert step.logits_loss(task)(student, [], targets).item() == pytest.approx(expected.item(), rel=1e-5)


def test_teacher_free_learns_without_a_teacher(task, make_context):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    before = copy.deepcopy(model)
    context = make_context(task, model)
    student = SelfDistillation(style="teacher_free", epochs=4).apply(model, context)
    assert context.record.tags["distillation"] == "self"
    assert evaluate(student, task.test, task)["accuracy"] > 0.8
    assert have_equal_weights(model, before)


def test_each_generation_learns_anew_from_the_one_before(task, make_context, monkeypatch):
    taught = []

    def train_on_logits(student, teachers, context, training, logits_loss, name):
        context.teacher_times.append((len(taught), 6.0))
        taught.append((student, teachers, copy.deepcopy(student), name))
        with torch.no_grad():
            student.fc.bias += len(taught)  # each differs from the others
        return student.eval()

    monkeypatch.setattr("compression.methods.distill.self_distill.train_on_logits", train_on_logits)
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    context = make_context(task, copy.deepcopy(model))
    SelfDistillation(generations=3).apply(model, context)
    (first, [teacher], start, name), (_, [second], again, _), (_, [third], _, last) = taught
    assert have_equal_weights(teacher, model)
    assert second is first
    assert third is taught[1][0]
    assert not have_equal_weights(start, model)
    assert not have_equal_weights(start, again)
    assert (name, last) == ("generation-1", "generation-3")
    assert context.record.history["teacher_time_share"] == [(None, 3 / 18)]  # of all three together
    assert [row["generation"] for row in context.record.tables["generations"]] == [1, 2, 3]


def test_the_best_generation_on_validation_is_kept_and_can_train_on(task, make_context):
    torch.manual_seed(0)
    model = method("finetune")(epochs=4).apply(
        models.build("digits_cnn", task), make_context(task, torch.nn.Identity())
    )
    poor = models.build("digits_cnn", task).eval().requires_grad_(False)
    good = copy.deepcopy(model).requires_grad_(False)
    found = SelfDistillation().best_generation([poor, good, copy.deepcopy(poor)], make_context(task, model))
    assert found is good
    assert all(p.requires_grad for p in found.parameters())


def test_in_a_chain_the_zeros_of_its_model_stay(task, make_context):
    model = models.build("digits_cnn", task)
    for module in layers.prunable_layers(model).values():
        layers.set_mask(module, torch.rand_like(module.weight) > 0.5)
    zeros = {name: m.weight == 0 for name, m in layers.prunable_layers(model).items()}
    student = SelfDistillation(epochs=1).apply(model, make_context(task, copy.deepcopy(model), model_changed=True))
    assert student is not model
    assert all((m.weight[zeros[name]] == 0).all() for name, m in layers.prunable_layers(student).items())


@pytest.mark.parametrize("text", ["structured:sparsity=0.5", "svd:rank=ratio+tucker:rank=ratio", "magnitude"])
def test_a_compressed_network_is_trained_anew_as_it_is(text, task, make_context):
    model = models.build("digits_cnn", task).eval()
    for step in parse(text):
        model = step.apply(model, make_context(task, copy.deepcopy(model)))
    student = SelfDistillation(epochs=1).apply(model, make_context(task, copy.deepcopy(model)))
    shapes = [{name: tensor.shape for name, tensor in one.state_dict().items()} for one in (student, model)]
    assert shapes[0] == shapes[1]
    assert not have_equal_weights(student, model)
    zeros = [[(m.weight == 0).sum() for m in layers.masked_layers(one).values()] for one in (student, model)]
    assert zeros[0] == zeros[1]


def test_a_quantized_network_asks_where_to_start(task, make_context):
    model = models.build("digits_cnn", task).eval()
    [step] = parse("weight_only")
    model = step.apply(model, make_context(task, copy.deepcopy(model)))
    with pytest.raises(UserError, match="Quantized weights cannot be trained anew; name where to start"):
        SelfDistillation().apply(model, make_context(task, model))


def test_a_transformer_asks_where_to_start(make_context):
    model = tiny_bert()
    with pytest.raises(UserError, match="lacks its pretraining; name where to start"):
        SelfDistillation().apply(model, make_context(words_task(), model))


def test_a_regression_has_no_virtual_teacher(make_context):
    context = make_context(stripes_task(outputs=1), torch.nn.Identity())
    with pytest.raises(UserError, match="style=teacher_free needs a task with classes"):
        SelfDistillation(style="teacher_free").apply(torch.nn.Identity(), context)


def test_two_classes_have_the_probability_and_the_rest():
    assert virtual_teacher(torch.tensor([1]), 2, 0.99)[0].tolist() == pytest.approx([math.log(0.01), math.log(0.99)])
