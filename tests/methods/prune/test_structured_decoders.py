"""Structured pruning of decoders: heads with the queries that share them, gated neurons, layers by their influence."""

import copy

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from compression.errors import UserError
from compression.methods import method
from compression.methods.prune.drop_layers import block_influence
from compression.methods.prune.structure.decoder import DecoderUnits, head_group, neuron_group
from compression.methods.prune.structure.importance import Importance
from compression.models import huggingface, storage
from compression.nn import transformer
from compression.nn.layers import count_macs
from compression.tasks.task import predict
from tests.conftest import words_task
from tests.methods.tiny_language import language_task, tiny_decoder

Structured = method("structured")


def pruned(model, make_context, **fields):
    context = make_context(language_task(), copy.deepcopy(model))
    step = Structured(**({"round_to": 1} | fields))
    step.check(copy.deepcopy(model), context)
    return step.apply(copy.deepcopy(model), context).eval(), context


def importance(criterion):
    return Importance(criterion, {}, torch.Generator().manual_seed(0))


def test_a_heads_score_is_that_of_its_key_value_and_queries_worked_by_hand():
    model = tiny_decoder()
    block = transformer.blocks(model)[0]
    with torch.no_grad():
        for layer in (block.query, block.key, block.value, block.output):
            layer.weight.fill_(1.0)
        block.query.weight[16:] = 3.0  # both queries of the second key, whose sum of magnitudes triples
    # Two queries of 8 rows and what reads their outputs have 512 weights each, a key and its value 256 each.
    first, second = 512 + 512 + 256 + 256, 3 * 512 + 512 + 256 + 256
    expected = torch.tensor([first, second]) / ((first + second) / 2)
    torch.testing.assert_close(importance("l1")(head_group(block)), expected)


def test_a_neurons_score_counts_its_gate():
    model = tiny_decoder()
    block = transformer.blocks(model)[0]
    with torch.no_grad():
        for layer in (block.up, block.down, block.gate):
            layer.weight.fill_(1.0)
        block.gate.weight[7] = 0.0
    scores = importance("l1")(neuron_group(block))
    assert scores.argmin() == 7
    assert scores[7] / scores[0] == pytest.approx(2 / 3)


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2"])
def test_what_is_left_reads_with_from_pretrained(kind, make_context, tmp_path):
    task, model = language_task(), tiny_decoder(kind)
    before = sum(count_macs(model, task.example()).values())
    small, context = pruned(model, make_context, sparsity=0.4)
    assert 1 - sum(count_macs(small, task.example()).values()) / before == pytest.approx(0.4, abs=0.02)
    assert len({(b.heads, b.head_groups, b.neurons) for b in transformer.blocks(small)}) == 1
    storage.save(small, tmp_path, {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])
    assert torch.equal(small.model.embed_tokens.weight, model.model.embed_tokens.weight)
    assert small.lm_head.weight is small.model.embed_tokens.weight
    assert [row["hidden"] for row in context.record.tables["kept"]] == [32, 32]


@pytest.mark.parametrize("kind", ["gpt2", "opt"])
def test_of_others_the_neurons_go(kind, make_context, tmp_path):
    task = language_task()
    small, _ = pruned(tiny_decoder(kind), make_context, parts=("ffn",), sparsity=0.2)
    storage.save(small, tmp_path, {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])


def test_a_decoder_that_classifies_is_cut_alike(make_context, tmp_path):
    task = words_task()
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = {"model_type": "llama", "vocab_size": 24, "num_key_value_heads": 2, "num_labels": 3, "pad_token_id": 0}
    model = huggingface.build_from_config(config | size | {"max_position_embeddings": 16}).eval()
    small = Structured(sparsity=0.4, round_to=1).apply(copy.deepcopy(model), make_context(task, model)).eval()
    assert transformer.blocks(small)[0].neurons < 48
    storage.save(small, tmp_path, {})
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])


@pytest.mark.parametrize("criterion", ["fpgm", "taylor", "hessian"])
def test_every_criterion_ranks_a_decoder(criterion, make_context):
    small, _ = pruned(tiny_decoder(), make_context, criterion=criterion, target="params", sparsity=0.3, examples=8)
    assert predict(small, language_task().test)[0].isfinite().all()


def test_the_heads_that_go_are_those_of_the_least_weight(make_context):
    model = tiny_decoder()
    for block in transformer.blocks(model):
        block.value.weight.data[8:] *= 10  # the second of two
        block.output.weight.data[:, 16:] *= 10
    small, _ = pruned(model, make_context, parts=("heads",), target="channels", sparsity=0.5)
    for block, whole in zip(transformer.blocks(small), transformer.blocks(model), strict=True):
        assert torch.equal(block.value.weight, whole.value.weight[8:])
        assert torch.equal(block.query.weight, whole.query.weight[16:])


def test_only_as_many_heads_are_left_as_a_config_can_have():
    model = tiny_decoder(num_attention_heads=8, num_key_value_heads=8, hidden_size=32)
    units = DecoderUnits(model, language_task().example(), ("heads",))
    ranked = units.ranked_units(importance("l1"), is_global=False, round_to=1)
    # Of 8 heads in 32 dimensions 4, 2 and 1 are left.
    assert [len(unit.plan[0, "heads"]) for unit in ranked] == [4, 2, 1]


@pytest.mark.parametrize(
    ("kind", "fields", "said"),
    [
        (
            "llama",
            {"parts": ("hidden",)},
            "The hidden dimensions of a LlamaForCausalLM stay; take parts=heads, parts=ffn",
        ),
        ("llama", {"scope": "global"}, "scope=global would leave a transformer's layers with different widths"),
        ("opt", {}, "config of a OPTForCausalLM takes the size of a head to be hidden size / heads.*parts=ffn"),
        ("gpt2", {}, "config of a GPT2LMHeadModel takes the size of a head to be hidden size / heads.*parts=ffn"),
        (
            "llama",
            {"criterion": "bn_scale"},
            "criterion=bn_scale is made for networks of convolutions with batch norms",
        ),
        ("llama", {"criterion": "group"}, "criterion=group is made for networks of convolutions with batch norms"),
        ("llama", {"sparsity": 0.99}, "sparsity=0.99 of the macs cannot go from a LlamaForCausalLM"),
    ],
)
def test_what_cannot_be_cut_is_refused_in_one_sentence(kind, fields, said, make_context):
    with pytest.raises(UserError, match=said):
        pruned(tiny_decoder(kind), make_context, **fields)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "qwen2"])
def test_the_layer_that_changes_nothing_has_no_influence_and_is_dropped_first(kind, make_context, tmp_path):
    task, model = language_task(), tiny_decoder(kind, num_hidden_layers=3)
    for linear in (transformer.blocks(model)[1].output, transformer.blocks(model)[1].down):
        linear.weight.data.zero_()
        if linear.bias is not None:
            linear.bias.data.zero_()
    context = make_context(task, copy.deepcopy(model))
    influence = block_influence(model, 16, context)
    assert influence[1] == pytest.approx(0, abs=1e-5)
    assert influence.argmin() == 1
    small = method("drop_layers")(sparsity=1 / 3, order="importance", examples=16).apply(copy.deepcopy(model), context)
    torch.testing.assert_close(predict(small.eval(), task.test)[0], predict(model, task.test)[0])
    storage.save(small, tmp_path, {})
    again = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    torch.testing.assert_close(predict(again, task.test)[0], predict(small, task.test)[0])
