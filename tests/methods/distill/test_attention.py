import math

import pytest
import torch
from torch.nn import functional as F

from compression import models
from compression.errors import UserError
from compression.methods import method
from compression.methods.distill.attention import (
    AttentionMapLoss,
    MiniLmLoss,
    attention_map_loss,
    minilm_loss,
    relation_loss,
)
from compression.methods.distill.layers.features import record_outputs
from compression.methods.distill.layers.heads import AttentionProjections, log_relations
from compression.nn import transformer
from tests.conftest import tiny_bert, words_task

Attention = method("attention")


def test_the_loss_of_maps_equals_the_case_worked_by_hand():
    # two channels, two pixels: mean squares (5, 0) -> map (1, 0); and (8, 6) -> map (0.8, 0.6)
    student = torch.tensor([[[[1.0, 0.0]], [[3.0, 0.0]]]])
    teacher = torch.tensor([[[[4.0, 2.0]], [[0.0, math.sqrt(8)]]]])
    assert attention_map_loss(student, teacher).item() == pytest.approx(0.2**2 + 0.6**2, rel=1e-5)


def test_torchdistills_loss_is_ours_divided_by_the_pixels():
    # torchdistill's ATLoss, mode 'code': normalize(mean over channels of squares), mean squared difference
    student, teacher = torch.randn(4, 6, 8, 8), torch.randn(4, 10, 8, 8)
    of_student, of_teacher = (F.normalize(x.pow(2).mean(1).flatten(1)) for x in (student, teacher))
    published = (of_student - of_teacher).pow(2).mean()
    assert attention_map_loss(student, teacher).item() == pytest.approx(64 * published.item(), rel=1e-5)


def test_neither_scale_nor_number_of_channels_matters():
    output = torch.randn(4, 6, 8, 8)
    assert attention_map_loss(output, 7 * output.repeat(1, 3, 1, 1)).item() == pytest.approx(0.0, abs=1e-9)


def test_the_maps_of_all_pairs_are_added_up():
    teacher, student = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
    loss = AttentionMapLoss([("a", "x"), ("b", "x")], weight=3.0)
    expected = 3 * (attention_map_loss(student, teacher) + attention_map_loss(student, 2 * teacher + 1))
    assert loss({"a": teacher, "b": 2 * teacher + 1}, {"x": student}, None).item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_recomputed_attention_is_that_of_the_model():
    model, mask = tiny_bert(), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    layer, projections = "bert.encoder.layer.1", AttentionProjections(model)
    query, key, _ = projections.names(layer)
    attentions = []
    hook = model.get_submodule(f"{layer}.attention.self").register_forward_hook(
        lambda m, i, out: attentions.append(out[1])
    )
    with record_outputs(model, [query, key]) as outputs:
        model(input_ids=torch.randint(2, 20, (2, 4)), attention_mask=mask)
    hook.remove()
    found = log_relations(outputs[query], outputs[key], projections.heads[layer], mask.bool()).exp()
    torch.testing.assert_close(found, attentions[0])


def test_the_relation_loss_equals_the_case_worked_by_hand():
    # one head, two mask of which the second is padding: only the first row counts
    student = torch.tensor([[[[0.5, 0.5], [0.9, 0.1]]]]).log()
    teacher = torch.tensor([[[[0.25, 0.75], [0.1, 0.9]]]]).log()
    found = relation_loss(student, teacher, torch.tensor([[True, False]]))
    assert found.item() == pytest.approx(0.25 * math.log(0.5) + 0.75 * math.log(1.5), rel=1e-5)


def test_minilms_loss_is_that_of_the_paper_head_by_head():
    # Wang et al. 2020, eq. 7 to 10: 1/(heads mask) sum KL, of softmax(QK/sqrt d) and of softmax(VV/sqrt d)
    heads, length = 2, 5
    student, teacher = ([torch.randn(1, length, heads * size) for _ in range(3)] for size in (3, 8))
    expected = 0.0
    for head in range(heads):
        per_head = []
        for q, k, v in (student, teacher):
            size = q.shape[-1] // heads
            cut = slice(head * size, (head + 1) * size)
            q, k, v = (x[0, :, cut] for x in (q, k, v))
            per_head.append([F.softmax(q @ k.T / size**0.5, -1), F.softmax(v @ v.T / size**0.5, -1)])
        for p, q in zip(*per_head, strict=True):
            expected += (q * (q / p).log()).sum().item() / (heads * length)
    mask = torch.ones(1, length, dtype=torch.bool)
    assert minilm_loss(student, teacher, heads, mask).item() == pytest.approx(expected, rel=1e-4)


def test_padding_changes_nothing_and_leaves_a_finite_gradient():
    heads = 2
    student, teacher = ([torch.randn(1, 4, 8, requires_grad=True) for _ in range(3)] for _ in range(2))
    short = minilm_loss(student, teacher, heads, torch.ones(1, 4, dtype=torch.bool))
    longer = [[F.pad(x, (0, 0, 0, 3), value=5.0) for x in side] for side in (student, teacher)]
    mask = torch.tensor([[True] * 4 + [False] * 3])
    padded = minilm_loss(*longer, heads, mask)
    assert padded.item() == pytest.approx(short.item(), rel=1e-5)
    padded.backward()
    assert all(torch.isfinite(x.grad).all() for x in student)


def test_only_the_last_layer_is_compared_unless_layers_are_named(make_context):
    teacher, student = tiny_bert(num_hidden_layers=4), tiny_bert(num_hidden_layers=2)
    context = make_context(words_task(), teacher)
    found = Attention().layer_loss(teacher, student, context)
    assert isinstance(found, MiniLmLoss)
    assert found.pairs == [("bert.encoder.layer.3", "bert.encoder.layer.1")]
    named = Attention(pairs="bert.encoder.layer.1:bert.encoder.layer.0/bert.encoder.layer.3:bert.encoder.layer.1")
    assert len(named.layer_loss(teacher, student, context).pairs) == 2


def test_another_number_of_heads_is_refused(make_context):
    teacher, student = tiny_bert(), tiny_bert()
    transformer.cut_heads(student, 2, [0, 1])
    with pytest.raises(
        UserError, match=r"head by head, and the teacher's layers have \[4\] heads, the student's \[2\]"
    ):
        Attention().layer_loss(teacher, student, make_context(words_task(), teacher))


def test_a_layer_without_attention_is_refused(make_context):
    teacher, student = tiny_bert(), tiny_bert()
    with pytest.raises(UserError, match="bert.pooler is no layer with attention of its own; there are bert.encoder"):
        Attention(pairs="bert.pooler").layer_loss(teacher, student, make_context(words_task(), teacher))


def test_outputs_that_are_no_feature_maps_are_refused(task, make_context):
    teacher = models.build("mlp", task)
    with pytest.raises(UserError, match="compares feature maps of images, and stages.0 has none"):
        Attention(width=0.5).apply(teacher, make_context(task, teacher))
