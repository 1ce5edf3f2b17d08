"""Models on disk: JSON for the structure, safetensors for the weights. Loading executes nothing from the files.

A stored model is its builder's spec plus what compression changed: layers of another shape or class, attributes with
another value (the heads of an attention), removed modules. So any compressed model reloads in a fresh process.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from compression import models
from compression.errors import UserError, first_line
from compression.models import conv1d
from compression.nn import layers
from compression.nn.graph import replace_module
from compression.nn.modular import Modularized

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

FORMAT_VERSION = 1
STRUCTURE_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"
SEQUENTIAL: dict[str, Any] = {"class": "Sequential", "arguments": {}}


class StructuralChanges(TypedDict):
    """What turns a freshly built model into a compressed one; survives JSON unchanged."""

    modules: dict[str, dict[str, Any]]  # module name -> class and arguments of the layer to put there
    attributes: dict[str, dict[str, Any]]  # module name -> attributes to set
    removed: list[str]  # names of modules to delete
    shapes: dict[str, list[int]]  # names of parameters and buffers of other modules -> their shapes
    masked: list[str]  # names of layers with a pruning mask


def save(model: nn.Module, folder: Path, metadata: Mapping[str, Any]) -> Path:
    """Write `model` to `folder`, with `metadata` (task, labels, …) beside its structure; return `folder`.

    Raises UserError if the files cannot be written, and TypeError for a layer class that cannot be rebuilt.
    """
    folder.mkdir(parents=True, exist_ok=True)
    spec = current_spec(model)
    fresh = models.rebuild(spec)
    changes = structural_changes(fresh, model)
    content = {"format": FORMAT_VERSION, "spec": spec, "changes": changes, "about": metadata}
    linearized = conv1d.linearized(fresh)
    _require_loadable(fresh, changes, model)
    try:
        with conv1d.as_stored(model, linearized):
            safetensors.torch.save_model(model, str(folder / WEIGHTS_FILE))
        (folder / STRUCTURE_FILE).write_text(json.dumps(content, indent=1))
        if (config := getattr(model, "config", None)) is not None:
            config.save_pretrained(folder)  # so that transformers' from_pretrained reads the folder too
    except (OSError, SafetensorError) as error:
        raise UserError(f"Could not write the model to {folder}: {first_line(error)}.") from error
    return folder


def _require_loadable(fresh: nn.Module, changes: StructuralChanges, model: nn.Module) -> None:
    """Raise UserError unless `fresh`, to which the `changes` are made here, takes the weights of `model`."""
    changes = json.loads(json.dumps(changes))  # as they are read back
    try:
        apply_changes(fresh, changes)
    except (TypeError, ValueError, AttributeError, KeyError, RuntimeError) as error:
        raise UserError(f"{type(model).__name__} cannot be stored: {first_line(error)}.") from error
    expected, found = ({n: (tuple(t.shape), t.dtype) for n, t in m.state_dict().items()} for m in (fresh, model))
    if wrong := [name for name in {**expected, **found} if expected.get(name) != found.get(name)]:
        raise UserError(
            f"{type(model).__name__} cannot be stored: {', '.join(wrong[:3])} would be read back in another form. "
            "A module that compression changed is described by neither its class nor its config."
        )


def load(folder: Path, like: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load a model that `save` wrote, on the CPU, in eval mode.

    `like` makes the model before it was compressed, or is one, where that is of somebody's own code. Raises UserError
    if a file is missing or damaged, or without the `like` that it takes.
    """
    try:
        content = json.loads((folder / STRUCTURE_FILE).read_text())
        spec = content["spec"]
        model = models.rebuild(models.OwnSpec(models.factory(like), spec) if like is not None else spec)
        linearized = conv1d.linearized(model)
        apply_changes(model, content["changes"])
        with conv1d.as_stored(model, linearized):
            safetensors.torch.load_model(model, str(folder / WEIGHTS_FILE))
        for name in content["changes"]["masked"]:  # masks are not stored: what is zero was masked
            layer = model.get_submodule(name)
            layers.set_mask(layer, layers.weight(layer) != 0)
    except (OSError, ValueError, KeyError, AttributeError, RuntimeError, SafetensorError) as error:
        raise UserError(
            f"{folder} does not hold a whole model ({first_line(error)}); "
            f"it takes a {STRUCTURE_FILE} and a {WEIGHTS_FILE} as this lab writes them."
        ) from error
    return model.eval()


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata that `save` wrote."""
    metadata: dict[str, Any] = json.loads((folder / STRUCTURE_FILE).read_text())["about"]
    return metadata


def current_spec(model: nn.Module) -> dict[str, Any]:
    """Return the spec to rebuild `model` from, for Hugging Face models with the config as pruning has changed it."""
    config = None if isinstance(getattr(model, "spec", None), models.OwnSpec) else getattr(model, "config", None)
    return models.spec_of(model) if config is None else {"builder": "huggingface", "config": config.to_dict()}


def has_changed_structure(model: nn.Module) -> bool:
    """Whether compression changed the structure that the builder gave `model`. Masks do not count."""
    changes = structural_changes(models.rebuild(current_spec(model)), model)
    return any(changes[kind] for kind in ("modules", "attributes", "removed", "shapes"))


def reinitialized_copy(model: nn.Module) -> nn.Module:
    """Return a model with the structure of `model`, masks included, and new random weights, on the CPU.

    Layers that compression put in are initialised as torch initialises their class.
    """
    fresh = models.rebuild(current_spec(model))
    apply_changes(fresh, structural_changes(fresh, model))
    for name, layer in layers.masked_layers(model).items():
        layers.set_mask(fresh.get_submodule(name), layer.get_buffer("mask").cpu())
    return fresh


def structural_changes(fresh: nn.Module, model: nn.Module) -> StructuralChanges:
    """Compare `model` with `fresh`, the model as its builder makes it.

    Raises TypeError for a module of another class that is not in `layers.STORABLE`.
    """
    changes = StructuralChanges(
        modules={}, attributes={}, removed=[], shapes={}, masked=list(layers.masked_layers(model))
    )
    _add_changes("", fresh, model, changes)
    return changes


def _add_changes(path: str, fresh: nn.Module | None, model: nn.Module, changes: StructuralChanges) -> None:
    """Add to `changes` those of the module called `path` and of all modules in it."""
    if type(model) in layers.STORABLE:
        if type(fresh) is not type(model) or describe_layer(fresh) != describe_layer(model):
            changes["modules"][path] = describe_layer(model)
        return
    if type(model) is nn.Sequential and type(fresh) is not nn.Sequential:
        changes["modules"][path] = SEQUENTIAL  # what a decomposition puts in place of a layer; its factors follow
        fresh = nn.Sequential()
    if type(fresh) is not type(model) and not (isinstance(fresh, Modularized) and isinstance(model, Modularized)):
        raise TypeError(f"{path or 'the model'}: a {type(model).__name__} cannot be described; see layers.STORABLE")
    attributes = plain_attributes(model)
    if attributes != plain_attributes(fresh):
        changes["attributes"][path] = attributes
    prefix = f"{path}." if path else ""
    shapes = {name: list(tensor.shape) for name, tensor in own_tensors(model).items()}
    built = {name: list(tensor.shape) for name, tensor in own_tensors(fresh).items()}
    changes["shapes"] |= {prefix + name: shape for name, shape in shapes.items() if built.get(name, shape) != shape}
    before = dict(fresh.named_children())
    for name, child in model.named_children():
        _add_changes(prefix + name, before.get(name), child, changes)
    changes["removed"] += [prefix + name for name in before if name not in dict(model.named_children())]


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of the module itself, by name."""
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """Return a module's public numbers and strings, such as `num_attention_heads`."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (bool, int, float, str)) and not name.startswith("_") and name != "training"
    }


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """Return the class name and the constructor's arguments, each read from the attribute of the same name."""
    names = [n for n in inspect.signature(type(layer)).parameters if n not in ("device", "dtype", "inplace")]
    arguments = {n: getattr(layer, n) for n in names if hasattr(layer, n) and not n.startswith("_")}
    if "bias" in arguments:  # the attribute is the parameter, the argument says whether there is one
        arguments["bias"] = arguments["bias"] is not None and arguments["bias"] is not False
    return {"class": type(layer).__name__, "arguments": json.loads(json.dumps(arguments))}


