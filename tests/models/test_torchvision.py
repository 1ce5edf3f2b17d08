"""AlexNet, VGG-16 and ResNet-50, on the smallest images they take."""

import json

import pytest
import torch
import torchvision
from torch import nn

from compression import models
from compression.errors import UserError
from compression.models import storage
from compression.nn.layers import Add

SIDES = {"alexnet": 63, "vgg16": 32, "resnet50": 32}


def make(name, outputs=7, side=None, channels=3, width=1.0):
    side = side or SIDES[name]
    arguments = {"outputs": outputs, "input_shape": [channels, side, side], "width": width}
    return models.rebuild({"builder": name, "arguments": arguments}).eval()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return make("resnet50")


@pytest.mark.parametrize("name", ["alexnet", "resnet50"])  # VGG-16's 138 M weights take a second to draw
def test_it_turns_the_smallest_images_into_a_row_of_logits_each(name):
    side = SIDES[name]
    assert make(name)(torch.rand(2, 3, side, side)).shape == (2, 7)


def test_vgg16_has_torchvisions_parameters_and_answers_the_smallest_images():
    model = make("vgg16", outputs=1000)
    assert (
        sum(p.numel() for p in model.parameters()) == torchvision.models.VGG16_Weights.IMAGENET1K_V1.meta["num_params"]
    )
    assert model(torch.rand(1, 3, 32, 32)).shape == (1, 1000)


def test_resnet50_computes_what_torchvisions_does_from_a_state_dict_of_torchvisions(resnet):
    theirs = torchvision.models.resnet50(weights=None, num_classes=7).eval()
    resnet.load_state_dict(theirs.state_dict())
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(resnet(images), theirs(images))


def test_every_sum_and_relu_of_resnet50_is_a_module_called_once(resnet):
    calls = []
    hooks = [m.register_forward_hook(lambda m, *_: calls.append(m)) for m in resnet.modules() if not list(m.children())]
    resnet(torch.rand(1, 3, 32, 32))
    for hook in hooks:
        hook.remove()
    assert len(calls) == len(set(calls))
    assert sum(isinstance(m, Add) for m in calls) == 16  # 3 + 4 + 6 + 3 blocks
    assert sum(isinstance(m, nn.ReLU) for m in calls) == 49  # the stem's and three a block


def test_it_comes_back_from_its_spec_in_json_and_from_disk_with_equal_answers(resnet, tmp_path):
    spec = json.loads(json.dumps(models.spec_of(resnet)))
    assert spec == {"builder": "resnet50", "arguments": {"outputs": 7, "input_shape": [3, 32, 32], "width": 1.0}}
    again = storage.load(storage.save(resnet, tmp_path / "model", {}))
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(images), resnet(images))


@pytest.mark.parametrize(("channels", "side"), [(1, 64), (3, 62)])
def test_images_it_was_not_made_for_are_refused_in_a_sentence(channels, side):
    with pytest.raises(UserError, match=f"alexnet takes .* 63x63 pixels; these are {channels}x{side}x{side}"):
        make("alexnet", channels=channels, side=side)


def test_another_width_is_refused_in_a_sentence():
    with pytest.raises(UserError, match="resnet50 comes in one width"):
        make("resnet50", width=0.5)
