import contextlib
import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods import method, parse
from compression.methods.distill.feature import HintLoss
from compression.methods.distill.layers.blocks import Hybrid, count_parameters_up_to, train_blocks
from compression.methods.distill.layers.features import sample_outputs
from compression.methods.distill.mutual import have_equal_weights
from compression.methods.distill.progressive import build_assistant, halfway_copy
from compression.methods.distill.students.progression import Progression
from compression.nn import layers, transformer
from compression.tasks.task import evaluate, predict
from compression.training.hyperparameters import Training
from tests.conftest import Kept, stripes_task, tiny_bert, words_task

Progressive = method("progressive")


@pytest.fixture
def children():
    """The child runs that `child` opens, by name."""
    return {}


@pytest.fixture
def child(children):
    def opened(name):
        children[name] = Kept()
        return contextlib.nullcontext(children[name])

    return opened


def shared(times):
    """The teachers' share of the time of all trainings."""
    return sum(in_teachers for in_teachers, _ in times) / sum(whole for _, whole in times)


def trained(task, make_context, epochs=4):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task)
    return method("finetune")(epochs=epochs).apply(model, make_context(task, model))


def test_each_assistant_is_taught_by_the_one_before_it(task, make_context, monkeypatch):
    taught = []

    def train_on_logits(student, teachers, context, training, logits_loss, name):
        context.teacher_times.append((1.0, 2.0))
        taught.append((name, student, teachers[0]))
        return student.eval()

    monkeypatch.setattr("compression.methods.distill.progressive.train_on_logits", train_on_logits)
    teacher = models.build("digits_cnn", task).eval()
    student = Progressive(assistants="0.5//mlp").apply(copy.deepcopy(teacher), make_context(task, teacher))
    assert [name for name, _, _ in taught] == ["assistant-1", "assistant-2", "student"]
    learners, teachers = [one for _, one, _ in taught], [other for _, _, other in taught]
    assert teachers[0] is teacher
    assert teachers[1:] == learners[:-1]
    assert models.spec_of(learners[0])["arguments"]["width"] == 0.5
    assert models.spec_of(learners[1])["builder"] == "mlp"
    assert student is learners[2]
    assert all(not p.requires_grad for assistant in learners[:-1] for p in assistant.parameters())
    assert all(p.requires_grad for p in student.parameters())


def test_the_progression_is_recorded_as_child_runs_and_drawn(task, make_context, child, children):
    teacher = trained(task, make_context)
    before, context = copy.deepcopy(teacher), make_context(task, teacher, child=child)
    student = Progressive(epochs=3).apply(copy.deepcopy(teacher), context)
    assert list(children) == ["assistant-1", "student"]
    rows = context.record.tables["chain"]
    assert [row["model"] for row in rows] == ["teacher", "assistant-1", "student"]
    assert rows[0]["params"] > rows[1]["params"] > rows[2]["params"] == layers.count_parameters(student)
    assert [run.history["params"] for run in children.values()] == [[(None, row["params"])] for row in rows[1:]]
    assert [step for step, _ in children["assistant-1"].history["train_loss"]] == [1, 2, 3]
    assert [step for step, _ in children["student"].history["train_loss"]] == [4, 5, 6]
    assert rows[2]["val_accuracy"] == pytest.approx(evaluate(student, task.validation, task)["accuracy"])
    assert {"chain", "student-softened"} <= set(context.record.figures)
    assert [run.history["teacher_time_share"][0][1] for run in children.values()] == [
        a / b for a, b in context.teacher_times
    ]
    assert context.record.history["teacher_time_share"][-1] == (None, shared(context.teacher_times))
    assert have_equal_weights(teacher, before)


def test_the_assistant_by_default_has_about_the_geometric_mean_of_parameters():
    teacher, student = (models.build(name, stripes_task()) for name in ("resnet56", "resnet8"))
    sizes = [layers.count_parameters(m) for m in (teacher, halfway_copy(teacher, student), student)]
    assert sizes[1] == pytest.approx((sizes[0] * sizes[2]) ** 0.5, rel=0.1)


def test_a_transformers_assistant_has_half_the_layers_more():
    teacher, student = tiny_bert(num_hidden_layers=6), tiny_bert(num_hidden_layers=2)
    assert len(transformer.layers(halfway_copy(teacher, student))) == 4
    assert halfway_copy(tiny_bert(num_hidden_layers=3), student) is None


