"""Models on disk: JSON for the structure, safetensors for the weights. Loading executes nothing of the file's.

A saved model is its builder's spec plus what compression changed: a layer of another shape or class, a changed
number (the heads of an attention), a module that is gone. So any compressed model reloads in a fresh process.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from compression import models
from compression.errors import UserError, first_line
from compression.nn import layers

FORMAT = 1
STRUCTURE, WEIGHTS = "model.json", "model.safetensors"
CHAIN: dict[str, Any] = {"class": "Sequential", "arguments": {}}


def save(model: nn.Module, folder: Path, about: dict[str, Any]) -> Path:
    """Write `model` to `folder`; `about` (task, labels, …) is kept beside its structure."""
    folder.mkdir(parents=True, exist_ok=True)
    spec = spec_of(model)
    content = {
        "format": FORMAT,
        "spec": spec,
        "changes": changes(models.rebuild(spec), model),
        "about": about,
    }
    try:
        safetensors.torch.save_model(model, str(folder / WEIGHTS))
        (folder / STRUCTURE).write_text(json.dumps(content, indent=1))
        if hasattr(model, "config"):
            model.config.save_pretrained(folder)  # type: ignore[operator, union-attr]  # so that from_pretrained reads the folder too
    except (OSError, SafetensorError) as error:
        raise UserError(f"Could not write the model to {folder}: {first_line(error)}.") from error
    return folder


def load(folder: Path) -> nn.Module:
    """The model of a folder that `save` wrote, on the CPU, in eval mode; UserError if it is not whole."""
    try:
        content = json.loads((folder / STRUCTURE).read_text())
        model = models.rebuild(content["spec"])
        restore(model, content["changes"])
        safetensors.torch.load_model(model, str(folder / WEIGHTS))
        for name in content["changes"]["masked"]:
            layer = model.get_submodule(name)
            layers.set_mask(layer, layers.weight(layer) != 0)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} does not hold a whole model ({first_line(error)}); "
            f"it takes a {STRUCTURE} and a {WEIGHTS} as this lab writes them."
        ) from error
    return model.eval()


def spec_of(model: nn.Module) -> dict[str, Any]:
    """How the model was built; a Hugging Face model's configuration as it is now, after what pruning wrote into it."""
    config = getattr(model, "config", None)
    return {"builder": "huggingface", "config": config.to_dict()} if config is not None else model.spec  # type: ignore[return-value]


def reshaped(model: nn.Module) -> bool:
    """Whether compression changed the structure that its builder gave it; masks change none."""
    found = changes(models.rebuild(spec_of(model)), model)
    return bool(found["modules"] or found["attributes"] or found["removed"])


def untrained(model: nn.Module) -> nn.Module:
    """The structure of `model` as compression left it, masks and all, with new weights, on the CPU.

    A layer that its builder did not make begins as torch begins such a layer.
    """
    fresh = models.rebuild(spec_of(model))
    restore(fresh, changes(fresh, model))
    for name, layer in layers.masked_layers(model).items():
        layers.set_mask(fresh.get_submodule(name), layer.mask.cpu())  # type: ignore[arg-type, operator, union-attr]
    return fresh


def about(folder: Path) -> dict[str, Any]:
    """What `save` was told of the model."""
    return json.loads((folder / STRUCTURE).read_text())["about"]


def changes(fresh: nn.Module, model: nn.Module) -> dict[str, Any]:
    """What to do to `fresh` (from the builder) to give it the structure of `model`."""
    found: dict[str, Any] = {
        "modules": {},
        "attributes": {},
        "removed": [],
        "masked": list(layers.masked_layers(model)),
    }
    _compare("", fresh, model, found)
    return found


def _compare(path: str, fresh: nn.Module | None, model: nn.Module, found: dict[str, Any]) -> None:
    if type(model) in layers.REBUILT:
        if fresh is None or describe(fresh) != describe(model):
            found["modules"][path] = describe(model)
        return
    if type(model) is nn.Sequential and type(fresh) is not nn.Sequential:
        found["modules"][path] = CHAIN  # what a decomposition puts in a layer's place; its parts follow
        fresh = nn.Sequential()
    if type(fresh) is not type(model):
        raise TypeError(f"{path or 'the model'}: a {type(model).__name__} cannot be described; see layers.REBUILT")
    numbers = plain_attributes(model)
    if numbers != plain_attributes(fresh):
        found["attributes"][path] = numbers
    prefix = f"{path}." if path else ""
    before = dict(fresh.named_children())
    for name, child in model.named_children():
        _compare(prefix + name, before.get(name), child, found)
    found["removed"] += [prefix + name for name in before if name not in dict(model.named_children())]


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """The numbers and texts a container keeps of itself (`num_attention_heads`, say)."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "training"
    }


def describe(module: nn.Module) -> dict[str, Any] | None:
    """Class name and constructor arguments of a layer, each read from the attribute of the same name."""
    if type(module) not in layers.REBUILT:
        return None
    names = [n for n in inspect.signature(type(module)).parameters if n not in ("device", "dtype", "inplace")]
    arguments = {n: getattr(module, n) for n in names if hasattr(module, n) and not n.startswith("_")}
    if "bias" in arguments:
        arguments["bias"] = arguments["bias"] is not None and arguments["bias"] is not False
    return {"class": type(module).__name__, "arguments": json.loads(json.dumps(arguments))}


def restore(model: nn.Module, found: dict[str, Any]) -> None:
    """Apply what `changes` found to a freshly built model."""
    classes: dict[str, Any] = {cls.__name__: cls for cls in (*layers.REBUILT, nn.Sequential)}
    for path in sorted(found["removed"], reverse=True):
        parent, _, name = path.rpartition(".")
        delattr(model.get_submodule(parent), name)
    for path, description in found["modules"].items():
        arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in description["arguments"].items()}
        model.set_submodule(path, classes[description["class"]](**arguments))
    for path, attributes in found["attributes"].items():
        for name, value in attributes.items():
            setattr(model.get_submodule(path), name, value)


class _Served:
    """What `mlflow models serve` and `mlflow.pyfunc.load_model` answer with."""

    def __init__(self, model: nn.Module):
        self.model = model

    @torch.inference_mode()
    def predict(self, inputs: Any, params: Any = None) -> Any:
        """Logits for an array of prepared images, or a dict of arrays of token ids."""
        from compression.nn.inputs import forward

        if isinstance(inputs, dict):
            return forward(self.model, {name: torch.as_tensor(v) for name, v in inputs.items()}).numpy()
        return forward(self.model, torch.as_tensor(inputs)).numpy()


def _load_pyfunc(path: str) -> _Served:
    """MLflow's loader hook: a `loader_module` instead of a pickle."""
    return _Served(load(Path(path)))
