"""Attention of linear layers beside torch's own, with which it has to agree in all that can be asked of it."""

import copy

import pytest
import torch
from torch import nn

import compression as lab
from compression import models
from compression.deploy.session import Session
from compression.methods.prune.structure.channels import ChannelUnits
from compression.models import storage
from compression.nn.attention import SeparateAttention, separable, separate_attention, separate_if_equal
from compression.nn.inputs import forward
from tests.conftest import stripes_task
from tests.networks import Network

BATCH, HEADS, QUERIES, KEYS, WIDTH = 3, 2, 5, 7, 8
MASKS = {
    "none": lambda: None,
    "bool": lambda: torch.ones(QUERIES, KEYS, dtype=torch.bool).triu(2),
    "floats": lambda: torch.randn(QUERIES, KEYS),
    "by head": lambda: torch.rand(BATCH * HEADS, QUERIES, KEYS) > 0.7,
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def sequences(batch_first, keys=WIDTH, values=WIDTH):
    sizes = ((QUERIES, WIDTH), (KEYS, keys), (KEYS, values))
    return [torch.randn((BATCH, n, size) if batch_first else (n, BATCH, size)) for n, size in sizes]


def biased(attention):
    """With biases as after training: torch begins with zeros."""
    for name, parameter in attention.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return attention.eval()


def require_equal(attention, *inputs, **options):
    made = SeparateAttention(attention)
    for one, other in zip(made(*inputs, **options), attention(*inputs, **options), strict=True):
        if other is None:
            assert one is None
        else:
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("batch_first", [True, False])
def test_outputs_and_weights_are_those_of_torchs(batch_first, mask, padded):
    attention = biased(nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first))
    given = {"attn_mask": MASKS[mask]()}
    if padded:
        padding = torch.zeros(BATCH, KEYS, dtype=torch.bool)
        padding[1, -1] = True
        given["key_padding_mask"] = padding if mask != "floats" else torch.zeros(BATCH, KEYS).masked_fill(padding, -9)
    for asked in ({}, {"need_weights": False}, {"average_attn_weights": False}):
        require_equal(attention, *sequences(batch_first), **given, **asked)


@pytest.mark.parametrize("options", [{"bias": False}, {"kdim": 6, "vdim": 4}, {"kdim": 6, "vdim": 4, "bias": False}])
def test_other_widths_and_no_biases(options):
    attention = biased(nn.MultiheadAttention(WIDTH, HEADS, batch_first=True, **options))
    require_equal(attention, *sequences(True, options.get("kdim", WIDTH), options.get("vdim", WIDTH)))


def test_a_single_sequence_has_no_dimension_of_the_batch():
    attention = biased(nn.MultiheadAttention(WIDTH, HEADS))
    query, key = torch.randn(QUERIES, WIDTH), torch.randn(KEYS, WIDTH)
    padding = torch.zeros(KEYS, dtype=torch.bool)
    padding[2] = True
    require_equal(attention, query, key, key, key_padding_mask=padding)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
def test_torchs_transformer_layers_call_it(training, norm_first):
    layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 16, dropout=0.0, batch_first=True, norm_first=norm_first)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)
    for each in model.layers:
        biased(each.self_attn).train(training)
    made, inputs = separate_attention(copy.deepcopy(model)), torch.randn(BATCH, KEYS, WIDTH)
    assert len([m for m in made.modules() if isinstance(m, SeparateAttention)]) == 2
    mask = nn.Transformer.generate_square_subsequent_mask(KEYS)
    torch.testing.assert_close(made(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(
        made(inputs, mask=mask, is_causal=True), model(inputs, mask=mask, is_causal=True), rtol=1e-5, atol=1e-5
    )


def test_its_dropout_is_active_in_training_alone():
    attention = SeparateAttention(nn.MultiheadAttention(WIDTH, HEADS, dropout=0.9, batch_first=True))
    query, key, value = sequences(True)
    for need_weights in (True, False):
        one, other = (attention.train()(query, key, value, need_weights=need_weights)[0] for _ in range(2))
        assert not torch.equal(one, other)
        one, other = (attention.eval()(query, key, value, need_weights=need_weights)[0] for _ in range(2))
        assert torch.equal(one, other)


def test_what_has_keys_or_weights_of_others_stays_as_it_is():
    first, second = (nn.MultiheadAttention(WIDTH, HEADS) for _ in range(2))
    second.in_proj_weight = first.in_proj_weight
    model = nn.ModuleDict(
        {
            "own_keys": nn.MultiheadAttention(WIDTH, HEADS, add_bias_kv=True),
            "zero_keys": nn.MultiheadAttention(WIDTH, HEADS, add_zero_attn=True),
            "first": first,
            "second": second,
            "plain": nn.MultiheadAttention(WIDTH, HEADS),
        }
    )
    assert list(separable(model)) == ["plain"]


class Patches(nn.Module):
    """A small vision transformer of torch's layers, whose attentions have packed weights."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 2, 2)
        layer = nn.TransformerEncoderLayer(16, 4, 32, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.fc = nn.Linear(16, 3)

    def forward(self, images):
        return self.fc(self.encoder(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


@pytest.fixture(scope="module")
def task():
    made = stripes_task()
    data = {split: (part.prepare(part.inputs), part.targets) for split, part in made.splits().items()}
    return lab.task(**data, classes=made.labels)


@pytest.mark.parametrize("recipe", ["static", "magnitude:sparsity=0.5", "structured:sparsity=0.2,round_to=1"])
def test_a_transformer_of_torchs_is_compressed_stored_and_deployed(recipe, task, tmp_path):
    model = Patches().eval()
    result = lab.compress(model, recipe, task, threads=1)
    assert isinstance(model.encoder.layers[0].self_attn, nn.MultiheadAttention)  # the caller's stays
    assert not any("reached" in warning for warning in result.warnings)
    again = lab.load(result.save(tmp_path / "small"), like=Patches)
    images = task.example(9)
    torch.testing.assert_close(forward(again, images), forward(result.model, images))
    answers = Session(tmp_path / "small" / "model.onnx")(images)
    assert (answers - forward(again, images)).square().mean() < 0.01 * answers.square().mean()


def test_a_model_stored_with_packed_weights_is_read_back_with_them(tmp_path):
    model = models.adopt(Patches().eval(), Patches, [1, 8, 8])  # as it was before attentions were taken apart
    again = storage.load(storage.save(model, tmp_path, {}), like=Patches)
    assert again.state_dict().keys() == model.state_dict().keys()
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images), model(images))


def test_code_that_reads_the_packed_weights_keeps_them():
    def call(m, x):
        tokens = x.flatten(2).transpose(1, 2) @ m.attention.in_proj_weight[:8, :1].t()
        return m.fc(m.attention(tokens, tokens, tokens)[0].mean(1))

    model = Network(call, attention=nn.MultiheadAttention(8, 2, batch_first=True), fc=nn.Linear(8, 3)).eval()
    images = torch.randn(2, 1, 8, 8)
    expected = model(images)
    assert not separate_if_equal(model, images)
    assert torch.equal(model(images), expected)


def test_structured_pruning_cuts_widths_and_neurons_and_leaves_the_heads_whole():
    units = ChannelUnits(separate_attention(Patches().eval()), torch.randn(2, 1, 8, 8))
    assert {len(group[0].idxs) for group in units.groups.values()} == {16, 32}
    assert {name.rpartition(".")[2] for name in units.untouched} == {"query", "key", "value"}