def test_an_assistant_is_a_number_of_layers_a_share_of_channels_or_a_name(make_context):
    task, model = words_task(), tiny_bert()
    assert len(transformer.layers(build_assistant("2", model, make_context(task, model)))) == 2
    with pytest.raises(
        UserError, match="assistants=0.5 is a copy of the teacher. width=0.5 makes thinner copies of the lab's own"
    ):
        build_assistant("0.5", model, make_context(task, model))


def test_a_teacher_without_smaller_copies_asks_for_assistants_by_name(make_context):
    wide = {"builder": "resnet50", "arguments": {"outputs": 3, "input_shape": [3, 32, 32], "width": 1.0}}
    student = models.rebuild({"builder": "mlp", "arguments": {"outputs": 3, "input_shape": [3, 32, 32], "width": 0.1}})
    with pytest.raises(UserError, match="A ResNet as this teacher is has no smaller copy .*: name assistants=MODEL"):
        halfway_copy(models.rebuild(wide), student)


def warnings_of(step, teacher, student, make_context, task):
    """The warnings about the sizes from `teacher` to `student`, without any training."""
    context = make_context(task, teacher)
    step.warn_of_sizes([teacher, *step.build_assistants(teacher, student, context), student], context)
    return context.record.warnings


def test_without_room_for_an_assistant_the_student_learns_from_the_teacher_alone_with_a_warning(make_context):
    task = stripes_task()
    pairs = [
        (tiny_bert(num_hidden_layers=3), tiny_bert(num_hidden_layers=2)),
        (tiny_bert(), tiny_bert(intermediate_size=16)),  # as many layers, smaller ones
        (models.build("resnet8", task), shaved(models.build("resnet8", task))),
    ]
    for teacher, student in pairs:
        [warning] = warnings_of(Progressive(), teacher, student, make_context, task)
        assert "so there is no assistant; name one, assistants=MODEL" in warning


def shaved(model):
    """The model with hardly fewer parameters."""
    model.fc = nn.Linear(64, 3, bias=False)
    return model


def test_a_student_that_is_no_smaller_is_warned_of_whatever_the_network(make_context):
    task = stripes_task()
    for teacher, student in [
        (tiny_bert(), tiny_bert()),
        (tiny_bert(), tiny_bert(num_hidden_layers=4)),
        (models.build("digits_cnn", task), models.build("digits_cnn", task)),
        (models.build("digits_cnn_small", task), models.build("digits_cnn", task)),
    ]:
        [warning] = warnings_of(Progressive(), teacher, student, make_context, task)
        assert "goes from large to small" in warning


def test_an_assistant_that_is_not_between_is_warned_of(make_context):
    task = stripes_task()
    teacher, student = models.build("digits_cnn", task), models.build("digits_cnn_small", task)
    assert warnings_of(Progressive(assistants="0.5"), teacher, student, make_context, task) == []
    [warning] = warnings_of(Progressive(assistants="resnet8"), teacher, student, make_context, task)
    assert f"from the teacher to the student, {layers.count_parameters(teacher):,} -> 7" in warning


def test_a_decomposed_student_learns_without_an_assistant(make_context):
    torch.manual_seed(0)
    task, teacher = words_task(), tiny_bert(num_hidden_layers=2)
    context = make_context(task, teacher, model_changed=True)
    [svd, step] = parse("svd:rank=ratio,ratio=0.25,round_to=1+progressive:epochs=1,batch_size=128")
    step.apply(svd.apply(copy.deepcopy(teacher), context), context)
    assert [row["model"] for row in context.record.tables["chain"]] == ["teacher", "student"]
    assert any("there is no assistant" in sentence for sentence in context.record.warnings)


def test_stages_that_do_not_fit_are_refused_before_any_training(task, make_context):
    teacher = models.build("digits_cnn", task)
    context = make_context(task, teacher)
    sentence = (
        "the teacher's stages by the student's, and those of a MLP do not fit a ConvNet; take another student=, "
        "or style=assistants"
    )
    with pytest.raises(UserError, match=sentence):
        Progressive(style="blocks", student="mlp").apply(copy.deepcopy(teacher), context)
    assert "train_loss" not in context.record.history


def test_a_student_of_two_layers_learns_by_way_of_four(make_context):
    torch.manual_seed(0)
    task, teacher = words_task(), tiny_bert(num_hidden_layers=6)
    context = make_context(task, teacher)
    student = Progressive(epochs=1, layers=2).apply(copy.deepcopy(teacher), context)
    assert len(transformer.layers(student)) == 2
    assert len(context.record.tables["chain"]) == 3


def test_assistants_without_their_style_are_refused():
    with pytest.raises(UserError, match="assistants=mlp needs style=assistants; style=blocks has none"):
        parse("progressive:style=blocks,assistants=mlp")