def apply_changes(model: nn.Module, changes: StructuralChanges) -> None:
    """Give a freshly built `model` the structure that `changes` describe, in place."""
    classes: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (*layers.STORABLE, nn.Sequential)}
    for path in sorted(changes["removed"], reverse=True):
        parent, _, name = path.rpartition(".")
        delattr(model.get_submodule(parent), name)
    for path, description in changes["modules"].items():
        arguments = {n: tuple(v) if isinstance(v, list) else v for n, v in description["arguments"].items()}
        _put(model, path, classes[description["class"]](**arguments))
    for path, shape in changes.get("shapes", {}).items():  # 0.1 stored none
        _resize(model, path, shape)
    for path, attributes in changes["attributes"].items():
        for name, value in attributes.items():
            setattr(model.get_submodule(path), name, value)


def _resize(model: nn.Module, path: str, shape: Sequence[int]) -> None:
    """Cut the parameter or buffer at `path` to `shape`, in place."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    tensor = own_tensors(module)[name]
    cut = tensor.detach()[tuple(slice(size) for size in shape)].clone()
    if cut.shape != torch.Size(shape):
        raise ValueError(f"{path} grew from {tuple(tensor.shape)} to {tuple(shape)}")
    setattr(module, name, nn.Parameter(cut, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else cut)


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    """Put `module` at `path`, and under all other names of the module that is there, if one is."""
    if path in dict(model.named_modules(remove_duplicate=False)):
        replace_module(model, path, module)
    else:
        model.set_submodule(path, module)


class _PyfuncModel:
    """The model that `mlflow models serve` and `mlflow.pyfunc.load_model` use."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @torch.inference_mode()
    def predict(self, inputs: Any, params: dict[str, Any] | None = None) -> np.ndarray:  # noqa: ARG002 - MLflow's signature
        """Return logits `(batch, outputs)` for an array of normalized images, or a dict of arrays of token ids."""
        from compression.nn.inputs import forward

        if isinstance(inputs, dict):
            return forward(self.model, {name: torch.as_tensor(v) for name, v in inputs.items()}).numpy()
        return forward(self.model, torch.as_tensor(inputs)).numpy()


def _load_pyfunc(path: str) -> _PyfuncModel:
    """Load a stored model for MLflow, which calls this function of the `loader_module` that MLmodel files name."""
    return _PyfuncModel(load(Path(path)))
