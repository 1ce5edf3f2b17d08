"""L0 pruning: the hard concrete distribution, the count of weights, the multipliers, what is cut."""

import copy
import math

import pytest
import torch

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods import method
from compression.methods.prune import l0
from compression.methods.prune.structure import cofi, hard_concrete
from compression.models import storage
from compression.nn import layers, transformer
from compression.nn.inputs import forward
from compression.tasks.task import predict
from tests.conftest import tiny_bert, words_task


def test_a_gate_is_the_stretched_and_clipped_sigmoid_of_its_noise():
    log_alpha, uniform = torch.tensor([0.0, 1.0, -6.0, 6.0]), torch.tensor([0.5, 0.3, 0.5, 0.5])
    inner = 1 / (1 + math.exp(-(math.log(0.3 / 0.7) + 1.0) * 1.5))
    wanted = [0.5, inner * 1.2 - 0.1, 0.0, 1.0]
    assert hard_concrete.quantile(log_alpha, uniform).tolist() == pytest.approx(wanted, abs=1e-6)


def test_the_expected_l0_norm_is_that_of_the_formula_and_of_many_samples():
    log_alpha = torch.tensor([-2.0, 0.0, 1.5])
    wanted = [1 / (1 + math.exp(-(a - 2 / 3 * math.log(0.1 / 1.1)))) for a in log_alpha.tolist()]
    found = hard_concrete.open_probability(log_alpha)
    assert found.tolist() == pytest.approx(wanted)
    torch.manual_seed(0)
    samples = hard_concrete.quantile(log_alpha, torch.rand(200_000, 3))
    torch.testing.assert_close((samples > 0).float().mean(0), found, atol=5e-3, rtol=0)


def test_as_many_gates_are_open_as_are_expected_to_be():
    log_alpha = torch.tensor([-1.6 - 3, 3.0, -1.6, 4.0])  # probabilities about 0.05, 0.99, 0.5, 1.0
    found = hard_concrete.discretize(log_alpha)
    assert (found > 0).tolist() == [False, True, True, True]
    assert found[1].item() == pytest.approx(1 / (1 + math.exp(-3 * 1.5 * 0.8)))
    assert (hard_concrete.discretize(log_alpha, multiple=4) > 0).all()
    assert not hard_concrete.discretize(torch.full((3,), -9.0)).any()


