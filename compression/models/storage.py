"""Models on disk: JSON for the structure, safetensors for the weights. Loading executes nothing from the files.

A stored model is its builder's spec plus what compression changed: layers of another shape or class, attributes with
another value (the heads of an attention), removed modules. So any compressed model reloads in a fresh process.
"""

from __future__ import annotations

import inspect
import json
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import nn

from compression import models
from compression.errors import UserError, first_line
from compression.files import fill_folder, read_text
from compression.models import conv1d, skeleton
from compression.nn import layers
from compression.nn.graph import replace_module
from compression.nn.modular import Modularized
from compression.nn.raw import raw_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy as np

FORMAT_VERSION = 1
MAX_STRUCTURE_BYTES = 2**26  # of model.json, which has 10 kB for a ResNet-18 and 100 kB for a pruned BERT
STRUCTURE_FILE, WEIGHTS_FILE = "model.json", "model.safetensors"
PLAIN: dict[type, tuple[type, ...]] = {bool: (bool,), float: (int, float), str: (str,)}  # kinds of attributes
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

    Raises UserError if the files cannot be written, and TypeError for a layer class that cannot be rebuilt; then the
    folder is as it was.
    """
    spec = current_spec(model)
    fresh = models.rebuild(spec)
    changes = structural_changes(fresh, model)
    content = {"format": FORMAT_VERSION, "spec": spec, "changes": changes, "about": metadata}
    linearized = conv1d.linearized(fresh)
    _require_loadable(fresh, changes, model)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with fill_folder(folder) as scratch:
            weights = scratch / WEIGHTS_FILE
            with conv1d.as_stored(model, linearized):
                safetensors.torch.save_model(model, str(weights))
            _require_readable(fresh, linearized, weights, model)
            (scratch / STRUCTURE_FILE).write_text(json.dumps(content, indent=1), encoding="utf-8")
            if (config := models.transformers_config(model)) is not None:
                config.save_pretrained(scratch)  # so that transformers' from_pretrained reads the folder too
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


def _require_readable(fresh: nn.Module, linearized: Sequence[str], weights: Path, model: nn.Module) -> None:
    """Raise UserError unless the file of weights, read into `fresh`, gives the weights of `model`."""
    try:
        _read_weights(fresh, linearized, weights)
    except (ValueError, RuntimeError, TypeError, AttributeError, KeyError) as error:
        raise UserError(f"{type(model).__name__} cannot be stored: {first_line(error)}.") from error
    read = fresh.state_dict()
    if wrong := [
        name for name, tensor in model.state_dict().items() if not torch.equal(raw_bytes(tensor), raw_bytes(read[name]))
    ]:
        raise UserError(f"{type(model).__name__} cannot be stored: {', '.join(wrong[:3])} are read back otherwise.")


def _read_weights(model: nn.Module, linearized: Sequence[str], file: Path) -> None:
    """Load a file of weights into a model of their structure.

    Unlike `safetensors.torch.load_model` it says that the weights are of today's classes: without a version, modules
    take them for those of their first one, and convert (BatchNorm) or refuse them (torchvision's MNASNet). Raises
    RuntimeError for weights that are missing or not the model's.
    """
    with conv1d.as_stored(model, linearized):
        tensors = model.state_dict(keep_vars=True)
        stored = OrderedDict(safetensors.torch.load_file(file))
        # Of a tensor that has several names, the file holds one.
        present = {id(tensors[name]) for name in stored if name in tensors}
        if missing := [name for name, tensor in tensors.items() if id(tensor) not in present]:
            raise RuntimeError(f"the weights of {', '.join(missing[:3])} are missing")
        stored._metadata = tensors._metadata  # type: ignore[attr-defined]
        if unknown := model.load_state_dict(stored, strict=False).unexpected_keys:
            raise RuntimeError(f"{', '.join(unknown[:3])} are no weights of the model")


def load(folder: Path, like: nn.Module | Callable[[], nn.Module] | None = None) -> nn.Module:
    """Load a model that `save` wrote, on the CPU, in eval mode.

    `like` makes the model before it was compressed, or is one, where that is of somebody's own code. Raises UserError
    if a file is missing or damaged, if they are not of one model, or without the `like` that it takes.
    """
    try:
        content = _read_structure(folder)
        spec, changes = content["spec"], content["changes"]
        if like is not None:
            spec = models.OwnSpec(models.factory(like), spec)
        _require_plausible(spec, changes, folder / WEIGHTS_FILE)
        model = models.rebuild(spec)
        linearized = conv1d.linearized(model)
        apply_changes(model, changes)
        _read_weights(model, linearized, folder / WEIGHTS_FILE)
        for name in changes["masked"]:  # masks are not stored: what is zero was masked
            layer = model.get_submodule(name)
            layers.set_mask(layer, layers.weight(layer) != 0)
    except UserError:
        raise
    except Exception as error:  # a stranger's description may make any constructor raise anything
        raise _damaged(folder, error) from error
    return model.eval()


def _require_plausible(spec: Mapping[str, Any], changes: StructuralChanges, file: Path) -> None:
    """Raise ValueError if the model described is not that of the weights in `file`, before it takes any memory."""
    stored = skeleton.stored_shapes(file)
    skeleton.require_countable(spec.get("config", {}))
    # Code that somebody gave or installed is not a stranger's, and may look at its weights while it builds a model.
    is_known = spec["builder"] == models.OWN or spec["builder"] in models.MODELS.brought()
    model = models.rebuild(spec).to("meta") if is_known else None
    with skeleton.without_weights(len(stored)):
        model = models.rebuild(spec) if model is None else model
        before = 0 if is_known else skeleton.nbytes(model)
        linearized = conv1d.linearized(model)
        apply_changes(model, changes)
        with conv1d.as_stored(model, linearized):
            skeleton.require_same_tensors(model, stored)
    skeleton.require_affordable(before + skeleton.nbytes(model), file.stat().st_size)


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the metadata that `save` wrote. Raises UserError if there is none, or it is damaged."""
    try:
        metadata: dict[str, Any] = _read_structure(folder)["about"]
        if wrong := [name for name, is_right in METADATA.items() if not is_right(metadata.get(name))]:
            raise ValueError(f"its {' and '.join(wrong)} cannot be read")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(folder, error) from error
    return metadata


def _read_structure(folder: Path) -> Any:
    """Return what model.json holds; `load` and `read_metadata` answer for anything else than an object."""
    return json.loads(read_text(folder / STRUCTURE_FILE, MAX_STRUCTURE_BYTES))


def _damaged(folder: Path, error: Exception) -> UserError:
    return UserError(
        f"{folder} does not hold a whole model ({first_line(error)}); "
        f"it takes a {STRUCTURE_FILE} and a {WEIGHTS_FILE} as this lab writes them."
    )


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, (int, float)) for each in value)


