"""The base of wanda and sparsegpt: a layer as a matrix, its inputs as rows, masks by rank."""

import copy

import pytest
import torch
from torch import nn

from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.masks import layerwise
from compression.nn import matrices
from compression.nn.inputs import forward
from compression.tasks.task import Split
from tests.conftest import stripes_task, tiny_bert, words_task
from tests.methods.prune.conftest import sparsity, zeros

LAYERS = [
    (nn.Linear(6, 4), (3, 5, 6)),
    (nn.Conv1d(4, 6, 3, padding=1), (3, 4, 9)),
    (nn.Conv2d(4, 6, 3, stride=2, padding=1), (3, 4, 8, 8)),
    (nn.Conv2d(4, 6, (1, 3), dilation=(1, 2), padding="same", padding_mode="circular"), (3, 4, 8, 8)),
    (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 8, 8)),
    (nn.Conv2d(4, 4, 3, groups=4), (3, 4, 8, 8)),
    (nn.Conv3d(2, 3, 2), (2, 2, 4, 4, 4)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_layer_is_its_matrix_times_the_rows_it_sees(layer, shape):
    given = torch.randn(shape)
    answers = (
        matrices.input_rows(layer, given, None) @ matrices.weight_matrices(layer).mT
    )  # (groups, n, outputs / groups)
    wanted = (layer(given) - _bias(layer)).detach()
    wanted = wanted.flatten(0, -2) if isinstance(layer, nn.Linear) else wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(answers.transpose(0, 1).flatten(1), wanted, rtol=1e-4, atol=1e-5)


def _bias(layer):
    return layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(-1, *[1] * (layer.weight.ndim - 2))


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_matrix_goes_back_to_its_layer(layer, shape):
    assert torch.equal(matrices.from_matrices(layer, matrices.weight_matrices(layer)), layer.weight)


def test_the_patches_of_many_images_are_made_in_parts(monkeypatch):
    layer, images = nn.Conv2d(4, 6, 3, groups=2).double(), torch.randn(7, 4, 8, 8).double()
    found, sizes = [], []

    def product(rows):
        sizes.append(rows.shape[1])
        return rows.mT @ rows

    for most in (matrices.MAX_PATCHES, 2 * 64 * 36, 1):
        monkeypatch.setattr(matrices, "MAX_PATCHES", most)
        found.append(matrices.sum_moments(layer, layer, layer, [images], product))
    assert sizes == [7 * 36, *[2 * 36] * 3, 36, *[36] * 7]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0])


def test_padding_is_no_input():
    rows = matrices.input_rows(nn.Linear(1, 1), torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1, 1, 0]]))
    assert rows.flatten().tolist() == [1.0, 2.0]


def test_the_least_of_each_row_are_found_and_ties_do_not_change_the_count():
    values = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert layerwise.smallest_per_row(values, [1, 2]).tolist() == [[False, True, False], [True, True, False]]
    assert layerwise.smallest_of_each(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), 1, 2).tolist() == [
        [False, True, True, False]
    ]


def test_weights_are_ranked_by_their_share_of_their_layers_outputs(make_context):
    """By hand: a layer's shares are w^2 E[x^2] over their sum, and half of all weights go."""
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 1, bias=False))
    model[0].weight.data = torch.tensor([[1.0, 2.0], [0.0, 4.0]])
    model[1].weight.data = torch.tensor([[10.0, 1.0]])
    inputs = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    split = Split(inputs, torch.zeros(2, dtype=torch.int64), lambda stored: stored)
    context = make_context(stripes_task(train=split), model)
    masks = method("wanda")(sparsity=0.5, scope="global").rank_together(model, context)
    # Of the first layer 1, 4, 0 and 16 of 21. It gives (1, 0) and (2, 4): sums of squares 5 and 16, so that of the
    # second the shares are 500 and 16 of 516.
    assert masks[model[0]].tolist() == [[[False, True], [False, True]]]
    assert masks[model[1]].tolist() == [[[True, False]]]


def test_a_convolution_of_wanda_is_ranked_as_a_whole_and_a_linear_layer_by_outputs():
    step = method("wanda")(sparsity=0.5, scope="local")
    weights, moments, allowed = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.ones(1, 2), torch.ones(1, 2, 2).bool()
    for layer, expected in (
        (nn.Linear(2, 2), [[[False, True], [False, True]]]),
        (nn.Conv2d(2, 2, 1), [[[False, False], [True, True]]]),
    ):
        assert step.prune_layer(layer, weights, moments, allowed)[1].tolist() == expected


