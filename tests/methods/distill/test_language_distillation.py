"""Distillation of language models: the loss is that of every token, and smaller students learn."""

import copy

import pytest
import torch
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods import method
from compression.methods.distill.logits import training as logits_training
from compression.methods.distill.relational import angle_loss, distance_loss, example_vectors
from compression.nn.inputs import IGNORED, answer_rows, forward
from compression.nn.layers import count_parameters
from compression.tasks.task import evaluate
from tests.conftest import kept_child
from tests.methods.tiny_language import CONTEXT, TOKENS, language_task, tiny_decoder, tiny_lstm_lm, windows

UNTRAINED = 60.0  # the perplexity of a guess


@pytest.fixture(scope="module")
def teachers():
    """A trained decoder of four layers, made when the first test gives it a context."""
    return {}


@pytest.fixture
def teacher(teachers, make_context):
    if not teachers:
        torch.manual_seed(0)
        model = tiny_decoder(num_hidden_layers=4)
        teachers[""] = method("finetune")(epochs=5).apply(model, make_context(language_task(), model))
    return copy.deepcopy(teachers[""]).eval().requires_grad_(False)


def distilled(name, teacher, make_context, task=None, **fields):
    task = task or language_task()
    context = make_context(task, teacher, child=kept_child, build=lambda _: tiny_decoder(num_hidden_layers=1))
    torch.manual_seed(1)
    step = method(name)(**fields).resolved(task)
    step.check(copy.deepcopy(teacher), context)
    return step.apply(copy.deepcopy(teacher), context), context


def test_the_loss_is_the_mean_over_the_tokens_that_have_a_target_worked_by_hand():
    # Two windows of two tokens among two; the teacher is sure of 3/4 and of 1/2, the student always guesses.
    teacher = torch.tensor([[[3.0, 1.0], [1.0, 1.0]], [[9.0, 1.0], [1.0, 9.0]]]).log()
    targets = torch.tensor([[0, 1], [IGNORED, IGNORED]])
    student, wanted = answer_rows(torch.zeros(2, 2, 2), targets)
    by_hand = (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log() + 0.0) / 2  # KL of the two tokens
    loss = method("response")(alpha=1.0, temperature=1.0).logits_loss(language_task())
    found = loss(student, [answer_rows(teacher, targets)[0]], wanted)
    assert found.item() == pytest.approx(by_hand.item(), rel=1e-5)
    labels = method("response")(alpha=0.0).logits_loss(language_task())(student, [], wanted)
    assert labels.item() == pytest.approx(torch.tensor(2.0).log().item())


def test_the_training_minimises_that_loss_over_all_windows(teacher, make_context):
    task = language_task(train=windows(24, 5))
    fields = {"student": "decoder", "alpha": 0.75, "temperature": 2.0}
    student = tiny_decoder(num_hidden_layers=1)
    context = make_context(task, teacher, build=lambda _: copy.deepcopy(student))
    method("response")(**fields, epochs=1, batch_size=24).apply(teacher, context)
    inputs, targets = task.train.inputs, task.train.targets[:, :-1].flatten()
    with torch.no_grad():  # all but the last token of each window, whose target nobody knows
        of_student, of_teacher = (forward(m, inputs)[:, :-1].flatten(0, 1) for m in (student, teacher))
    soft = F.kl_div((of_student / 2).log_softmax(1), (of_teacher / 2).softmax(1), reduction="sum") * 4 / len(targets)
    expected = 0.75 * soft + 0.25 * F.cross_entropy(of_student, targets)
    assert len(targets) == 24 * (CONTEXT - 1)
    [(_, loss)] = context.record.history["train_loss"]  # of the one step, before it changed anything
    assert loss == pytest.approx(expected.item(), rel=1e-4)


def test_a_student_of_half_the_width_learns_the_text(teacher, make_context):
    student, context = distilled("response", teacher, make_context, width=0.5, epochs=8, learning_rate=2e-2)
    assert count_parameters(student) < count_parameters(teacher) / 2
    task = context.task
    assert evaluate(teacher, task.test, task)["perplexity"] < 2.5
    assert evaluate(student, task.test, task)["perplexity"] < 6 < UNTRAINED / 8
    assert "softened" not in context.record.figures  # of 60 tokens nobody sees anything