# What the entries of the metadata that the lab reads back have to be; each may be missing.
METADATA: dict[str, Callable[[Any], bool]] = {
    "model": lambda value: value is None or isinstance(value, str),
    "labels": lambda value: value is None or isinstance(value, list),
    "normalization": lambda value: (
        not value or (isinstance(value, dict) and _are_numbers(value.get("mean")) and _are_numbers(value.get("std")))
    ),
    "seconds": lambda value: value is None or isinstance(value, (int, float)),
}


def current_spec(model: nn.Module) -> dict[str, Any]:
    """Return the spec to rebuild `model` from, for Hugging Face models with the config as pruning has changed it."""
    spec, config = models.spec_of(model), models.transformers_config(model)
    return {**spec, "config": config.to_dict()} if spec["builder"] == "huggingface" and config is not None else spec


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
        if _plain_kind(value) and not name.startswith("_") and name != "training"
    }


def describe_layer(layer: nn.Module) -> dict[str, Any]:
    """Return the class name and the constructor's arguments, each read from the attribute of the same name."""
    arguments = {name: getattr(layer, name) for name in _argument_names(type(layer)) if hasattr(layer, name)}
    if "bias" in arguments:  # the attribute is the parameter, the argument says whether there is one
        arguments["bias"] = arguments["bias"] is not None and arguments["bias"] is not False
    return {"class": type(layer).__name__, "arguments": json.loads(json.dumps(arguments))}


def _argument_names(cls: type[nn.Module]) -> list[str]:
    """Return the constructor's arguments that say what a layer of `cls` is, and not where its tensors are."""
    names = inspect.signature(cls).parameters
    return [name for name in names if name not in ("device", "dtype", "inplace") and not name.startswith("_")]


def apply_changes(model: nn.Module, changes: StructuralChanges) -> None:
    """Give a freshly built `model` the structure that `changes` describe, in place.

    Raises whatever fits, ValueError mostly, if they are not what `structural_changes` makes of such a model.
    """
    # Backwards, so that a module's parts go before it does: `a.b` sorts behind `a`.
    for path in sorted(changes["removed"], reverse=True):
        parent, _, name = path.rpartition(".")
        del model.get_submodule(parent)._modules[name]
    for path, description in changes["modules"].items():
        _put(model, path, build_layer(description))
    for path, shape in changes.get("shapes", {}).items():  # 0.1 stored none
        _resize(model, path, shape)
    for path, attributes in changes["attributes"].items():
        for name, value in attributes.items():
            _set_attribute(model.get_submodule(path), name, value)


def build_layer(description: Mapping[str, Any]) -> nn.Module:
    """Build the layer that `describe_layer` described."""
    classes: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in (*layers.STORABLE, nn.Sequential)}
    cls = classes[description["class"]]
    arguments = {name: tuple(v) if isinstance(v, list) else v for name, v in description["arguments"].items()}
    if unknown := arguments.keys() - set(_argument_names(cls)):
        raise ValueError(f"a {cls.__name__} is not described by {', '.join(sorted(unknown))}")
    return cls(**arguments)


def _set_attribute(module: nn.Module, name: str, value: Any) -> None:
    """Set a number or text of the module; ValueError for what is none there, like a method, a tensor or a hook."""
    own = vars(module)
    before = own.get(name)
    is_free = before is None and (name in own or not hasattr(module, name))
    if name.startswith("_") or not (is_free or _plain_kind(before) is _plain_kind(value)) or not _plain_kind(value):
        raise ValueError(f"{name} is no number or text of a {type(module).__name__}")
    setattr(module, name, value)


def _plain_kind(value: Any) -> type | None:
    """Whether a value is a truth value, a number or a text; None for anything else."""
    return next((kind for kind, types in PLAIN.items() if isinstance(value, types)), None)


def _resize(model: nn.Module, path: str, shape: Sequence[int]) -> None:
    """Cut the parameter or buffer at `path` to `shape`, in place."""
    owner, _, name = path.rpartition(".")
    module = model.get_submodule(owner)
    tensor = own_tensors(module)[name]
    # Any values of that shape will do: `load` puts the stored ones there, and a new model's are random.
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
