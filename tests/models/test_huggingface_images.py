"""Hugging Face's models of images: classes by name, stored and read back, and what does not fit is refused."""

import copy
import json
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageClassification

from compression import models
from compression.deploy.onnx.export import export
from compression.deploy.parity import check_parity
from compression.errors import UserError
from compression.methods import method
from compression.models import storage
from compression.nn.inputs import forward
from compression.runs import loading
from compression.tasks import load
from tests.conftest import stripes_task
from tests.models.tiny_bert import save_bert

SIZES = {
    "vit": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    | {"image_size": 8, "patch_size": 4},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2, "patch_size": 2},
}
LABELS = ("right", "left", "middle")


def save_images(folder, kind="resnet", labels=LABELS, **changes) -> str:
    """Save a random classifier of images of one channel."""
    torch.manual_seed(0)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    config = AutoConfig.for_model(kind, **(SIZES[kind] | {"num_channels": 1} | named | changes))
    model = AutoModelForImageClassification.from_config(config).eval()
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    nn.init.normal_(head.weight)
    model.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def task():
    return stripes_task()


@pytest.mark.parametrize("kind", SIZES)
def test_its_outputs_have_the_order_of_the_tasks_classes(kind, task, tmp_path):
    name = save_images(tmp_path / kind, kind)
    images = task.example(8)
    given = AutoModelForImageClassification.from_pretrained(name).eval()(images).logits
    model = loading.open_model(name, task)
    torch.testing.assert_close(forward(model, images), given[:, [LABELS.index(label) for label in task.labels]])
    assert tuple(model.config.id2label.values()) == task.labels


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("step", ["static", "magnitude"])
def test_compressed_it_is_stored_and_answers_alike_when_it_is_read_back(kind, step, task, make_context, tmp_path):
    original = loading.open_model(save_images(tmp_path / kind, kind), task).requires_grad_(False)
    chosen = method(step)().resolved(task)
    made = chosen.apply(copy.deepcopy(original).requires_grad_(True), make_context(task, original)).eval()
    expected = forward(made, task.example(8))
    if step == "static":
        error = (expected - forward(original, task.example(8))).square().mean().sqrt()
        assert error < 0.1 * expected.square().mean().sqrt()
    folder = storage.save(made, tmp_path / "stored", {"model": kind, "labels": task.labels})
    again = loading.open_model(str(folder), task)
    assert torch.equal(forward(again, task.example(8)), expected)
    assert models.zero_inputs(again, 3).shape == (3, 1, 8, 8)


def test_its_file_answers_as_it_does_and_transformers_reads_what_is_stored(task, tmp_path):
    model = loading.open_model(save_images(tmp_path / "resnet"), task)
    file = export(model, models.zero_inputs(model, 4), tmp_path / "model.onnx")
    assert check_parity(model, file, task.test, task, 1).agreement == 1.0
    storage.save(model, tmp_path / "stored", {})
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "stored").eval()
    torch.testing.assert_close(again(task.example(8)).logits, forward(model, task.example(8)))


def test_a_module_of_transformers_is_stored_by_its_config(task, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(save_images(tmp_path / "vit", "vit")).eval()
    adopted = models.with_spec(copy.deepcopy(model), task.input_shape, task.example(2))
    storage.save(adopted, tmp_path / "stored", {})
    again = forward(storage.load(tmp_path / "stored"), task.example(8))
    torch.testing.assert_close(again, model(task.example(8)).logits)


def test_a_backbone_without_a_classifier_gets_a_new_one(task, tmp_path):
    name = save_images(tmp_path / "resnet")
    AutoModelForImageClassification.from_pretrained(name).resnet.save_pretrained(tmp_path / "backbone")
    assert forward(loading.open_model(str(tmp_path / "backbone"), task), task.example(4)).shape == (4, 3)


def test_what_does_not_fit_is_refused(task, tmp_path):
    def refuses(said, name, task=task):
        with pytest.raises(UserError, match=said):
            loading.open_model(name, task)

    refuses("has 2 outputs; stripes needs 3", save_images(tmp_path / "two", labels=("a", "b")))
    refuses(
        "tells a, b, c apart, and stripes has .* left, middle", save_images(tmp_path / "abc", labels=("a", "b", "c"))
    )
    refuses("does not take the images of stripes, 1x8x8", save_images(tmp_path / "large", "vit", image_size=32))
    refuses("does not take the images of stripes, 1x8x8", save_images(tmp_path / "colour", num_channels=3))
    refuses(r"bert\) cannot classify images", save_bert(tmp_path / "bert", classes=3))
    refuses("There is no model 'resnet7'", "resnet7")
    refuses("holds no usable Hugging Face model", str(tmp_path))
    with pytest.raises(UserError, match="holds no usable|cannot classify text"):
        load("glue/sst2", model=save_images(tmp_path / "image"), data=str(tmp_path))


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"image_mean": [0.3053], "image_std": [0.3761]}, ""),
        ({"image_mean": [0.5], "image_std": [0.5]}, "normalized with mean=0.5 and std=0.5; give these to digits"),
        ({"do_normalize": False}, "mean=0 and std=1; give these to digits"),
        ({"do_flip_channel_order": True}, "blue, green, red"),
        ({}, ""),
    ],
)
def test_images_that_are_normalized_otherwise_are_refused(said, sentence, tmp_path):
    name = save_images(tmp_path / "resnet", labels=tuple("0123456789"))
    Path(name, "preprocessor_config.json").write_text(json.dumps(said))
    task = load("digits", limit=9)
    if not sentence:
        loading.open_model(name, task)
        return
    with pytest.raises(UserError, match=sentence):
        loading.open_model(name, task)
