"""Movement and block movement pruning: the training with scores, its targets, what it leaves."""

import copy

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.masks import block_scores, score_based
from compression.methods.prune.masks.block_scores import BlockScores
from compression.nn import layers
from tests.conftest import tiny_bert, words_task
from tests.methods.prune.conftest import sparsity, zeros

WAYS = [
    ("movement", {}),
    ("movement", {"scope": "global"}),
    ("movement", {"variant": "sigmoid"}),
    ("block_movement", {}),
    ("block_movement", {"block_rows": 1, "block_columns": 1000}),
    ("block_movement", {"variant": "sigmoid", "scope": "global"}),
]


@pytest.mark.parametrize(("name", "fields"), WAYS)
@pytest.mark.parametrize("wanted", [0.3, 0.8])
def test_the_target_is_met(name, fields, wanted, knowing):
    model, context = knowing
    model = method(name)(sparsity=wanted, epochs=1, **fields).apply(model, context)
    assert sparsity(model) == pytest.approx(wanted, abs=0.02)
    assert context.record.history["pruned_share"] == [(None, pytest.approx(sparsity(model)))]
    assert "sparsity-schedule" in context.record.figures


@pytest.mark.parametrize("name", ["movement", "block_movement"])
def test_zeros_stay_zeros_through_finetune(name, knowing):
    model, context = knowing
    model = method(name)(epochs=1).apply(model, context)
    assert all(type(m) in (nn.Linear, nn.Conv2d) for m in layers.prunable_layers(model).values())
    before = zeros(model)
    after = zeros(method("finetune")(epochs=1).apply(model, context))
    assert all((after[layer] >= gone).all() for layer, gone in before.items())


def test_sparsity_follows_the_cubic_schedule(knowing):
    model, context = knowing
    method("movement")(sparsity=0.8, epochs=3, ramp_start=0.25, ramp_end=0.75).apply(model, context)
    lines = context.record.figures["sparsity-schedule"].axes[0].lines
    wanted, reached = (line.get_ydata() for line in lines)
    for step, (target, found) in enumerate(zip(wanted, reached, strict=True), 1):
        done = min(1.0, max(0.0, (step / 24 - 0.25) / 0.5))
        assert target == pytest.approx(0.8 * (1 - (1 - done) ** 3))
        assert found == pytest.approx(target, abs=1e-3)


def test_a_ranking_does_not_depend_on_the_learning_rate_of_the_scores(knowing):
    model, context = knowing

    def pruned(rate):
        torch.manual_seed(0)
        step = method("movement")(epochs=1, score_learning_rate=rate)
        return layers.prunable_layers(step.apply(copy.deepcopy(model), context)).values()

    for one, other in zip(pruned(2.0**-7), pruned(2.0**-3), strict=True):
        assert torch.equal(one.weight, other.weight)
    assert {"score_learning_rate", "regularization"} <= method("movement")().inactive()


def test_pruned_weights_may_come_back_in_the_training(knowing, monkeypatch):
    model, context = knowing
    seen = []
    choose = block_scores.select_locally

    def watch(groups, share):
        choose(groups, share)
        seen.append(torch.cat([s.keep.clone() for s in groups]))

    monkeypatch.setattr(block_scores, "select_locally", watch)
    method("movement")(epochs=2).apply(model, context)
    assert any((later & ~earlier).any() for earlier, later in zip(seen, seen[1:], strict=False))


def test_a_threshold_keeps_the_scores_whose_sigmoid_exceeds_it_and_the_penalty_is_their_mean():
    groups = [BlockScores(torch.tensor([1, 1, 1]), 3), BlockScores(torch.tensor([5]), 5)]
    groups[0].scores.data = torch.tensor([-3.0, -2.0, 1.0])
    score_based.apply_threshold(groups, 0.1)  # sigmoid: 0.047, 0.119, 0.731, 0.5
    assert [s.keep.tolist() for s in groups] == [[False, True, True], [True]]
    wanted = (0.04743 + 0.11920 + 0.73106 + 5 * 0.5) / 8
    assert score_based.mean_sigmoid(groups).item() == pytest.approx(wanted, abs=1e-4)