def test_the_gradient_closes_what_hurts():
    gates = hard_concrete.Gates(2, initial=0.0)
    optimizer = torch.optim.Adam(gates.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(100):
        gates.sample()
        optimizer.zero_grad()
        (gates() * torch.tensor([1.0, -1.0])).sum().backward()
        optimizer.step()
    assert (gates.eval()() > 0).tolist() == [False, True]


def encoder_gates(**changes):
    return cofi.EncoderGates(tiny_bert(3, **changes))


def test_the_weights_of_every_combination_are_counted_as_by_hand():
    found = encoder_gates(num_hidden_layers=2)  # hidden 32, 4 heads of 8, 48 neurons
    assert found.total == 2 * (4 * 32 * 32 + 2 * 32 * 48)
    opened = [torch.ones_like(g.log_alpha) for g in found.rows()]
    opened[0][0] = 0  # the attention of layer 0
    opened[3][:] = 0  # its heads too, which changes nothing more
    opened[4][1] = 0  # a head of layer 1
    opened[6][:8] = 0  # 8 neurons of layer 1
    opened[2][:16] = 0  # half of the hidden dimensions
    left = 16 * (4 * 24 + 2 * 48 + 2 * 40)
    assert found.count_weights(opened).item() == left
    assert found.sparsity(opened) == pytest.approx(1 - left / found.total)


def test_the_expected_sparsity_multiplies_the_probabilities_of_a_weights_gates():
    found = encoder_gates(num_hidden_layers=1)
    p = [hard_concrete.open_probability(g.log_alpha.detach())[0].item() for g in found.rows()]
    left = 4 * 32 * 32 * p[0] * p[2] * p[3] + 2 * 32 * 48 * p[1] * p[2] * p[4]
    assert found.expected_sparsity().item() == pytest.approx(1 - left / found.total, abs=1e-5)


def test_the_constraint_is_the_lagrangian():
    parameters = l0.GateParameters(tiny_bert(3), tiny_bert(3))
    parameters.multipliers[0].data.fill_(2.0)
    parameters.multipliers[1].data.fill_(3.0)
    gap = parameters.gates.expected_sparsity().item() - 0.7
    assert parameters.constraint(0.7).item() == pytest.approx(2 * gap + 3 * gap**2, rel=1e-4)


@pytest.mark.parametrize("sparsity", [0.2, 0.5, 0.9])
def test_discretized_gates_meet_the_target_whatever_was_learned(sparsity):
    torch.manual_seed(0)
    found = encoder_gates()
    for row in found.rows():
        torch.nn.init.normal_(row.log_alpha, std=3.0)
    values = found.discretize(sparsity)
    assert found.sparsity(values) == pytest.approx(sparsity, abs=0.02)
    assert int((values[2] > 0).sum()) % 4 == 0  # heads divide the hidden size


@pytest.fixture
def gated():
    """A model with gates in it, some closed of every kind, and its masks."""
    torch.manual_seed(0)
    model = tiny_bert(3)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    found = cofi.EncoderGates(model)
    for row in found.rows():
        torch.nn.init.normal_(row.log_alpha, mean=1.0, std=4.0)
    found.attention.log_alpha.data = torch.tensor([-9.0, 5.0, 5.0])
    found.ffn.log_alpha.data = torch.tensor([5.0, -9.0, 5.0])
    found.heads[1].log_alpha.data[:] = -9.0
    cofi.attach_gates(model, found)
    return model.eval(), found.eval()


def test_what_is_cut_answers_as_the_gated_model_did(gated, tmp_path):
    model, found = gated
    task = words_task()
    inputs = task.example(8)
    values = [row.discretized().detach() for row in found.rows()]
    before = forward(model, inputs).detach()
    plain = cofi.detach_gates(model, found, values)
    assert not any(isinstance(m, (cofi.GatedLinear, cofi.GatedNorm)) for m in plain.modules())
    torch.testing.assert_close(forward(plain, inputs), before, rtol=1e-3, atol=1e-4)
    kept = int((values[2] > 0).sum())
    assert transformer.hidden_size(plain) == kept < 32
    assert transformer.blocks(plain)[0].query.weight.shape == (1, kept)  # no attention is left of layer 0
    again = storage.load(storage.save(plain, tmp_path / "model", {}))
    torch.testing.assert_close(predict(again, task.test)[0], predict(plain, task.test)[0])
    file = export(plain, task.example(4), tmp_path / "model.onnx")
    assert check_parity(plain, file, task.test, task, threads=1).agreement == 1.0


def test_open_gates_change_nothing():
    torch.manual_seed(0)
    model, task = tiny_bert(3), words_task()
    inputs = task.example(4)
    before = forward(model, inputs).detach()
    found = cofi.EncoderGates(model)
    cofi.attach_gates(model, found)
    model.train()  # the gates drawn are ones until the first draw
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    torch.testing.assert_close(forward(model, inputs), before, rtol=1e-4, atol=1e-5)


def test_the_multipliers_drive_the_expected_sparsity_to_the_target(make_context):
    torch.manual_seed(0)
    task, model = words_task(), tiny_bert()
    context = make_context(task, model)
    step = method("l0")(sparsity=0.6, batch_size=8, epochs=10, distill_alpha=0.0, layer_share=0.0)
    expected = []
    final_gates = l0.GateTraining.final_gates

    def watch(loop):
        expected.append(loop.parameters.gates.expected_sparsity().item())
        return final_gates(loop)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(l0.GateTraining, "final_gates", watch)
        small = step.apply(copy.deepcopy(model), context)
    assert expected == [pytest.approx(0.6, abs=0.02)]
    assert not context.record.warnings
    before, after = (
        sum(b.query.weight.numel() * 4 + b.up.weight.numel() * 2 for b in transformer.blocks(m)) for m in (model, small)
    )
    assert 1 - after / before == pytest.approx(0.6, abs=0.05)  # what must stay of an empty part included
    assert "sparsity-schedule" in context.record.figures
    assert context.record.tables["kept"][0]["hidden_before"] == 32


def test_too_short_a_training_gets_a_warning_and_the_target_met(make_context):
    torch.manual_seed(0)
    model = tiny_bert()
    context = make_context(words_task(), model)
    small = method("l0")(epochs=1).apply(copy.deepcopy(model), context)
    assert "some hundreds are needed" in context.record.warnings[0]
    assert layers.count_parameters(small) < layers.count_parameters(model)


def test_what_is_left_trains_on_and_its_zeros_stay(make_context):
    torch.manual_seed(0)
    model = tiny_bert()
    context = make_context(words_task(), model)
    pruned = method("magnitude")(sparsity=0.3).apply(copy.deepcopy(model), context)
    small = method("l0")(epochs=1).apply(pruned, context)
    small = method("finetune")(epochs=1).apply(small, context)
    masked = layers.masked_layers(small).values()
    assert sum(int((~layer.mask).sum()) for layer in masked) > 1000
    assert all((layer.weight[~layer.mask] == 0).all() for layer in masked)


def test_a_layer_of_the_original_teaches_the_layer_alive_that_is_closest_to_it():
    attention_mask = torch.tensor([[1, 1, 0]])
    states = [torch.full((1, 3, 2), value) for value in (1.0, 5.0, 2.0)]
    states[0][0, 2] = 99.0  # padding
    teacher = [torch.full((1, 3, 2), value) for value in (1.5, 4.0)]
    alive = torch.tensor([True, True, True])
    assert l0.layer_distillation_loss(states, teacher, alive, attention_mask).item() == pytest.approx((0.25 + 1.0) / 2)
    only = torch.tensor([False, False, True])
    assert l0.layer_distillation_loss(states, teacher, only, attention_mask).item() == pytest.approx((0.25 + 4.0) / 2)
    assert l0.layer_distillation_loss(states, teacher, ~alive, attention_mask).item() == pytest.approx((0.25 + 1.0) / 2)


def test_four_layers_of_a_deep_original_teach():
    attention_mask = torch.ones(1, 1)
    teacher = [torch.full((1, 1, 1), float(i)) for i in range(1, 13)]
    student = [torch.zeros(1, 1, 1)]
    found = l0.layer_distillation_loss(student, teacher, torch.tensor([True]), attention_mask).item()
    assert found == pytest.approx((3**2 + 6**2 + 9**2 + 12**2) / 4)


def test_a_model_without_heads_is_refused(task, make_context):
    model = models.build("digits_cnn", task)
    with pytest.raises(UserError, match="no attention heads"):
        method("l0")().apply(model, make_context(task, model))
    with pytest.raises(UserError, match="ramp_start=0.5 is not before ramp_end=0.4"):
        method("l0")(ramp_start=0.5)


def test_gates_need_a_training(make_context):
    model = tiny_bert(3)
    with pytest.raises(UserError, match="Gates are learned in a training, and epochs=0 is none"):
        method("l0")(epochs=0).apply(model, make_context(words_task(), copy.deepcopy(model)))
