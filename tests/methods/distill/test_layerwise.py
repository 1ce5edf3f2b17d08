import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods import method
from compression.methods.distill.layers.features import record_outputs
from compression.methods.distill.layers.layer_distillation import train_on_layers
from compression.methods.distill.mutual import have_equal_weights
from compression.nn import transformer
from compression.nn.inputs import attention_mask, forward
from compression.tasks.task import predict
from tests.conftest import tiny_bert, words_task

Layerwise = method("layerwise")
LAYER = "bert.encoder.layer"


def outputs(model, names, inputs):
    with torch.no_grad(), record_outputs(model, names) as recorded:
        forward(model, inputs)
    return recorded


def value_of(loss, teacher, student, inputs):
    """The loss of a batch."""
    of_teacher, of_student = loss.layer_names()
    return loss(
        outputs(teacher, of_teacher, inputs), outputs(student, of_student, inputs), attention_mask(inputs)
    ).item()


@pytest.fixture
def batch():
    return next(words_task().train.batches(8))[0]


@pytest.fixture
def compared(make_context):
    """`compared(step, teacher, student)`: the loss between them by the step."""
    return lambda step, teacher, student: step.layer_loss(teacher, student, make_context(words_task(), teacher))


def states(model, inputs):
    """Embeddings and hidden states of the real tokens, as the library gives them."""
    found = model(**inputs, output_hidden_states=True).hidden_states
    return [state[inputs["attention_mask"].bool()] for state in found]


def raw_attention(model, layer, inputs):
    """Scores before the softmax of every pair of real tokens `(pairs, heads)`, head by head."""
    block, hidden = transformer.blocks(model)[layer], model(**inputs, output_hidden_states=True).hidden_states[layer]
    both = inputs["attention_mask"].bool()[:, :, None] & inputs["attention_mask"].bool()[:, None, :]
    size, found = block.head_size, []
    for head in range(block.heads):
        cut = slice(head * size, (head + 1) * size)
        products = block.query(hidden)[..., cut] @ block.key(hidden)[..., cut].transpose(1, 2)
        found.append((products / size**0.5)[both])
    return torch.stack(found, 1)


@torch.no_grad()
def test_tinyberts_terms_are_those_of_the_paper(batch, compared):
    # Jiao et al. 2020, eq. 7 to 9, with every second layer of the teacher: 1 -> 2, 2 -> 4
    teacher, student = tiny_bert(num_hidden_layers=4), tiny_bert(num_hidden_layers=2)
    of_teacher, of_student = states(teacher, batch), states(student, batch)
    expected = (
        F.mse_loss(of_student[0], of_teacher[0])
        + F.mse_loss(of_student[1], of_teacher[2])
        + F.mse_loss(of_student[2], of_teacher[4])
    )
    for ours, theirs in ((0, 1), (1, 3)):
        expected += F.mse_loss(raw_attention(student, ours, batch), raw_attention(teacher, theirs, batch))
    loss = compared(Layerwise(weight=3.0), teacher, student)
    assert value_of(loss, teacher, student, batch) == pytest.approx(3 * expected.item(), rel=1e-4)


@torch.no_grad()
def test_distilberts_term_is_one_minus_the_cosine_of_the_last_hidden_states(batch, compared):
    teacher, student = tiny_bert(num_hidden_layers=4), tiny_bert(num_hidden_layers=2)
    ours, theirs = states(student, batch)[-1], states(teacher, batch)[-1]
    expected = 1 - (ours * theirs).sum(-1) / (ours.norm(dim=-1) * theirs.norm(dim=-1))
    loss = compared(Layerwise(style="distilbert"), teacher, student)
    assert loss.pairs == [(f"{LAYER}.3", f"{LAYER}.1")]
    assert value_of(loss, teacher, student, batch) == pytest.approx(expected.mean().item(), rel=1e-4)


@torch.no_grad()
def test_dynamic_takes_the_nearest_layer_of_the_teacher_for_each_of_the_students(batch, compared):
    teacher, student = tiny_bert(num_hidden_layers=3), tiny_bert(num_hidden_layers=2)
    of_teacher, of_student = states(teacher, batch)[1:], states(student, batch)[1:]
    distances = [
        [(1 - F.cosine_similarity(ours, theirs, dim=-1)).mean().item() for theirs in of_teacher] for ours in of_student
    ]
    loss = compared(Layerwise(style="distilbert", dynamic=True), teacher, student)
    assert len(loss.pairs) == 6
    assert value_of(loss, teacher, student, batch) == pytest.approx(sum(map(min, distances)), rel=1e-4)


