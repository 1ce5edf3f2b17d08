"""The base of wanda and sparsegpt: a layer as a matrix, its inputs as rows, masks by rank."""

import pytest
import torch
from torch import nn

from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.masks import layerwise
from compression.nn.inputs import forward
from tests.conftest import tiny_bert, words_task
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
        layerwise.input_rows(layer, given, None) @ layerwise.weight_matrices(layer).mT
    )  # (groups, n, outputs / groups)
    wanted = (layer(given) - _bias(layer)).detach()
    wanted = wanted.flatten(0, -2) if isinstance(layer, nn.Linear) else wanted.flatten(2).transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(answers.transpose(0, 1).flatten(1), wanted, rtol=1e-4, atol=1e-5)


def _bias(layer):
    return layer.bias if isinstance(layer, nn.Linear) else layer.bias.view(-1, *[1] * (layer.weight.ndim - 2))


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
def test_a_matrix_goes_back_to_its_layer(layer, shape):
    assert torch.equal(layerwise.from_matrices(layer, layerwise.weight_matrices(layer)), layer.weight)


def test_padding_is_no_input():
    rows = layerwise.input_rows(nn.Linear(1, 1), torch.tensor([[[1.0], [2.0], [3.0]]]), torch.tensor([[1, 1, 0]]))
    assert rows.flatten().tolist() == [1.0, 2.0]


def test_the_least_of_each_row_are_found_and_ties_do_not_change_the_count():
    values = torch.tensor([[3.0, 1.0, 2.0], [0.0, 0.0, 0.0]])
    assert layerwise.smallest_per_row(values, [1, 2]).tolist() == [[False, True, False], [True, True, False]]
    assert layerwise.smallest_of_each(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), 1, 2).tolist() == [
        [False, True, True, False]
    ]


@pytest.mark.parametrize("name", ["wanda", "sparsegpt"])
class TestBoth:
    @pytest.mark.parametrize("wanted", [0.0, 0.3, 0.75])
    def test_each_layer_meets_the_target(self, name, wanted, knowing):
        model, context = knowing
        model = method(name)(sparsity=wanted, examples=32).apply(model, context)
        assert sparsity(model) == pytest.approx(wanted, abs=1e-3)
        assert all(z.float().mean().item() == pytest.approx(wanted, abs=0.01) for z in zeros(model).values())

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
