import copy
import math

import pytest
import torch
from torch.nn import functional as F

from compression import models
from compression.errors import UserError
from compression.methods import method, parse
from compression.methods.distill.mutual import Cohort, best_member, have_equal_weights, mutual_loss

Mutual = method("mutual")


def test_the_loss_of_two_equals_the_case_worked_by_hand():
    one, other = torch.tensor([[1 / 2, 1 / 2]]).log(), torch.tensor([[1 / 4, 3 / 4]]).log()
    first = 0.25 * math.log(0.25 / 0.5) + 0.75 * math.log(0.75 / 0.5)  # KL(other || one), the loss of one
    second = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert mutual_loss([one, other], 1.0).item() == pytest.approx(first + second, rel=1e-5)


def test_in_a_larger_cohort_each_follows_the_mean_of_the_others():
    # Zhang et al. 2018, section 3.3: 1/(K-1) sum over l of KL(p_l || p_k), for each member k
    logits = [torch.randn(4, 3) for _ in range(3)]
    p = [F.softmax(of_member, 1) for of_member in logits]
    expected = sum((p[j] * (p[j] / p[i]).log()).sum(1).mean() / 2 for i in range(3) for j in range(3) if i != j)
    assert mutual_loss(logits, 1.0).item() == pytest.approx(expected.item(), rel=1e-4)


def test_the_outputs_of_the_others_are_constants():
    one, other = torch.randn(4, 3, requires_grad=True), torch.randn(4, 3)
    [gradient] = torch.autograd.grad(mutual_loss([one, other], 1.0), one)
    expected = (F.softmax(one, 1) - F.softmax(other, 1)) / 4  # of KL(other || one) with respect to one's logits
    torch.testing.assert_close(gradient, expected)


def test_both_learn(task, make_context, monkeypatch):
    members = []
    monkeypatch.setattr(Mutual, "build_members", lambda self, model, context: members)
    torch.manual_seed(0)
    members += [models.build("digits_cnn_small", task) for _ in range(2)]
    before = [copy.deepcopy(member) for member in members]
    context = make_context(task, models.build("digits_cnn", task))
    kept = Mutual(epochs=4).apply(members[0], context)
    assert any(kept is member for member in members)
    assert not any(have_equal_weights(member, start) for member, start in zip(members, before, strict=True))
    assert not have_equal_weights(*members)
    qualities = [row["val_accuracy"] for row in context.record.tables["cohort"]]
    curves = [context.record.history[f"val_accuracy_member_{i}"] for i in (1, 2)]
    assert [[step for step, _ in curve] for curve in curves] == [[1, 2, 3, 4]] * 2
    assert [value for _, value in curves[0]] == [value for _, value in context.record.history["val_accuracy"]]
    assert qualities == [max(value for _, value in curve) for curve in curves]
    assert min(qualities) > 0.6
    assert qualities[members.index(kept)] == max(qualities)


@pytest.fixture
def good_and_poor(task, make_context):
    """A network that knows the task and one that does not."""
    torch.manual_seed(0)
    made = [models.build("digits_cnn", task).eval() for _ in range(2)]
    return method("finetune")(epochs=4).apply(made[0], make_context(task, made[1])), made[1]


def test_each_member_is_taken_at_its_own_best_epoch(good_and_poor, task, make_context):
    good, poor = good_and_poor
    student, peer = copy.deepcopy(poor), copy.deepcopy(good)
    cohort = Cohort([student, peer], make_context(task, poor))
    cohort.end_epoch(student)
    student.load_state_dict(good.state_dict())  # in the next epoch the one is better and the other worse
    peer.load_state_dict(poor.state_dict())
    cohort.end_epoch(student)
    student.load_state_dict(poor.state_dict())
    cohort.restore(student)
    assert have_equal_weights(student, good)
    assert have_equal_weights(peer, good)


def test_the_best_epochs_are_part_of_a_checkpoint(good_and_poor, task, make_context):
    good, poor = good_and_poor
    cohort, again = (Cohort([copy.deepcopy(one), poor], make_context(task, poor)) for one in (good, poor))
    cohort.end_epoch(good)
    again.load_state_dict(cohort.state_dict())
    again.end_epoch(poor)  # worse than before
    again.restore(student := copy.deepcopy(poor))
    assert have_equal_weights(student, good)


@pytest.mark.parametrize("keep", ["last", "best"])
def test_the_last_weights_are_kept_where_that_is_asked(task, make_context, monkeypatch, keep):
    restored = []
    monkeypatch.setattr(Cohort, "restore", lambda self, student: restored.append(student))
    Mutual(student="digits_cnn_small", epochs=1, keep=keep).apply(
        models.build("digits_cnn", task), make_context(task, models.build("digits_cnn", task))
    )
    assert bool(restored) == (keep == "best")


def test_a_larger_peer_helps_and_is_not_taken_for_the_student(task, make_context):
    torch.manual_seed(0)
    small = models.build("digits_cnn_small", task)
    large = method("finetune")(epochs=4).apply(models.build("digits_cnn", task), make_context(task, small))
    assert best_member([small, large], make_context(task, small)) is small
    assert best_member([large, small], make_context(task, large)) is large


def test_peers_are_named_instead_of_a_cohort(task, make_context):
    context = make_context(task, models.build("digits_cnn", task))
    members = Mutual(student="digits_cnn_small", peers="mlp//digits_cnn").build_members(torch.nn.Identity(), context)
    assert [models.spec_of(m)["builder"] for m in members] == ["digits_cnn_small", "mlp", "digits_cnn"]
    with pytest.raises(UserError, match="cohort=3 and peers=mlp each say which models are trained with the student"):
        parse("mutual:cohort=3,peers=mlp")


def test_students_that_start_from_equal_weights_are_refused(task, make_context):
    model = models.build("digits_cnn", task)
    with pytest.raises(UserError, match="same weights have nothing to learn from each other; name others with peers="):
        Mutual().apply(model, make_context(task, copy.deepcopy(model), model_changed=True))
