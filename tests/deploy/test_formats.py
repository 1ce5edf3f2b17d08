"""Folders and files of integer weights: other tools read the codes, scales and zero points that the model has."""

import copy
import json

import pytest
import torch
from compressed_tensors.compressors import PackedQuantizationCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, AutoRoundConfig, CompressedTensorsConfig

from compression import methods
from compression.deploy.formats import FORMATS
from compression.deploy.formats.parts import pack_rows
from compression.errors import UserError
from compression.methods.quantize.calibration.blockwise import replace_linear
from compression.methods.quantize.calibration.weights import weight_qparams
from compression.models import gguf, storage
from compression.nn.quantized import QuantLinear
from compression.runs import export
from tests.conftest import tiny_bert, words_task
from tests.methods.tiny_language import language_task, tiny_decoder, tiny_lstm_lm
from tests.models import tiny_gguf

IDS = torch.arange(24).view(2, 12)
LLAMA = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 1024}


def quantized(bits=4, symmetric=True, group_size=32, skip=("lm_head",), shift=0.002, **config):
    """A Llama whose linear layers, but for those in `skip`, are rounded; and one layer has a group of zeros.

    Their weights lie around `shift`, or about 1/20 of their deviation.
    """
    torch.manual_seed(0)
    model = tiny_decoder(**(LLAMA | config))
    granularity = "group" if group_size else "channel"
    linear = {name: layer for name, layer in model.named_modules() if type(layer) is nn.Linear}
    with torch.no_grad():
        for layer in linear.values():
            layer.weight.mul_(2).add_(shift)
    model.model.layers[0].mlp.up_proj.weight.data[3, :32] = 0.0
    for name, layer in linear.items():
        if not name.endswith(tuple(skip)):
            qparams = weight_qparams(layer.weight.data, bits, granularity, group_size, symmetric, observer="minmax")
            replace_linear(model, name, layer, qparams)
    return model.eval()


def written(model, kind, tmp_path):
    stored = storage.save(model, tmp_path / "stored", {})
    tiny_gguf.tokenizer().save_pretrained(stored)
    return export.write(str(stored), kind, tmp_path / kind.replace("gguf", "model.gguf"))


def integer_layers(model):
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, QuantLinear)}


