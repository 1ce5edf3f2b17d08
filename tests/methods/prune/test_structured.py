import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.structure.costs import count_operations
from compression.methods.prune.structure.importance import CRITERIA
from compression.methods.prune.structured import WITH_PENALTY
from compression.models import storage
from compression.nn import layers, transformer
from compression.tasks.task import Split, predict
from tests.conftest import stripes_task, tiny_bert, words_task
from tests.methods.prune.conftest import zeros

Structured = method("structured")
COSTS = {
    "params": lambda model, task: layers.count_parameters(model),
    "macs": lambda model, task: count_operations(model, task.example()),
    "channels": lambda model, task: sum(
        layers.weight(m).shape[0]
        for m in layers.prunable_layers(model).values()
        if m is not transformer.classifier(model)
    ),
}


def pruned(model, make_context, task, **fields):
    """What is left of a copy, and the context it was pruned in; channel by channel, if nothing else is said."""
    context = make_context(task, copy.deepcopy(model))
    return Structured(**({"round_to": 1} | fields)).apply(copy.deepcopy(model), context), context


def left(small, model, task, target="macs"):
    return COSTS[target](small, task) / COSTS[target](model, task)


@pytest.mark.parametrize("scope", ["local", "global"])
@pytest.mark.parametrize("target", COSTS)
@pytest.mark.parametrize("name", ["digits_cnn", "resnet8", "mlp"])
def test_the_target_is_met_within_two_percent(task, make_context, name, target, scope):
    torch.manual_seed(0)
    model = models.build(name, task)
    small, context = pruned(model, make_context, task, sparsity=0.5, target=target, scope=scope)
    assert left(small, model, task, target) == pytest.approx(0.5, abs=0.02)
    assert not context.record.warnings
    assert small.fc.out_features == 3


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("scope", ["local", "global"])
def test_the_target_is_met_in_multiples_of_eight_too(task, make_context, scope, sparsity):
    torch.manual_seed(0)
    model = models.rebuild(
        {"builder": "digits_cnn", "arguments": {"outputs": 3, "input_shape": [1, 8, 8], "width": 1.0}}
    )
    small, context = pruned(model, make_context, task, sparsity=sparsity, scope=scope, round_to=8)
    assert left(small, model, task) == pytest.approx(1 - sparsity, abs=0.02)
    assert not context.record.warnings
    widths = [layers.weight(m).shape[0] for m in layers.prunable_layers(small).values()][:-1]
    assert min(widths) > 8  # no layer is drained to fill a gap


@pytest.mark.parametrize("criterion", ["group", "bn_scale"])
def test_a_criterion_with_a_training_needs_epochs(task, make_context, criterion):
    with pytest.raises(UserError, match=f"criterion={criterion} makes channels small in a training, and epochs=0"):
        pruned(models.build("resnet8", task), make_context, task, criterion=criterion, epochs=0)


def test_of_a_transformer_heads_and_neurons_are_shown(make_context):
    _, context = pruned(tiny_bert(3), make_context, words_task(), sparsity=0.5, target="params")
    heads, neurons = context.record.figures["kept"].axes
    assert (heads.get_title(loc="left"), neurons.get_title(loc="left")) == ("Heads by layer", "Neurons by layer")
    assert context.record.tables["kept"][0]["heads_before"] == 4


def test_a_part_named_twice_is_refused():
    with pytest.raises(UserError, match="parts=heads/heads names one thing twice; each counts once"):
        Structured(parts="heads/heads")