def test_a_shallower_copy_starts_with_what_the_teacher_knows(teacher, make_context):
    student, context = distilled("response", teacher, make_context, layers=2, epochs=2)
    assert student.config.num_hidden_layers == len(student.model.layers) == 2
    assert evaluate(student, context.task.test, context.task)["perplexity"] < 4


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("multi_teacher", {"width": 0.5, "teachers": ("one", "other"), "weighting": "confidence"}),
        ("decoupled", {"width": 0.5}),
        ("mutual", {"student": "decoder", "cohort": 2}),
        ("self_distill", {"style": "born_again"}),
        ("self_distill", {"style": "teacher_free", "student": "decoder"}),
        ("feature", {"width": 0.5}),
        ("relational", {"width": 0.5, "distance": 1.0, "angle": 2.0}),
        ("layerwise", {"style": "distilbert"}),
        ("layerwise", {"style": "distilbert", "dynamic": True, "width": 0.5, "adaptive": True}),
        ("progressive", {"width": 0.5}),
        ("progressive", {"style": "blocks", "width": 0.5}),
    ],
)
def test_every_distillation_teaches_a_decoder(name, fields, teacher, make_context):
    task = language_task(train=windows(128, 1))
    context = {"load": lambda _: copy.deepcopy(teacher)}
    student, context = distilled(
        name, teacher, lambda *a, **k: make_context(*a, **k, **context), task, **fields, epochs=5
    )
    assert evaluate(student, task.test, task)["perplexity"] < UNTRAINED / 2
    assert not any(module._forward_hooks for module in (*student.modules(), *teacher.modules()))


def test_an_assistant_is_halfway_between_a_decoder_and_its_student(teacher, make_context):
    _, context = distilled("progressive", teacher, make_context, layers=2, epochs=1)
    assert [row["model"] for row in context.record.tables["chain"]] == ["teacher", "assistant-1", "student"]
    sizes = [row["params"] for row in context.record.tables["chain"]]
    assert sizes == sorted(sizes, reverse=True)


def test_a_text_is_represented_by_its_last_token_the_only_one_that_has_read_it(teacher, make_context):
    output, mask = torch.randn(3, 5, 7), torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 1, 1, 0]])
    last = torch.stack([output[0, 4], output[1, 1], output[2, 3]])
    assert torch.equal(example_vectors(output, mask.sum(1) - 1), last)
    assert torch.equal(example_vectors(output), output[:, 0])
    loss = method("relational")().layer_loss(teacher, teacher, make_context(language_task(), teacher))
    of_student = torch.randn(3, 5, 7)
    found = loss({loss.pairs[0][0]: output}, {loss.pairs[0][1]: of_student}, mask.bool())
    of_last = torch.stack([of_student[0, 4], of_student[1, 1], of_student[2, 3]])
    assert found == 25 * distance_loss(of_last, last) + 50 * angle_loss(of_last, last)


def test_cached_logits_of_every_token_train_to_the_same_weights(teacher, make_context, monkeypatch):
    students = []
    for most in (2**30, 192 * CONTEXT * TOKENS * 4 - 1):
        monkeypatch.setattr(logits_training, "CACHE_BYTES", most)
        student, context = distilled("response", teacher, make_context, student="decoder", epochs=2)
        is_cached = logits_training.can_cache([teacher], context, method("response")().training_for(context.task))
        assert is_cached == (most == 2**30)
        students.append(student)
    for one, other in zip(*(student.state_dict().values() for student in students), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


def test_a_word_model_of_lstms_teaches_a_thinner_one(make_context):
    task = language_task(from_scratch={"learning_rate": 2e-2})
    large = tiny_lstm_lm()
    large = method("finetune")(epochs=4, learning_rate=2e-2).apply(large, make_context(task, large))
    small, _ = distilled("response", large, make_context, task, width=0.5, epochs=4)
    assert small.fc.in_features == large.fc.in_features // 2
    of_small, of_large = (evaluate(model, task.test, task)["perplexity"] for model in (small, large))
    assert of_small < 1.05 * of_large < 0.8 * UNTRAINED


def test_attention_and_its_scores_are_refused_in_one_sentence(teacher, make_context):
    for name in ("attention", "layerwise"):
        with pytest.raises(UserError, match="compares queries with all keys.* LlamaForCausalLM, which reads from left"):
            distilled(name, teacher, make_context, layers=2)