@torch.no_grad()
def logits(model):
    return model(input_ids=IDS).logits


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 32), (8, 0), (2, 16), (5, 32)])
def test_transformers_reads_compressed_tensors_and_answers_alike(bits, group_size, tmp_path):
    model = quantized(bits, True, group_size)
    read = AutoModelForCausalLM.from_pretrained(written(model, "compressed-tensors", tmp_path))
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("bits", "group_size"), [(4, 32), (3, 32), (8, 0), (2, 16), (7, 32)])
def test_zero_points_are_read_by_compressed_tensors_and_transformers(bits, group_size, tmp_path):
    model = quantized(bits, False, group_size)
    folder = written(model, "compressed-tensors", tmp_path)
    read = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)
    config, tensors = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    [group] = config["quantization_config"]["config_groups"].values()
    scheme = QuantizationScheme(targets=group["targets"], weights=QuantizationArgs(**group["weights"]))
    for name, layer in integer_layers(model).items():
        own = {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        found = PackedQuantizationCompressor.decompress(own, scheme)["weight"]
        torch.testing.assert_close(found, layer.weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("kind", ["compressed-tensors", "gptq", "gguf"])
def test_a_last_group_of_half_the_size_is_whole_in_groups_of_half_the_size(kind, tmp_path):
    model = quantized(group_size=64)  # of which 96 inputs are one and a half
    path = written(model, kind, tmp_path)
    if kind == "gguf":
        read = gguf.load(f"gguf:{path}", language_task())
    else:
        config = AutoRoundConfig() if kind == "gptq" else None
        read = AutoModelForCausalLM.from_pretrained(path, **({"quantization_config": config} if config else {}))
        found = json.loads((path / "config.json").read_text())["quantization_config"]
        sizes = [found] if kind == "gptq" else [each["weights"] for each in found["config_groups"].values()]
        assert [each["group_size"] for each in sizes] == [32]
    expected = logits(model)
    assert (logits(read).float() - expected).norm() / expected.norm() < 0.01


def test_layers_of_several_widths_are_in_groups_by_name(tmp_path):
    model = quantized(4, True, 32)
    wide = tiny_decoder(**LLAMA).model.layers[1].mlp.down_proj
    qparams = weight_qparams(wide.weight.data, 8, "channel", 0, True, observer="minmax")
    replace_linear(model, "model.layers.1.mlp.down_proj", wide, qparams)
    read = AutoModelForCausalLM.from_pretrained(written(model, "compressed-tensors", tmp_path))
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)


def test_a_head_of_integers_is_no_longer_tied(tmp_path):
    model = quantized(skip=("down_proj",))
    folder = written(model, "compressed-tensors", tmp_path)
    assert not json.loads((folder / "config.json").read_text())["tie_word_embeddings"]
    read = AutoModelForCausalLM.from_pretrained(folder)
    torch.testing.assert_close(logits(read), logits(model), rtol=1e-5, atol=1e-5)


def test_what_weight_only_makes_is_read_too(tmp_path, make_context):
    """Its embeddings are integers as well, which the format has as floats."""
    torch.manual_seed(0)
    model, task = tiny_decoder(), language_task()
    [step] = methods.parse("weight_only:bits=4,group_size=16")
    made = step.apply(copy.deepcopy(model), make_context(task, model))
    stored = storage.save(made, tmp_path / "stored", {})
    folder = export.write(str(stored), "compressed-tensors", tmp_path / "made")
    read = AutoModelForCausalLM.from_pretrained(folder, quantization_config=CompressedTensorsConfig(dequantize=True))
    torch.testing.assert_close(logits(read), logits(made), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("bits", "group_size", "symmetric"),
    [(4, 32, True), (3, 32, True), (8, 0, True), (2, 16, True), (4, 32, False), (3, 32, False), (8, 0, False)],
)
def test_autorounds_layers_read_gptq(bits, group_size, symmetric, tmp_path):
    from auto_round_extension.torch.qlinear_torch_zp import QuantLinear as Theirs

    model = quantized(bits, symmetric, group_size)
    tensors = load_file(written(model, "gptq", tmp_path) / "model.safetensors")
    for name, layer in integer_layers(model).items():
        theirs = Theirs(bits, group_size or -1, layer.in_features, layer.out_features, bias=False)
        theirs.load_state_dict({part: tensors[f"{name}.{part}"] for part in theirs.state_dict()})
        found = theirs(torch.eye(layer.in_features)).T.float()
        torch.testing.assert_close(found, layer.weight, rtol=2**-10, atol=1e-7)  # of 16-bit scales


def test_auto_round_reads_a_gptq_folder_and_answers_alike(tmp_path):
    model = quantized()
    folder = written(model, "gptq", tmp_path)
    read = AutoModelForCausalLM.from_pretrained(folder, quantization_config=AutoRoundConfig())
    expected = logits(model)
    error = (logits(read).float() - expected).norm() / expected.norm()
    assert error < 0.01  # it multiplies in 16 bits


def test_layers_that_gptq_skips_are_named(tmp_path):
    folder = written(quantized(skip=("lm_head", "0.mlp.up_proj")), "gptq", tmp_path)
    said = json.loads((folder / "config.json").read_text())["quantization_config"]
    assert [*said["dynamic"]] == ["-:^model[.]layers[.]0[.]mlp[.]up_proj$"]
    assert load_file(folder / "model.safetensors")["model.layers.0.mlp.up_proj.weight"].dtype == torch.float32


@pytest.mark.parametrize(
    ("bits", "symmetric", "group_size"), [(4, True, 32), (4, False, 32), (4, False, 0), (8, True, 0), (8, True, 32)]
)
def test_a_gguf_file_is_read_here_and_by_transformers(bits, symmetric, group_size, tmp_path):
    model = quantized(bits, symmetric, group_size)
    path = written(model, "gguf", tmp_path)
    own = gguf.load(f"gguf:{path}", language_task())
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file=path.name)
    for name, layer in integer_layers(model).items():
        found = own.get_submodule(name).weight
        torch.testing.assert_close(found, layer.weight, rtol=2**-9, atol=2**-10 * layer.weight.abs().max().item())
        torch.testing.assert_close(theirs.get_submodule(name).weight, found)
    words, _ = gguf.load_tokenizer(f"gguf:{path}")
    text = "It's 1234 quick foxes\n"
    assert words(text)["input_ids"] == tiny_gguf.tokenizer()(text)["input_ids"]


