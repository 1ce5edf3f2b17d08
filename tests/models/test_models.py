import inspect
import json
import subprocess
import sys

import pytest
import torch

from compression import models
from compression.errors import UserError
from tests.conftest import stripes_task

# Those for images of any size, in any width; the networks of torchvision have tests of their own.
SMALL = [name for name, where in models.IMAGE_MODELS.items() if "torchvision" not in where]


def make(name, outputs=10, shape=(3, 32, 32), width=1.0):
    arguments = {"outputs": outputs, "input_shape": list(shape), "width": width}
    return models.rebuild({"builder": name, "arguments": arguments})


def count(model):
    return sum(p.numel() for p in model.parameters())


def shapes(model):
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8)])
def test_every_model_turns_a_batch_of_images_into_a_row_of_logits_each(name, shape):
    assert make(name, 7, shape).eval()(torch.zeros(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize("name", SMALL)
def test_every_model_comes_back_from_its_spec_in_json(name):
    model = make(name, 7, (1, 8, 8), width=0.5)
    spec = json.loads(json.dumps(models.spec_of(model)))
    again = models.rebuild(spec)
    assert shapes(again) == shapes(model)
    assert models.spec_of(again) == spec == models.spec_of(model)


@pytest.mark.parametrize("name", SMALL)
def test_half_the_width_is_about_a_quarter_of_the_weights(name):
    assert 0.2 < count(make(name, width=0.5)) / count(make(name)) < 0.55


@pytest.mark.parametrize("name", SMALL)
def test_no_module_is_used_in_two_places(name):
    model = make(name)
    calls = []
    for module in model.modules():
        if not list(module.children()):
            module.register_forward_hook(lambda module, *_: calls.append(id(module)))
    model.eval()(torch.zeros(1, 3, 32, 32))
    assert len(calls) == len(set(calls))
    assert list(inspect.signature(model.forward).parameters) == ["images"]


def shortcuts(model):
    return sum(p.numel() for name, p in model.named_parameters() if ".shortcut." in name)


@pytest.mark.parametrize(("name", "published"), [("resnet20", 0.27e6), ("resnet32", 0.46e6), ("resnet56", 0.85e6)])
def test_cifar_resnets_have_the_published_size_beside_their_shortcuts(name, published):
    # He et al. 2015, table 6, with shortcuts without weights (option A); it rounds to 0.01 M.
    model = make(name)
    assert count(model) - shortcuts(model) == pytest.approx(published, abs=0.005e6)
    assert shortcuts(model) == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_resnet20_has_the_layers_of_the_paper():
    convolutions = [m for m in make("resnet20").modules() if isinstance(m, torch.nn.Conv2d)]
    assert len([c for c in convolutions if c.kernel_size == (3, 3)]) == 19  # and the linear layer makes 20
    assert [c.stride for c in convolutions if c.stride != (1, 1)] == [(2, 2)] * 4  # two blocks, two shortcuts


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("resnet18", 11_173_962),  # as everybody's ResNet-18 for CIFAR-10
        # weights and biases of 5 layers, two numbers per channel of 4 norms
        ("cnn5", 3 * 288 + 32 + 18432 + 64 + 73728 + 128 + 2048 * 128 + 128 + 1290 + 2 * (32 + 64 + 128 + 128)),
    ],
)
def test_sizes_of_the_cifar10_teacher_and_student(name, parameters):
    assert count(make(name)) == parameters


def test_the_names_of_a_resnet_tell_stage_and_block():
    names = set(make("resnet20").state_dict())
    assert {"stem.conv.weight", "stages.0.1.conv1.weight", "stages.1.0.shortcut.conv.weight", "fc.bias"} <= names


def test_the_digits_student_has_less_than_a_tenth_of_its_teachers_weights():
    assert 10 * count(make("digits_cnn_small", shape=(1, 8, 8))) < count(make("digits_cnn", shape=(1, 8, 8)))


def test_build_takes_outputs_and_shape_from_the_task():
    model = models.build("mlp", stripes_task())
    assert models.spec_of(model)["arguments"] == {"outputs": 3, "input_shape": [1, 8, 8], "width": 1.0}


@pytest.mark.parametrize("name", ["resnet19", "huggingface", "bert-base-uncased"])
def test_an_unknown_model_is_refused_with_the_known_ones(name):
    with pytest.raises(UserError, match=f"no model '{name}'.*resnet20.*for text lstm or any Hugging Face hub name"):
        models.build(name, stripes_task())


def test_a_model_for_images_is_refused_by_a_text_task():
    with pytest.raises(UserError, match="resnet20 is not for glue/rte; take lstm or any Hugging Face hub name"):
        models.build("resnet20", stripes_task(name="glue/rte", input_shape=()))


def test_a_model_for_text_is_refused_by_an_image_task():
    with pytest.raises(UserError, match="lstm is not for stripes; take resnet8, .*, resnet50.$"):
        models.build("lstm", stripes_task())


def test_listing_models_and_tasks_does_not_import_torch():
    code = "import sys, compression.tasks, compression.models; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