@pytest.mark.parametrize(("name", "width"), [("cnn5", 1.0), ("resnet20", 1.0), ("resnet18", 0.5)])
def test_the_models_of_cifar_lose_half_their_macs(make_context, name, width):
    images = Split(torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4).long(), lambda stored: stored.float())
    task = stripes_task(input_shape=(3, 32, 32), test=images)
    model = models.rebuild({"builder": name, "arguments": {"outputs": 3, "input_shape": [3, 32, 32], "width": width}})
    small, _ = pruned(model, make_context, task, round_to=8)
    assert left(small, model, task) == pytest.approx(0.5, abs=0.02)
    assert all(layers.weight(m).shape[0] % 8 == 0 for m in layers.prunable_layers(small).values() if m is not small.fc)
    assert predict(small.eval(), images)[0].shape == (4, 3)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_cuts_a_residual_network_that_reloads(task, make_context, tmp_path, criterion):
    torch.manual_seed(0)
    model = models.build("resnet8", task)
    small, _ = pruned(model, make_context, task, criterion=criterion, epochs=1, examples=32, round_to=4)
    assert left(small, model, task) < 0.6
    again = storage.load(storage.save(small, tmp_path, {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])
    inner = [m.out_channels for name, m in small.named_modules() if name.endswith("conv1")]
    assert all(width % 4 == 0 for width in inner)


@pytest.mark.parametrize(("name", "scope"), [("resnet8", "global"), ("bert", "local")])
def test_what_is_left_exports_with_equal_logits(task, make_context, tmp_path, name, scope):
    torch.manual_seed(0)
    task, model = (words_task(), tiny_bert()) if name == "bert" else (task, models.build(name, task))
    small, _ = pruned(model, make_context, task, scope=scope)
    file = export(small, task.example(4), tmp_path / "model.onnx")
    assert check_parity(small, file, task.test, task, threads=1).max_difference < 1e-4


def test_the_channels_that_stay_are_those_with_the_largest_scores(task, make_context):
    torch.manual_seed(0)
    model = models.build("mlp", task)
    small, _ = pruned(model, make_context, task, target="channels")
    first, second = model.stages[0].fc, model.stages[1].fc
    score = first.weight.abs().sum(1) + second.weight.abs().sum(0)
    kept = score.argsort(descending=True)[: small.stages[0].fc.out_features].sort().values
    assert torch.equal(small.stages[0].fc.weight, first.weight[kept])


def test_removing_channels_that_are_zero_changes_nothing(task, make_context):
    torch.manual_seed(0)
    model = models.build("mlp", task).eval()
    for stage in model.stages:
        stage.fc.weight.data[::2] = 0
        stage.fc.bias.data[::2] = 0
        stage.fc.bias.data[1::2] += 1
    model.stages[1].fc.weight.data[:, ::2] = 0
    model.fc.weight.data[:, ::2] = 0
    small, _ = pruned(model, make_context, task, target="channels", criterion="l2")
    assert small.stages[0].fc.out_features == 128
    torch.testing.assert_close(predict(small, task.test)[0], predict(model, task.test)[0])


def test_several_steps_rank_anew_and_end_at_the_same_target(task, make_context, monkeypatch):
    from compression.methods.prune import structured

    ranked = []
    rank = structured.importance
    monkeypatch.setattr(structured, "importance", lambda model, *rest: ranked.append(model) or rank(model, *rest))
    model = models.build("digits_cnn", task)
    small, _ = pruned(model, make_context, task, steps=3, criterion="taylor", examples=64)
    assert len(ranked) == 3
    assert left(small, model, task) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("criterion", ["bn_scale", "group"])
def test_the_penalty_makes_channels_small_before_they_go(knowing, criterion):
    model, context = knowing
    sizes = {}
    for penalty in (0.0, 0.1):
        copied = copy.deepcopy(model)
        step = Structured(criterion=criterion, penalty=penalty, epochs=2, sparsity=0.0, learning_rate=0.1)
        step.apply(copied, context)
        sizes[penalty] = copied.stages[1].bn.weight.abs().sum().item()
    assert sizes[0.1] < 0.8 * sizes[0.0]


def test_a_sparsely_trained_model_loses_little(knowing, task):
    from compression.tasks.task import evaluate

    model, context = knowing
    step = Structured(criterion="group", penalty=0.03, epochs=10, sparsity=0.4, learning_rate=0.05, scope="global")
    assert evaluate(step.apply(model, context).eval(), task.test, task)["accuracy"] > 0.9


def test_zeros_of_an_earlier_step_stay_zeros_through_a_cut_and_finetune(knowing):
    model, context = knowing
    method("magnitude")(sparsity=0.8).apply(model, context)
    Structured().apply(model, context)
    before = zeros(model)
    assert 0.3 < before["hidden.fc"].float().mean() < 1
    method("finetune")(epochs=1).apply(model, context)
    assert all(torch.equal(z, before[name]) for name, z in zeros(model).items())


def test_a_cut_model_trains_on(knowing):
    model, context = knowing
    model.fc.bias.requires_grad_(False)
    Structured().apply(model, context)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable == {name for name, _ in model.named_parameters()} - {"fc.bias"}


def test_the_picture_shows_channels_before_and_after(knowing):
    model, context = knowing
    Structured(target="channels").apply(model, context)
    [axes] = context.record.figures["kept-channels"].axes
    heights = [bar.get_height() for bar in axes.patches]
    assert heights[:3] == [32, 64, 128]
    assert heights[len(heights) // 2 :][:3] == [16, 32, 64]


def test_a_target_missed_gets_a_warning(knowing):
    model, context = knowing
    Structured(target="channels", sparsity=0.4, round_to=32).apply(model, context)
    assert "channels are gone instead of 40.0%" in context.record.warnings[0]


def test_too_much_is_refused(knowing):
    with pytest.raises(UserError, match="sparsity=0.9999 of the macs cannot go"):
        Structured(sparsity=0.9999).apply(*knowing)


@pytest.mark.parametrize("criterion", ["bn_scale", "group"])
def test_a_criterion_made_for_batch_norms_refuses_a_model_without(make_context, criterion):
    task, model = words_task(), tiny_bert()
    with pytest.raises(UserError, match=f"criterion={criterion} is made for .* a BertFor.* takes one of l1, l2"):
        pruned(model, make_context, task, criterion=criterion)


def test_parts_that_do_not_exist_are_refused():
    with pytest.raises(UserError, match="parts='feet' is unknown; it is any of heads, ffn, hidden"):
        Structured(parts="heads/feet")


DISTILBERT = {"model_type": "distilbert", "dim": 32, "n_heads": 4, "hidden_dim": 48}


@pytest.mark.parametrize(
    ("parts", "target", "form"),
    [
        ("heads/ffn", "macs", {}),
        ("heads/ffn", "params", DISTILBERT),
        ("ffn", "params", {}),
        ("ffn/hidden", "macs", {}),
        ("heads/ffn/hidden", "macs", DISTILBERT),
    ],
)
def test_a_transformer_meets_its_target_alike_in_all_layers_and_reloads(make_context, tmp_path, parts, target, form):
    torch.manual_seed(0)
    task, model = words_task(), tiny_bert(**form)
    small, context = pruned(model, make_context, task, sparsity=0.25, target=target, parts=parts)
    assert left(small, model, task, target) == pytest.approx(0.75, abs=0.02)
    assert not context.record.warnings
    assert len({(b.heads, b.neurons) for b in transformer.blocks(small)}) == 1
    again = storage.load(storage.save(small, tmp_path, {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])


@pytest.mark.parametrize("parts", ["ffn", "heads/ffn/hidden"])
def test_what_keeps_a_heads_width_reads_with_from_pretrained(make_context, tmp_path, parts):
    task, model = words_task(), tiny_bert()
    small, _ = pruned(model, make_context, task, target="channels", parts=parts)
    storage.save(small, tmp_path, {})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])
    config = again.config
    told = (config.num_attention_heads, config.intermediate_size, config.hidden_size)
    assert told == ((4, 24, 32) if parts == "ffn" else (2, 24, 16))


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name not in WITH_PENALTY])
def test_every_criterion_without_batch_norms_cuts_a_transformer(make_context, criterion):
    task, model = words_task(), tiny_bert()
    small, _ = pruned(model, make_context, task, criterion=criterion, examples=32)
    assert left(small, model, task) == pytest.approx(0.5, abs=0.02)


