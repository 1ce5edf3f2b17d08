import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from compression import models
from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.ln_structured import channel_norms
from compression.methods.prune.masks import scheduled
from compression.methods.prune.masks.scores import keep_largest
from compression.methods.prune.masks.sparsity import layer_sparsities, mean_sparsity
from compression.models import storage
from compression.nn import layers
from tests.conftest import tiny_bert, words_task
from tests.methods.prune.conftest import sparsity, zeros

Magnitude, LnStructured = method("magnitude"), method("ln_structured")
WAYS = ["linear", "agp", "lottery"]


def peers(model, by):
    """The zeros after torch.nn.utils.prune on a copy."""
    copied = copy.deepcopy(model)
    by([(m, "weight") for m in layers.prunable_layers(copied).values()])
    return {name: m.weight == 0 for name, m in layers.prunable_layers(copied).items()}


def assert_same_masks(found, expected):
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("amount", [0.3, 0.9])
def test_global_l1_is_torchs_global_unstructured(knowing, amount):
    model, context = knowing
    expected = peers(model, lambda weights: prune.global_unstructured(weights, prune.L1Unstructured, amount=amount))
    assert_same_masks(zeros(Magnitude(sparsity=amount).apply(model, context)), expected)


@pytest.mark.parametrize("amount", [0.3, 0.9])
def test_local_l1_is_torchs_l1_unstructured(knowing, amount):
    model, context = knowing
    expected = peers(model, lambda weights: [prune.l1_unstructured(m, n, amount) for m, n in weights])
    assert_same_masks(zeros(Magnitude(sparsity=amount, scope="local").apply(model, context)), expected)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_random_takes_as_many_as_torch_and_by_chance(knowing, scope):
    model, context = knowing
    expected = peers(model, lambda weights: [prune.random_unstructured(m, n, 0.4) for m, n in weights])
    before = {name: layers.weight(m).abs().mean().item() for name, m in layers.prunable_layers(model).items()}
    found = zeros(Magnitude(sparsity=0.4, scope=scope, criterion="random").apply(model, context))
    if scope == "local":
        assert all(found[name].sum() == expected[name].sum() for name in expected)
    assert sparsity(model) == pytest.approx(0.4, abs=1e-3)
    left = {
        name: layers.weight(m)[~found[name]].abs().mean().item() for name, m in layers.prunable_layers(model).items()
    }
    assert left["hidden.fc"] == pytest.approx(before["hidden.fc"], rel=0.1)


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("n", [1.0, 2.0, float("inf")])
def test_ln_structured_is_torchs(knowing, n, dim):
    model, context = knowing
    expected = peers(model, lambda weights: [prune.ln_structured(m, w, 0.5, n, dim) for m, w in weights[:-1]])
    found = zeros(LnStructured(sparsity=0.5, n=n, dim=dim).apply(model, context))
    assert_same_masks(found, expected)


def test_a_layer_keeps_a_channel(knowing):
    model, context = knowing
    found = zeros(LnStructured(sparsity=0.99, dim=1).apply(model, context))
    assert not found["stages.0.conv"].any()  # it has one input
    assert not any(z.all() for z in found.values())


def test_an_odd_number_of_weights_is_halved_as_torch_does():
    # round(2.5) = 2 of 5 go
    layer = nn.Linear(5, 1, bias=False)
    prune.l1_unstructured(layer, "weight", 0.5)
    kept = keep_largest({"": layer.weight_orig.detach().abs()}, 0.5)[""]
    assert torch.equal(kept, layer.weight_mask.bool())


def test_norms_by_hand():
    weight = torch.tensor([[3.0, -4.0], [0.0, 2.0]])
    assert channel_norms(weight, 2.0, 0).tolist() == [5.0, 2.0]
    assert channel_norms(weight, 1.0, 1).tolist() == [3.0, 6.0]
    assert channel_norms(weight, float("inf"), 0).tolist() == [4.0, 2.0]


def test_the_layer_with_the_logits_keeps_its_classes(knowing):
    model, context = knowing
    found = zeros(LnStructured(sparsity=0.8).apply(model, context))
    assert not found["fc"].any()
    with pytest.raises(UserError, match="no prunable layer"):
        LnStructured(layers="fc:0.5").apply(model, context)


@pytest.mark.parametrize("scope", ["global", "local"])
def test_a_layer_gets_the_sparsity_given_for_it(knowing, scope):
    model, context = knowing
    Magnitude(sparsity=0.6, scope=scope, layers="stages.0:0/fc:0.25").apply(model, context)
    found = {name: z.float().mean().item() for name, z in zeros(model).items()}
    assert (found["stages.0.conv"], found["fc"]) == (0.0, 0.25)
    rest = [z.flatten() for name, z in zeros(model).items() if name not in ("stages.0.conv", "fc")]
    assert torch.cat(rest).float().mean().item() == pytest.approx(0.6, abs=1e-3)