def test_the_penalty_prunes_by_itself_and_gets_a_warning_when_it_misses(task, make_context):
    torch.manual_seed(0)
    recipe = {"epochs": 3, "optimizer": "adamw", "learning_rate": 1e-3, "score_learning_rate": 1.0, "sparsity": 0.2}
    model = models.build("digits_cnn", task)
    for strength, said in ((1e3, "too much"), (0.0, "too little")):
        context = make_context(task, model)
        step = method("movement")(variant="sigmoid", regularization=strength, **recipe | {"sparsity": 0.4})
        step.apply(copy.deepcopy(model), context)
        assert said in context.record.warnings[0]


def test_the_originals_answers_count_as_much_as_alpha_says(knowing):
    model, context = knowing
    loop = score_based.ScoreTraining(method("movement")(distill_alpha=0.25, temperature=2.0), [], context)
    inputs, targets = next(context.task.train.batches(8))
    torch.manual_seed(0)
    other = models.build("digits_cnn", context.task).eval()
    hard = nn.functional.cross_entropy(other(inputs), targets)
    softened = [nn.functional.log_softmax(m(inputs) / 2, 1) for m in (other, context.original)]
    soft = nn.functional.kl_div(*softened, reduction="batchmean", log_target=True) * 4
    torch.testing.assert_close(loop.loss()(other, inputs, targets), 0.75 * hard + 0.25 * soft)


class Stop(Exception):
    pass


@pytest.mark.parametrize("variant", ["topk", "sigmoid"])
def test_a_killed_training_resumes_to_the_same_masks(variant, task, make_context, tmp_path, monkeypatch):
    torch.manual_seed(0)
    start = models.build("digits_cnn_small", task)
    step = method("movement")(epochs=3, variant=variant, score_learning_rate=1.0)
    whole = step.apply(copy.deepcopy(start), make_context(task, start, folder=tmp_path / "whole"))
    on_step = score_based.ScoreTraining.on_step

    def kill(self, number, steps):
        on_step(self, number, steps)
        if number == 12:
            raise Stop

    killed = make_context(task, start, folder=tmp_path / "killed")
    with monkeypatch.context() as patch:
        patch.setattr(score_based.ScoreTraining, "on_step", kill)
        with pytest.raises(Stop):
            step.apply(copy.deepcopy(start), killed)
    context = make_context(task, start, folder=tmp_path / "resumed", resume=tmp_path / "killed")
    resumed = step.apply(copy.deepcopy(start), context)
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["movement", "block_movement"])
def test_learning_scores_needs_epochs_and_an_order(name, knowing):
    model, context = knowing
    with pytest.raises(UserError, match="Scores are learned in a training, and epochs=0 is none; take 1 or more"):
        method(name)(epochs=0).apply(model, context)
    with pytest.raises(UserError, match="ramp_start=0.8 is not before ramp_end=0.7"):
        method(name)(ramp_start=0.8)


def test_blocks_too_large_for_the_target_get_a_warning(task, make_context):
    model = models.build("digits_cnn_small", task)
    context = make_context(task, model)
    method("block_movement")(block_rows=1000, block_columns=1000, epochs=1).apply(model, context)
    assert "too large to meet the target" in context.record.warnings[-1]


@pytest.mark.parametrize("fields", [{}, {"attention": "heads"}, {"ffn": "blocks", "block_rows": 8, "block_columns": 8}])
def test_a_transformer_loses_its_share_and_is_cut_to_the_units_alive(fields, make_context):
    torch.manual_seed(0)
    task, model = words_task(), tiny_bert()
    total = sum(layers.weight(m).numel() for m in layers.prunable_layers(model).values())
    context = make_context(task, model)
    small = method("block_movement")(sparsity=0.6, epochs=1, **fields).apply(copy.deepcopy(model), context)
    assert context.record.history["pruned_share"][0][1] == pytest.approx(0.6, abs=0.02)
    left = sum(int((layers.weight(m) != 0).sum()) for m in layers.prunable_layers(small).values())
    assert 0.58 < 1 - left / total < 0.75  # heads without values take live weights with them
    rows = context.record.tables["kept"]
    assert [row["heads_before"] for row in rows] == [4, 4, 4]
    if fields.get("attention") == "heads":
        assert sum(row["heads"] for row in rows) < 8
    if fields.get("ffn") != "blocks":
        assert all(row["neurons"] < 30 for row in rows)
        assert layers.count_parameters(small) < layers.count_parameters(model)
