"""A model that somebody sends runs nothing, asks nothing, and takes the memory of its weights, or is refused."""

import contextlib
import io
import json
import os
import resource
import shutil
import sys

import pytest
import torch

from compression import models
from compression.errors import UserError
from compression.models import huggingface, skeleton, storage
from compression.runs import loading
from tests.models import hostile
from tests.models.tiny_bert import save_bert


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    arguments = {"outputs": 10, "input_shape": [1, 8, 8], "width": 1.0}
    model = models.rebuild({"builder": "digits_cnn_small", "arguments": arguments})
    return storage.save(model, tmp_path_factory.mktemp("models") / "good", {"model": "digits_cnn_small"})


def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", hostile.ALL)
def test_a_hostile_model_is_refused_in_a_sentence_and_little_memory(good, tmp_path, name):
    folder = shutil.copytree(good, tmp_path / "model")
    hostile.spoil(folder, name)
    huggingface.build_from_config({"model_type": "bert", **hostile.TINY})  # imports what the memory of is not counted
    before = peak_bytes()
    with pytest.raises(UserError) as refused:
        storage.load(folder)
    assert "\n" not in str(refused.value)
    assert peak_bytes() - before < 2**29


def test_a_small_file_that_describes_a_large_model_to_cut_down_is_refused(good, tmp_path):
    folder = shutil.copytree(good, tmp_path / "model")
    content = json.loads((folder / "model.json").read_text())
    content["spec"]["arguments"]["width"] = 1000.0
    small = models.rebuild(json.loads((good / "model.json").read_text())["spec"])
    content["changes"]["modules"] = {
        name: storage.describe_layer(layer) for name, layer in small.named_modules() if hasattr(layer, "weight")
    }
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="it would take 3.2 GB of memory, for 0.00.* MB of weights"):
        storage.load(folder)


def test_what_is_built_without_weights_is_counted_in_its_own_thread_alone():
    with skeleton.without_weights(0), pytest.raises(ValueError, match="more than 5,000 layers and parameters"):
        huggingface.build_from_config({"model_type": "bert", **hostile.TINY, "num_hidden_layers": 1000})
    assert torch.nn.Linear(2, 2).weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("entry", "value"),
    [
        ("model", 3),
        ("labels", "abc"),
        ("labels", 3),
        ("normalization", {"mean": "x", "std": [1]}),
        ("normalization", [1]),
    ],
)
def test_metadata_of_another_kind_is_refused(good, tmp_path, entry, value):
    folder = shutil.copytree(good, tmp_path / "model")
    content = json.loads((folder / "model.json").read_text())
    content["about"][entry] = value
    (folder / "model.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=f"its {entry} cannot be read"):
        loading.built_name(str(folder))


@pytest.mark.parametrize("text", ["x" * 5000, "\0", "runs"])
def test_a_text_that_is_no_path_is_a_name(text):
    assert loading.built_name(text) == text


@pytest.mark.parametrize("vocabulary", ["[]", '{"model":[]}', '{"model":{"vocab":[3]}}', "{", '{"model":{"vocab":3}}'])
def test_a_damaged_tokenizer_is_named(tmp_path, vocabulary):
    (tmp_path / "tokenizer.json").write_text(vocabulary)
    with pytest.raises(UserError, match="tokenizer.json is not whole"):
        loading._stored_vocabulary(tmp_path / "tokenizer.json")


@pytest.fixture
def evil(tmp_path):
    """A folder of a model with code of its own, which leaves a file behind if it is run."""
    folder = tmp_path / "evil"
    save_bert(folder)
    code = f"import pathlib\npathlib.Path({str(tmp_path / 'pwned')!r}).touch()\nclass Evil: pass\n"
    (folder / "evil.py").write_text(code)
    with_entries(folder / "config.json", auto_map=hostile.CODE)
    with_entries(folder / "tokenizer_config.json", tokenizer_class="X", auto_map={"AutoTokenizer": ["evil.Evil", None]})
    return folder


def with_entries(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.mark.parametrize("kind", ["bert", "unknown", "clip"])
def test_code_that_comes_with_a_model_is_not_run_and_nobody_is_asked(evil, tmp_path, monkeypatch, capfd, kind):
    with_entries(evil / "config.json", model_type=kind)  # transformers has BERT, and CLIP on images
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    for load in (huggingface._load_config, huggingface.load_tokenizer, huggingface.max_length):
        if kind == "unknown":
            with pytest.raises(UserError, match="it takes code that comes with it, which is never run here"):
                load(str(evil))
        else:
            with contextlib.suppress(UserError):
                load(str(evil))
    assert not (tmp_path / "pwned").exists()
    assert sys.stdin.tell() == 0
    assert "y/N" not in "".join(capfd.readouterr())


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_in_the_folder_of_a_model_is_named(evil, name):
    (evil / name).unlink()
    os.mkfifo(evil / name)
    with pytest.raises(UserError, match=f"{name} is a pipe or a device"):
        huggingface.load_tokenizer(str(evil))


@pytest.mark.parametrize("entries", [{"num_labels": 10**9}, {"num_hidden_layers": 10**9}, hostile.HUGE])
def test_a_config_that_no_weights_belong_to_is_refused_before_it_is_built(evil, entries):
    with_entries(evil / "config.json", **entries)
    before = peak_bytes()
    with pytest.raises(UserError, match="larger than 1,048,576|more than [0-9,]* layers|GB of memory"):
        huggingface._require_affordable(str(evil), huggingface._load_config(str(evil)))
    assert peak_bytes() - before < 2**29