def test_the_table_shows_before_and_after(knowing):
    model, context = knowing
    Magnitude(sparsity=0.5).apply(model, context)
    assert context.record.tables["sparsity"][-1]["after"] == pytest.approx(0.5, abs=1e-3)


def test_what_an_earlier_step_pruned_stays_pruned(knowing):
    model, context = knowing
    Magnitude(sparsity=0.5, criterion="random").apply(model, context)
    first = zeros(model)
    Magnitude(sparsity=0.3).apply(model, context)
    assert_same_masks(zeros(model), first)
    Magnitude(sparsity=0.7, criterion="random").apply(model, context)
    assert all((first[name] <= z).all() for name, z in zeros(model).items())
    assert sparsity(model) == pytest.approx(0.7, abs=1e-3)


@pytest.mark.parametrize("name", ["magnitude", "ln_structured"])
def test_zeros_stay_zeros_through_finetune(knowing, name):
    model, context = knowing
    method(name)(sparsity=0.6).apply(model, context)
    before = zeros(model)
    weight = model.fc.weight.clone()
    method("finetune")(epochs=2).apply(model, context)
    assert_same_masks(zeros(model), before)
    assert not torch.equal(model.fc.weight, weight)


@pytest.mark.parametrize("schedule", WAYS)
@pytest.mark.parametrize("name", ["magnitude", "ln_structured"])
def test_every_schedule_ends_at_the_target_with_its_curve(knowing, name, schedule):
    model, context = knowing
    step = method(name)(sparsity=0.8, sparsity_schedule=schedule, epochs=2, updates=6, rounds=2)
    model = step.apply(model, context)
    table = {row["layer"]: row["after"] for row in context.record.tables["sparsity"]}
    final = step.final_sparsities(model)
    assert sum(table[n] for n in final) / len(final) == pytest.approx(0.8, abs=0.3)
    if name == "magnitude":
        assert table["total"] == pytest.approx(0.8, abs=1e-3)
    [axes] = context.record.figures["sparsity-schedule"].axes
    wanted, reached = (list(line.get_ydata()) for line in axes.lines)
    assert (wanted[0], wanted[-1]) == (0.0, pytest.approx(0.8))
    assert reached == pytest.approx(wanted, abs=0.03)
    assert len(wanted) >= 3
    assert list(layers.masked_layers(model)) == list(final)


def test_gradual_pruning_follows_its_equation(knowing):
    model, context = knowing
    Magnitude(sparsity=0.6, sparsity_schedule="agp", epochs=2, updates=4, ramp_end=1.0).apply(model, context)
    [axes] = context.record.figures["sparsity-schedule"].axes
    reached = axes.lines[1].get_ydata()
    expected = [0.6 * (1 - (1 - t) ** 3) for t in (0, 0.25, 0.5, 0.75, 1, 1)]
    assert list(reached) == pytest.approx(expected, abs=1e-3)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize(("schedule", "rewind"), [("agp", 0), ("lottery", 1)])
def test_a_killed_training_resumes_to_the_same_weights_and_masks(task, make_context, tmp_path, schedule, rewind):
    torch.manual_seed(0)
    start = models.build("digits_cnn_small", task)
    step = Magnitude(sparsity=0.7, sparsity_schedule=schedule, epochs=3, rounds=2, rewind=rewind, updates=5)

    def run(folder, stop_at=None, resume=None):
        folder.mkdir(exist_ok=True)
        context = make_context(task, start, folder=folder, resume=resume)
        kept = context.record.metrics

        def metrics(values, step=None):
            if step == stop_at:
                raise Interrupted
            kept(values, step)

        context.record.metrics = metrics
        return step.apply(copy.deepcopy(start), context)

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "part", stop_at=3 if schedule == "agp" else 5)
    resumed = run(tmp_path / "rest", resume=tmp_path / "part")
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], value, rtol=0, atol=0)
    assert_same_masks(zeros(resumed), zeros(whole))


def test_a_lottery_ticket_starts_from_the_first_weights(knowing, monkeypatch):
    # without training, what is left must be the seed's own initialisation, wherever the mask lets it through
    model, context = knowing
    monkeypatch.setattr(scheduled, "fit", lambda model, *_, **__: model)
    ticket = Magnitude(sparsity=0.5, sparsity_schedule="lottery", epochs=1, rounds=1).apply(model, context)
    torch.manual_seed(context.seed)
    fresh = models.rebuild(models.spec_of(model))
    for name, layer in layers.prunable_layers(ticket).items():
        expected = layers.weight(fresh.get_submodule(name)) * layer.mask
        assert torch.equal(layers.weight(layer), expected)