def test_the_scope_follows_from_the_layers():
    networks = {"linear": nn.Sequential(nn.Linear(2, 2)), "convolution": nn.Sequential(nn.Conv2d(2, 2, 1))}
    for scope, expected in (("auto", [False, True]), ("local", [False, False]), ("global", [True, True])):
        found = [method("sparsegpt")(scope=scope).is_global(network) for network in networks.values()]
        assert found == expected
    assert not method("sparsegpt")(pattern="2:4").is_global(networks["convolution"])


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
class TestBoth:
    @pytest.mark.parametrize("wanted", [0.0, 0.3, 0.75])
    def test_each_layer_meets_the_target(self, name, wanted, knowing):
        model, context = knowing
        model = method(name)(sparsity=wanted, scope="local", examples=32).apply(model, context)
        assert sparsity(model) == pytest.approx(wanted, abs=1e-3)
        assert all(z.float().mean().item() == pytest.approx(wanted, abs=0.01) for z in zeros(model).values())

    def test_together_the_layers_meet_the_target_each_with_a_sparsity_of_its_own(self, name, knowing):
        model, context = knowing
        step = method(name)(sparsity=0.6, examples=32)
        masks = step.rank_together(copy.deepcopy(model), context)
        wanted = [1 - keep.double().mean().item() for keep in masks.values()]
        model = step.apply(model, context)
        assert sparsity(model) == pytest.approx(0.6, abs=1e-3)
        found = [gone.double().mean().item() for gone in zeros(model).values()]
        assert max(found) - min(found) > 0.1
        assert found == pytest.approx(wanted, abs=0.01)

    def test_two_of_four_hold_in_every_group_and_a_layer_that_does_not_divide_stays_dense(self, name, knowing):
        model, context = knowing
        model = method(name)(pattern="2:4", examples=32).apply(model, context)
        left = model.get_submodule("stages.1.conv").weight != 0
        assert (left.unflatten(1, (-1, 4)).sum(2) == 2).all()
        assert (model.fc.weight.unflatten(1, (-1, 4)).ne(0).sum(2) == 2).all()
        assert (model.stages[0].conv.weight != 0).all()
        assert "stages.0.conv" in context.record.warnings[0]

    def test_zeros_stay_zeros_through_finetune(self, name, knowing):
        model, context = knowing
        model = method(name)(examples=32).apply(model, context)
        before = zeros(model)
        after = zeros(method("finetune")(epochs=1).apply(model, context))
        assert all((after[layer] >= gone).all() for layer, gone in before.items())

    def test_what_is_pruned_already_stays_pruned_and_counts(self, name, knowing):
        model, context = knowing
        model = method("snip")(sparsity=0.3, examples=32).apply(model, context)
        before = zeros(model)
        model = method(name)(sparsity=0.6, examples=32).apply(model, context)
        assert all((zeros(model)[layer] >= gone).all() for layer, gone in before.items())
        assert 0.599 < sparsity(model) < 0.65  # a row that had lost more already stays as it is

    def test_a_transformer_is_pruned_without_padding_mattering(self, name, make_context):
        torch.manual_seed(0)
        task, model = words_task(), tiny_bert()
        context = make_context(task, model)
        model = method(name)(sparsity=0.5, examples=64).apply(model, context)
        assert sparsity(model) == pytest.approx(0.5, abs=1e-3)
        assert forward(model, task.example(2)).isfinite().all()
        assert not any(m._forward_pre_hooks for m in model.modules())

    def test_a_pattern_that_no_layer_fits_is_refused(self, name, knowing):
        model, context = knowing
        with pytest.raises(UserError, match="No layer's inputs divide by the m of pattern=2:7"):
            method(name)(pattern="2:7", examples=8).apply(model, context)

    def test_a_share_beside_a_pattern_is_refused_if_it_is_another(self, name):
        assert method(name)(pattern="1:4", sparsity=0.75).target_sparsity == 0.75
        with pytest.raises(UserError, match="pattern=2:4 prunes 50%: leave sparsity=0.9 out"):
            method(name)(pattern="2:4", sparsity=0.9)

    @pytest.mark.parametrize("pattern", ["4", "4:2", "0:4", "a:b", "2:4:8"])
    def test_a_pattern_that_is_none_is_refused(self, name, pattern):
        with pytest.raises(UserError, match="is no pattern; it takes n:m"):
            method(name)(pattern=pattern)

    def test_layers_that_are_never_used_are_refused(self, name, task, make_context):
        class Idle(nn.Module):
            def __init__(self):
                super().__init__()
                self.used, self.idle = nn.Linear(64, 3), nn.Linear(2, 2)

            def forward(self, images):
                return self.used(images.flatten(1))

        with pytest.raises(UserError, match="never uses its layer"):
            method(name)().apply(Idle(), make_context(task, Idle()))