def test_words_are_packed_as_a_stream_of_bits():
    assert pack_rows(torch.tensor([[-4, 3, 0]], dtype=torch.int8), 3).tolist() == [[0b100_111_000]]
    codes = torch.randint(-4, 4, (3, 40), dtype=torch.int8)
    packed = pack_rows(codes, 3)
    assert packed.shape == (3, 4)  # 120 bits
    stream = [sum((int(word) & 0xFFFFFFFF) << 32 * i for i, word in enumerate(row)) for row in packed]
    assert [[(bits >> 3 * i & 7) - 4 for i in range(40)] for bits in stream] == codes.tolist()


def bert(**options):
    model = tiny_bert()
    for name, layer in [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear]:
        qparams = weight_qparams(layer.weight.data, 4, "channel", 0, True, observer="minmax")
        replace_linear(model, name, layer, qparams)
    return model


def test_an_encoder_is_written_for_compressed_tensors(tmp_path):
    from transformers import AutoModelForSequenceClassification

    model = bert().eval()
    folder = written(model, "compressed-tensors", tmp_path)
    read = AutoModelForSequenceClassification.from_pretrained(folder)
    inputs = words_task().example(3)
    torch.testing.assert_close(read(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "make", "reason"),
    [
        ("compressed-tensors", tiny_decoder, "is for linear layers of integer weights, and this model has none"),
        ("gptq", tiny_lstm_lm, "gptq is for models of transformers"),
        ("gptq", lambda: quantized(bits=5), "gptq takes weights of 2, 3, 4, 8 bits, not of 5"),
        ("gptq", lambda: quantized(skip=("down_proj",)), "leave out lm_head with skip"),
        ("gptq", lambda: quantized(intermediate_size=80, group_size=16), "gptq takes inputs and outputs in multiples"),
        ("compressed-tensors", lambda: quantized(group_size=40), "groups of 40 and 64 inputs"),
        (
            "gptq",
            lambda: quantized(symmetric=False, shift=1.0),
            "gptq takes no zero point of 0, as model.layers.0.self_",
        ),
        ("gguf", lambda: quantized(group_size=16), "in multiples of 32; model"),
        ("gguf", lambda: quantized(bits=3), "gguf holds 4 bits, and 8 with zero in the middle"),
        ("gguf", lambda: quantized(model_type="qwen2"), "gguf is for Llamas with plain positions"),
        ("gguf", bert, "gguf is for Llamas with plain positions, and this is a bert"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_and_nothing_left(kind, make, reason, tmp_path):
    with pytest.raises(UserError, match=reason):
        written(make(), kind, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["stored"]


def test_conv1ds_are_refused(tmp_path):
    torch.manual_seed(0)
    model = tiny_decoder("gpt2")
    for name, layer in [(n, m) for n, m in model.named_modules() if type(m) is nn.Linear and n != "lm_head"]:
        replace_linear(model, name, layer, weight_qparams(layer.weight.data, 4, "channel", 0, True, observer="minmax"))
    with pytest.raises(UserError, match="is a Conv1D in transformers"):
        written(model, "compressed-tensors", tmp_path)


def test_integer_inputs_are_refused(tmp_path, make_context):
    model, task = tiny_decoder(), language_task()
    [step] = methods.parse("dynamic")
    made = step.apply(copy.deepcopy(model), make_context(task, model))
    with pytest.raises(UserError, match="are integers, too; take onnx"):
        written(made, "compressed-tensors", tmp_path)


def test_a_structure_that_no_config_describes_is_refused(tmp_path, make_context):
    model, task = tiny_decoder(), language_task()
    made = model
    for step in methods.parse("svd:energy=0.5+weight_only:group_size=16"):
        made = step.apply(copy.deepcopy(made), make_context(task, model))
    with pytest.raises(UserError, match="which does not describe"):
        written(made, "compressed-tensors", tmp_path)


def test_a_tokenizer_without_rules_of_gguf_is_refused(tmp_path):
    stored = storage.save(quantized(), tmp_path / "stored", {})
    with pytest.raises(UserError, match="gguf has a tokenizer in it"):
        export.write(str(stored), "gguf", tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize("kind", ["compressed-tensors", "gptq", "genai"])
def test_a_file_in_the_place_of_the_folder_is_said_and_stays(kind, tmp_path):
    stored = storage.save(quantized(), tmp_path / "stored", {})
    taken = tmp_path / "taken"
    taken.write_text("mine")
    with pytest.raises(UserError, match="Could not write .*taken: "):
        export.write(str(stored), kind, taken)
    assert taken.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"stored", "taken"}


def test_every_format_has_a_writer():
    import importlib

    for each in FORMATS.values():
        module, _, function = each.writer.partition(":")
        assert callable(getattr(importlib.import_module(f"compression.deploy.formats.{module}"), function))