def test_a_copied_layer_is_found_by_dynamic(batch, compared):
    teacher = tiny_bert(num_hidden_layers=4, initializer_range=0.5)
    student = copy.deepcopy(teacher)
    transformer.keep_layers(student, [0, 1])
    uniform, dynamic = (compared(Layerwise(dynamic=d), teacher, student) for d in (False, True))
    assert value_of(dynamic, teacher, student, batch) == pytest.approx(0.0, abs=1e-6)
    assert value_of(uniform, teacher, student, batch) > 0.1


def test_candidates_can_be_named(compared):
    teacher, student = tiny_bert(num_hidden_layers=4), tiny_bert(num_hidden_layers=2)
    pairs = f"{LAYER}.0:{LAYER}.0/{LAYER}.1:{LAYER}.0"
    loss = compared(Layerwise(pairs=pairs, dynamic=True), teacher, student)
    assert loss.pairs == [(f"{LAYER}.0", f"{LAYER}.0"), (f"{LAYER}.1", f"{LAYER}.0")]
    assert loss.layers == [f"{LAYER}.0"]


def linears(loss):
    return {m for m in loss.projections.modules() if isinstance(m, nn.Linear)}


def test_projections_are_made_for_different_widths_one_for_all_or_one_for_each(compared):
    teacher = tiny_bert(num_hidden_layers=4)
    same, thin = tiny_bert(num_hidden_layers=2), tiny_bert(num_hidden_layers=2, hidden_size=16)
    assert len(linears(compared(Layerwise(), teacher, same))) == 0
    assert len(linears(compared(Layerwise(), teacher, thin))) == 1
    assert len(linears(compared(Layerwise(adaptive=True), teacher, same))) == 2
    assert len(linears(compared(Layerwise(adaptive=True), teacher, thin))) == 2


def test_a_projection_starts_as_the_identity_and_learns(batch, compared, make_context):
    torch.manual_seed(0)
    teacher, student = tiny_bert(num_hidden_layers=2).requires_grad_(False), tiny_bert(num_hidden_layers=1)
    plain, loss = (compared(Layerwise(adaptive=a, epochs=1), teacher, student) for a in (False, True))
    assert value_of(loss, teacher, student, batch) == pytest.approx(value_of(plain, teacher, student, batch), rel=1e-5)
    step, task = Layerwise(epochs=1), words_task()
    context = make_context(task, teacher)
    train_on_layers(student, teacher, loss, context, step.training_for(task), step.logits_loss(task))
    assert not torch.equal(loss.projections[0].weight, torch.eye(32))


@pytest.mark.parametrize("fields", [{}, {"style": "distilbert"}, {"dynamic": True}, {"adaptive": True}])
def test_a_student_of_every_second_layer_predicts_as_its_unchanged_teacher(make_context, fields):
    torch.manual_seed(0)
    task = words_task()
    teacher = method("finetune")(epochs=6).apply(tiny_bert(num_hidden_layers=4), make_context(task, nn.Identity()))
    before, context = copy.deepcopy(teacher), make_context(task, teacher)
    student = Layerwise(epochs=6, temperature=2.0, **fields).apply(copy.deepcopy(teacher), context)
    assert student.config.num_hidden_layers == 2
    of_student, of_teacher = (predict(model, task.test)[0].argmax(1) for model in (student, teacher))
    assert (of_student == of_teacher).float().mean() > 0.8
    assert have_equal_weights(teacher, before)
    assert {"softened", "features"} <= set(context.record.figures)


def test_attention_of_other_heads_is_refused_by_tinybert_alone(compared):
    teacher, student = tiny_bert(), tiny_bert()
    transformer.cut_heads(student, 0, [0])
    with pytest.raises(UserError, match="head by head"):
        compared(Layerwise(), teacher, student)
    compared(Layerwise(style="distilbert"), teacher, student)


def test_names_that_are_no_layer_of_the_transformer_is_refused(compared):
    with pytest.raises(UserError, match="bert.pooler is no layer"):
        compared(Layerwise(style="distilbert", pairs="bert.pooler"), tiny_bert(), tiny_bert())


@pytest.mark.parametrize("style", ["tinybert", "distilbert"])
def test_other_forms_of_transformers_are_compared_too(make_context, style):
    sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}
    task, teacher = words_task(), tiny_bert(model_type="distilbert", **sizes)
    student = Layerwise(epochs=1, style=style).apply(copy.deepcopy(teacher), make_context(task, teacher))
    assert student.config.num_hidden_layers == 1
    assert torch.isfinite(predict(student, task.test)[0]).all()
