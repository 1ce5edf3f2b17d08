import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from compression import models
from compression.errors import UserError
from compression.models import storage
from compression.nn import layers


@pytest.fixture
def model(task):
    return models.build("digits_cnn", task).eval()


def saved(model, folder):
    return storage.save(model, folder, {"task": "stripes"})


def test_a_model_reloads_with_equal_answers(model, task, tmp_path):
    again = storage.load(saved(model, tmp_path / "model"))
    assert torch.equal(model(task.example(5)), again(task.example(5)))
    assert not again.training
    assert storage.read_metadata(tmp_path / "model") == {"task": "stripes"}


def test_a_model_reloads_in_a_fresh_process(model, task, tmp_path):
    saved(model, tmp_path / "model")
    torch.save(task.example(5), tmp_path / "in.pt")
    code = (
        "import sys, torch; from pathlib import Path; from compression.models import storage; at = Path(sys.argv[1]);"
        "torch.save(storage.load(at / 'model')(torch.load(at / 'in.pt', weights_only=True)), at / 'out.pt')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    answer = torch.load(tmp_path / "out.pt", weights_only=True)
    assert torch.equal(answer, model(task.example(5)).detach())


def first_and_next_conv(model):
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]
    return names[0], names[1]


def test_layers_of_another_shape_reload(model, task, tmp_path):
    name, after = first_and_next_conv(model)
    conv, following = model.get_submodule(name), model.get_submodule(after)
    norm_name, norm = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d))
    width = conv.out_channels - 3
    model.set_submodule(name, nn.Conv2d(conv.in_channels, width, 3, padding=1, bias=conv.bias is not None))
    model.set_submodule(norm_name, nn.BatchNorm2d(width, eps=norm.eps))
    model.set_submodule(
        after,
        nn.Conv2d(
            width,
            following.out_channels,
            3,
            stride=following.stride,
            padding=1,
            bias=following.bias is not None,
        ),
    )
    model.eval()
    again = storage.load(saved(model, tmp_path / "model"))
    assert torch.equal(model(task.example(5)), again(task.example(5)))
    assert again.get_submodule(name).out_channels == width


def test_a_chain_in_a_layers_place_reloads_its_parts_in_their_order(model, task, tmp_path):
    name, _ = first_and_next_conv(model)
    conv = model.get_submodule(name)
    narrow = nn.Conv2d(conv.in_channels, 2, 3, padding=1, bias=False)
    inner = nn.Sequential(nn.Conv2d(2, 5, 1), nn.Identity())
    model.set_submodule(name, nn.Sequential(narrow, inner, nn.Conv2d(5, conv.out_channels, 1)))
    again = storage.load(saved(model, tmp_path / "model"))
    assert str(again) == str(model)
    assert torch.equal(model(task.example(5)), again(task.example(5)))


def test_a_mask_reloads_from_the_zeros(model, tmp_path):
    name, _ = first_and_next_conv(model)
    layer = model.get_submodule(name)
    layers.set_mask(layer, torch.rand_like(layer.weight) > 0.5)
    again = storage.load(saved(model, tmp_path / "model"))
    assert list(layers.masked_layers(again)) == [name]
    assert torch.equal(again.get_submodule(name).mask, layer.mask)


def test_a_removed_module_and_a_changed_number_reload(tmp_path):
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = 4
            self.items = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2)])

    fresh, model = Block(), Block()
    model.heads, model.items = 2, nn.ModuleList([model.items[0], model.items[2]])
    found = json.loads(json.dumps(storage.structural_changes(fresh, model)))
    storage.apply_changes(fresh, found)
    assert fresh.heads == 2
    assert len(fresh.items) == 2


def test_a_class_the_lab_cannot_rebuild_is_named(model, tmp_path):
    class Strange(nn.Module):
        pass

    name, _ = first_and_next_conv(model)
    model.set_submodule(name, Strange())
    with pytest.raises(TypeError, match=f"{name}: a Strange cannot be described"):
        saved(model, tmp_path / "model")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "model.json").unlink(),
        lambda folder: (folder / "model.json").write_text("{"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\0" * 40),
        lambda folder: (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-100]),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_one_sentence(model, tmp_path, spoil):
    folder = saved(model, tmp_path / "model")
    spoil(folder)
    with pytest.raises(UserError, match="does not hold a whole model") as refused:
        storage.load(folder)
    assert "\n" not in str(refused.value)


class Scaled(nn.Module):
    """A module with a parameter and a buffer of its own, as LayerScale is."""

    def __init__(self, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, channels, 3), nn.InstanceNorm2d(channels, affine=True)
        self.gamma = nn.Parameter(torch.ones(channels, 1, 1))
        self.register_buffer("shift", torch.zeros(channels, 1, 1))
        self.group = nn.GroupNorm(2, channels)

    def forward(self, images):
        return self.group(self.norm(self.conv(images)) * self.gamma + self.shift).flatten(1)


def test_parameters_of_modules_that_have_no_description_reload_in_their_shape(tmp_path):
    whole, cut = Scaled(8), Scaled(4)
    for parameter in cut.parameters():
        nn.init.normal_(parameter)
    models.adopt(cut, whole)
    again = storage.load(saved(cut.eval(), tmp_path / "model"), like=lambda: Scaled(8))
    images = torch.randn(2, 1, 8, 8)
    assert torch.equal(again(images), cut(images))
    assert again.gamma.shape == (4, 1, 1)
    assert storage.has_changed_structure(cut)
    assert storage.reinitialized_copy(cut)(images).isfinite().all()


def test_what_could_not_be_read_back_is_not_stored(tmp_path):
    grown = Scaled(8)
    models.adopt(grown, Scaled(4))
    with pytest.raises(UserError, match="Scaled cannot be stored: gamma grew from"):
        saved(grown, tmp_path / "model")
    assert not list(tmp_path.iterdir())
    more = Scaled(4)
    more.register_buffer("added", torch.zeros(3))
    models.adopt(more, Scaled(4))
    with pytest.raises(UserError, match="Scaled cannot be stored: added would be read back in another form"):
        saved(more, tmp_path / "model")


class Versioned(nn.Module):
    """Reads weights of its own version alone, as torchvision's MNASNet does."""

    _version = 2

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, rows):
        return self.fc(rows)

    def _load_from_state_dict(self, state, prefix, metadata, *rest):
        if metadata.get("version") != 2:
            raise ValueError(f"version {metadata.get('version')} is not supported")
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_weights_are_read_as_those_of_todays_classes(tmp_path):
    model = models.adopt(Versioned(), Versioned)
    again = storage.load(saved(model, tmp_path / "model"), Versioned)
    assert torch.equal(again.fc.weight, model.fc.weight)


class Negating(nn.Linear):
    """Turns the sign of its weights when it reads them."""

    def _load_from_state_dict(self, state, prefix, *rest):
        super()._load_from_state_dict({name: -tensor for name, tensor in state.items()}, prefix, *rest)


def test_what_would_be_read_back_otherwise_is_not_stored(tmp_path):
    model = models.adopt(Negating(4, 3), lambda: Negating(4, 3))
    with pytest.raises(UserError, match="Negating cannot be stored: weight, bias are read back otherwise"):
        saved(model, tmp_path / "model")
    assert not list(tmp_path.iterdir())