def test_the_heads_that_stay_have_the_largest_weights(make_context):
    torch.manual_seed(0)
    task, model = words_task(), tiny_bert()
    strong = {0: (1, 3), 1: (0, 2), 2: (2, 3)}
    for layer, heads in strong.items():
        for head in heads:
            transformer.blocks(model)[layer].value.weight.data[head * 8 : head * 8 + 8] *= 10
    small, _ = pruned(model, make_context, task, target="channels", parts="heads")
    for layer, heads in strong.items():
        rows = [row for head in heads for row in range(head * 8, head * 8 + 8)]
        assert torch.equal(
            transformer.blocks(small)[layer].value.weight, transformer.blocks(model)[layer].value.weight[rows]
        )


def test_global_ranking_of_a_transformer_is_refused(make_context):
    with pytest.raises(UserError, match="scope=global would leave a transformer's layers"):
        pruned(tiny_bert(), make_context, words_task(), scope="global")


def test_heads_and_hidden_part_ways_once_heads_were_cut_alone(make_context):
    task, model = words_task(), tiny_bert()
    small, context = pruned(model, make_context, task, target="channels", parts="heads")
    with pytest.raises(UserError, match="cannot go together any more"):
        Structured(parts="heads/hidden").apply(small, context)
    assert isinstance(Structured(parts="hidden").apply(small, context), nn.Module)