def test_block_by_block_the_student_replaces_the_teacher(task, make_context, child, children):
    teacher = trained(task, make_context)
    before, context = copy.deepcopy(teacher), make_context(task, teacher, child=child)
    student = Progressive(style="blocks", epochs=9).apply(copy.deepcopy(teacher), context)
    assert list(children) == ["block-1", "block-2", "student"]
    assert [len(run.history["train_loss"]) for run in children.values()] == [3, 3, 3]
    rows = context.record.tables["chain"]
    assert [row["model"] for row in rows] == ["teacher", "block-1", "block-2", "student"]
    assert len(context.teacher_times) == 3
    assert context.record.history["teacher_time_share"][-1] == (None, shared(context.teacher_times))
    assert evaluate(student, task.test, task)["accuracy"] > 0.6
    assert have_equal_weights(teacher, before)
    assert not any(module._forward_hooks for model in (teacher, student) for module in model.modules())


@pytest.mark.parametrize("epochs", range(6))
def test_blocks_share_the_epochs_at_least_one_each_and_none_is_none(task, make_context, epochs):
    step = Progressive(style="blocks", epochs=epochs)
    of_block, of_student = step.split_epochs(make_context(task, models.build("mlp", task)), 2)
    least = 1 if epochs else 0
    assert min(of_block.epochs, of_student.epochs) >= least
    assert 2 * of_block.epochs + of_student.epochs == (max(epochs, 3) if epochs else 0)


def test_a_block_learns_what_lies_before_it_and_nothing_behind(task, make_context):
    teacher, student = models.build("digits_cnn", task).eval(), models.build("digits_cnn_small", task)
    start = copy.deepcopy(student)
    progression, pairs = Progression(make_context(task, teacher)), [("stages.0", "stages.0")]
    train_blocks(student, teacher.requires_grad_(False), pairs, Training(epochs=1, keep="last"), progression)
    assert not torch.equal(student.stages[0].conv.weight, start.stages[0].conv.weight)
    assert torch.equal(student.stages[1].conv.weight, start.stages[1].conv.weight)
    assert torch.equal(student.fc.weight, start.fc.weight)


def hybrid(teacher, student, pair, context):
    outputs = sample_outputs(teacher, [pair[0]], context), sample_outputs(student, [pair[1]], context)
    return Hybrid(student, teacher, HintLoss([pair], *outputs, 1.0)).eval()


def test_a_teacher_that_is_replaced_by_its_copy_has_the_same_outputs(task, make_context):
    teacher = models.build("resnet8", task).eval()
    context = make_context(task, teacher)
    mixed = hybrid(teacher, copy.deepcopy(teacher), ("stages.1", "stages.1"), context)
    torch.testing.assert_close(predict(mixed, task.test)[0], predict(teacher, task.test)[0])
    assert mixed.count_parameters(context) == layers.count_parameters(teacher)
    assert not any(module._forward_hooks for module in mixed.modules())


def test_so_does_a_transformer(make_context):
    task, teacher = words_task(), tiny_bert().eval()
    pair = ("bert.encoder.layer.1", "bert.encoder.layer.1")
    mixed = hybrid(teacher, copy.deepcopy(teacher), pair, make_context(task, teacher))
    torch.testing.assert_close(predict(mixed, task.test)[0], predict(teacher, task.test)[0])


def test_the_student_and_its_regressor_replace_the_teachers_stages(task, make_context):
    teacher = models.build("resnet8", task).eval()
    thin = models.rebuild({"builder": "resnet8", "arguments": {"outputs": 3, "input_shape": [1, 8, 8], "width": 0.5}})
    context = make_context(task, teacher)
    mixed = hybrid(teacher, thin.eval(), ("stages.0", "stages.0"), context)
    images = task.example(4)
    replacement = mixed.regressor(thin.stages[0](thin.stem(images)))
    expected = teacher.fc(teacher.stages[2](teacher.stages[1](replacement)).mean((2, 3)))
    torch.testing.assert_close(mixed(images), expected)
    sizes = [layers.count_parameters(m) for m in (thin.stem, thin.stages[0], teacher.stages[1:], teacher.fc)]
    assert mixed.count_parameters(context) == sum(sizes) + 8 * 16 + 16


def test_parameters_that_a_layer_depends_on_are_counted(task, make_context):
    model = models.build("resnet8", task)
    expected = layers.count_parameters(nn.Sequential(model.stem, model.stages[0], model.stages[1]))
    assert count_parameters_up_to(model, "stages.1", make_context(task, model)) == expected