def test_a_transformer_goes_back_to_what_it_was_given(make_context, monkeypatch):
    task, model = words_task(), tiny_bert(3)
    starts = []

    def trained(model, *_, **__):
        starts.append(copy.deepcopy(model.state_dict()))
        torch.nn.init.normal_(model.classifier.weight)

    monkeypatch.setattr(scheduled, "fit", trained)
    given = copy.deepcopy(model.state_dict())
    step = Magnitude(sparsity=0.5, sparsity_schedule="lottery", epochs=1, rounds=2)
    step.apply(model, make_context(task, copy.deepcopy(model)))
    assert len(starts) == 3
    for start in starts:
        kept = start["classifier.weight"] != 0
        assert torch.equal(start["classifier.weight"][kept], given["classifier.weight"][kept])


@pytest.mark.parametrize("schedule", ["linear", "agp", "lottery"])
def test_pruning_along_a_training_needs_epochs(knowing, schedule):
    model, context = knowing
    with pytest.raises(UserError, match=f"sparsity_schedule={schedule} .* in a training, and epochs=0 is none"):
        Magnitude(sparsity_schedule=schedule, epochs=0).apply(model, context)


def test_what_was_pruned_before_gets_a_warning(knowing):
    model, context = knowing
    again = Magnitude(sparsity=0.3).apply(Magnitude(sparsity=0.5).apply(model, context), context)
    assert mean_sparsity(layer_sparsities(again), again) == pytest.approx(0.5, abs=0.001)
    assert context.record.warnings == ["50% of the weights were pruned before, more than the 30% asked for."]


def test_at_once_draws_its_two_points(knowing):
    model, context = knowing
    Magnitude(sparsity=0.5).apply(model, context)
    target, reached = context.record.figures["sparsity-schedule"].axes[0].lines
    assert (list(target.get_ydata()), list(reached.get_ydata())) == ([0, 0.5], [0, pytest.approx(0.5, abs=1e-3)])


def test_a_lottery_rewinds_to_the_epoch_asked_for(task, make_context, monkeypatch):
    starts = []
    fit = scheduled.fit

    def watched(model, *args, **kwargs):
        starts.append(copy.deepcopy(model.state_dict()))
        fit(model, *args, **kwargs)
        starts.append(copy.deepcopy(model.state_dict()))
        return model

    monkeypatch.setattr(scheduled, "fit", watched)
    torch.manual_seed(0)
    model = models.build("digits_cnn_small", task)
    step = Magnitude(sparsity=0.0, sparsity_schedule="lottery", epochs=2, rounds=1, rewind=2, schedule="constant")
    step.apply(model, make_context(task, model))
    _, trained, rewound, _ = starts
    assert all(torch.equal(trained[name], rewound[name]) for name in trained)


def test_a_lottery_after_another_step_is_refused(knowing):
    model, context = knowing
    with pytest.raises(UserError, match="must be the first step"):
        Magnitude(sparsity_schedule="lottery").apply(model, dataclasses.replace(context, model_changed=True))


def test_rewinding_past_the_end_is_refused(knowing):
    model, context = knowing
    with pytest.raises(UserError, match="rewind=3 lies after the last of 2 epochs"):
        Magnitude(sparsity_schedule="lottery", epochs=2, rewind=3).apply(model, context)


def test_a_ramp_must_start_before_it_ends():
    with pytest.raises(UserError, match="ramp_start=0.5 is not before ramp_end=0.5"):
        Magnitude(ramp_start=0.5, ramp_end=0.5)


def test_a_transformer_is_pruned_and_reloads(make_context, tmp_path):
    task, model = words_task(), tiny_bert()
    for step in (Magnitude(sparsity=0.9), LnStructured(sparsity=0.5), Magnitude(sparsity=0.95, epochs=1)):
        step.apply(model, make_context(task, model))
    assert sparsity(model) == pytest.approx(0.95, abs=1e-3)
    again = storage.load(storage.save(model, tmp_path, {}))
    assert list(layers.masked_layers(again)) == list(layers.masked_layers(model))


def test_nothing_to_prune_leaves_the_weights_alone(knowing):
    model, context = knowing
    before = copy.deepcopy(model.state_dict())
    Magnitude(sparsity=0.0).apply(model, context)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert isinstance(model, nn.Module)
