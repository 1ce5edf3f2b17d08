"""Scales that move from a layer's inputs into the module before it, and change nothing that the model answers."""

import pytest
import torch
from torch import nn

from compression.methods.blockwise.folding import find_fold, scale_outputs, scaled_channels
from compression.methods.blockwise.walk import walk
from compression.nn.inputs import forward
from tests.conftest import Kept, tiny_bert, words_task
from tests.methods.blockwise.decoders import make
from tests.methods.tiny_language import language_task

CPU = torch.device("cpu")
LLAMA = ["input_layernorm", "self_attn.v_proj", "post_attention_layernorm", "mlp.up_proj"]
# What the groups of the first block can move scales into; GELU passes none on, nor do queries, keys and values in one.
FOLDED = {
    "llama": LLAMA,
    "mistral": LLAMA,
    "qwen2": LLAMA,
    "opt": ["self_attn_layer_norm", "self_attn.v_proj", "final_layer_norm", "fc1"],
    "gpt2": ["ln_1", None, "ln_2", None],
    "gpt_neox": ["input_layernorm", None, "post_attention_layernorm", None],
    "gemma3_text": ["input_layernorm", "self_attn.v_proj", "pre_feedforward_layernorm", "mlp.up_proj"],
}


def shaken(form):
    """A model whose norms and biases are not those of the first day."""
    model = make(form)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize("form", FOLDED)
def test_random_scales_are_folded_exactly(form):
    torch.manual_seed(1)
    model, task = shaken(form), language_task()
    given = [task.train.select(torch.arange(8)).inputs]
    with torch.no_grad():
        before = forward(model, task.example(8))
    found = []
    for stage in walk(model, given, CPU, Kept()):
        fold = find_fold(stage)
        found.append(fold and fold.name.split("layers.0.")[-1].split("h.0.")[-1])
        if fold:
            fold.apply(stage.layers, torch.empty(fold.width).uniform_(0.2, 5.0))
    with torch.no_grad():
        after = forward(model, task.example(8))
    assert found[: len(found) // 2] == FOLDED[form]
    torch.testing.assert_close(after, before, rtol=1e-4, atol=2e-6)


def test_looking_for_a_fold_changes_no_weight():
    model, given = shaken("llama"), [language_task().example(4)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for stage in walk(model, given, CPU, Kept()):
        find_fold(stage)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_norm_that_a_residual_reads_too_takes_no_scales():
    model, given = tiny_bert(), [words_task().example(8)]
    found = {s.group.layers[0].split("layer.1.")[-1]: find_fold(s) for s in walk(model, given, CPU, Kept())}
    assert found["attention.self.query"] is None
    assert found["intermediate.dense"] is None
    assert found["attention.output.dense"].name.endswith("attention.self.value")


def test_grouped_queries_share_the_scales_of_their_value():
    model, given = make("llama"), [language_task().example(4)]
    fold = next(find_fold(s) for s in walk(model, given, CPU, Kept()) if "o_proj" in s.group.layers[0])
    heads = torch.arange(16).view(2, 8)  # two heads of eight values, each of which two queries read
    assert fold.channels.tolist() == heads.repeat_interleave(2, dim=0).flatten().tolist()
    values = torch.arange(32.0)
    assert fold.of_inputs(values, "amax")[:8].tolist() == list(range(8, 16))
    assert fold.of_inputs(values, "mean")[0] == 4.0


def test_a_channel_is_told_by_its_factor_and_what_follows_no_factor_is_refused():
    before = torch.tensor([[1.0, -2.0, 3.0], [0.5, 1.0, -1.0]])
    factors = torch.tensor([2.0, 4.0, 8.0])
    assert scaled_channels(before, before * factors[[2, 0, 1]], factors).tolist() == [2, 0, 1]
    assert scaled_channels(before, before * 3.0, factors) is None
    assert scaled_channels(before, before, factors) is None  # not reached at all
    half = before * factors
    half[1, 0] = before[1, 0]  # as behind a function that is linear in places
    assert scaled_channels(before, half, factors) is None


def test_a_silent_input_is_its_own_channel_or_refused():
    before, factors = torch.tensor([[1.0, 0.0]]), torch.tensor([2.0, 4.0])
    assert scaled_channels(before, before * factors, factors).tolist() == [0, 1]
    assert scaled_channels(before, before * 2.0, factors[:1]) is None


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_outputs_are_scaled_whether_a_norm_adds_one_or_not(offset):
    norm = nn.LayerNorm(4)
    norm.weight.data, norm.bias.data = torch.arange(4.0), torch.ones(4)
    scale_outputs(norm, torch.full((4,), 3.0), offset)
    assert (norm.weight + offset).tolist() == [3 * (w + offset) for w in range(4)]
    assert norm.bias.tolist() == [3.0] * 4
