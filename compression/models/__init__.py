"""The models by name; building one from its name, or again from its spec.

Every model carries `spec`, a dictionary that JSON can hold: `rebuild(spec)` makes the same architecture
without its weights, so that no checkpoint ever needs pickle. Installed packages bring more models by entry points of
the group `compression.models`, each named `image.<name>`, `text.<name>` or `language.<name>`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from compression.errors import UserError
from compression.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from compression.nn.inputs import Inputs


class TaskInterface(Protocol):
    """The part of `tasks.Task` that building a model for a task needs."""

    @property
    def name(self) -> str:
        """The task's name."""

    @property
    def outputs(self) -> int:
        """The number of classes; 1 for regression."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of the classes; empty for regression."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """`(channels, height, width)` of images; empty for text."""

    @property
    def takes_images(self) -> bool:
        """Whether the inputs are images; if not, they are token ids."""

    @property
    def predicts_tokens(self) -> bool:
        """Whether each token of a text is predicted from those before it."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of a text task."""


GGUF = "gguf:"  # before the file of a language model in the format of llama.cpp
OWN = "own"  # the builder of a model that comes from somebody's own code
SEPARATE = "separate_attention"  # the entry of a spec that says that `nn.attention` made linear layers of attentions


class OwnSpec(dict[str, Any]):
    """The spec of a model from somebody's own code, with the function that makes such a model."""

    def __init__(self, make: Callable[[], nn.Module], entries: Mapping[str, Any]) -> None:
        super().__init__(entries)
        self.make = make

    def __or__(self, entries: Mapping[str, Any]) -> OwnSpec:  # type: ignore[override]
        return OwnSpec(self.make, {**self, **entries})

    def __deepcopy__(self, memo: Any) -> OwnSpec:
        return OwnSpec(self.make, self)


def with_spec(model: nn.Module, input_shape: Sequence[int], example: Inputs) -> nn.Module:
    """The model with a spec: the one that it has, that of its transformers config, or one as `adopt` gives it.

    Attentions of one that is adopted become linear layers where it answers the prepared batch `example` as before.
    Raises UserError for a model that has an attribute `spec` of another meaning.
    """
    if (spec := getattr(model, "spec", None)) is not None:
        if isinstance(spec, dict) and "builder" in spec:
            return model
        raise UserError(
            f"{type(model).__name__} has an attribute `spec` of its own, under which the lab keeps how a network is "
            "made: give it another name."
        )
    if type(model).__module__.startswith("transformers."):
        from transformers import PreTrainedModel

        from compression.models import huggingface

        # A config makes a classifier; a model with another head is somebody's own, and is adopted.
        if isinstance(model, PreTrainedModel) and huggingface.is_made_by_config(model):
            return huggingface.attach_spec(model, input_shape)
    return _with_linear_attention(adopt(model, model, input_shape), example)


def _with_linear_attention(model: nn.Module, example: Inputs) -> nn.Module:
    from compression.nn.attention import separate_if_equal

    if separate_if_equal(model, example):
        model.spec = spec_of(model) | {SEPARATE: True}  # type: ignore[assignment]
    return model


def adopt(model: nn.Module, like: nn.Module | Callable[[], nn.Module], input_shape: Sequence[int] = ()) -> nn.Module:
    """Give a model of somebody's own code the spec by which it is stored: `like` is such a model, or makes one.

    `input_shape` is that of one input, if the model takes a single tensor.
    """
    entries = {"builder": OWN, "class": type(model).__qualname__, "arguments": {"input_shape": list(input_shape)}}
    model.spec = OwnSpec(factory(like), entries)  # type: ignore[assignment]
    return model


def factory(like: nn.Module | Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The function that makes a model of the architecture of `like`, or `like` itself if it is such a function."""
    import copy

    from torch import nn

    if not isinstance(like, nn.Module):
        return like
    # Now, since `like` may be the very model that compression is about to change.
    pristine = copy.deepcopy(like).cpu()
    return lambda: reset_parameters(copy.deepcopy(pristine))


def reset_parameters(model: nn.Module) -> nn.Module:
    """Give every layer that can initialise itself new random weights, in place."""
    for module in model.modules():
        if callable(reset := getattr(module, "reset_parameters", None)):
            reset()
    return model


# Name -> "module:function"; a module is imported, and torch with it, when one of its models is built.
_IMAGE_MODELS = {
    "resnet8": "compression.models.resnet:resnet8",
    "resnet18": "compression.models.resnet:resnet18",
    "resnet20": "compression.models.resnet:resnet20",
    "resnet32": "compression.models.resnet:resnet32",
    "resnet56": "compression.models.resnet:resnet56",
    "cnn5": "compression.models.small:cnn5",
    "digits_cnn": "compression.models.small:digits_cnn",
    "digits_cnn_small": "compression.models.small:digits_cnn_small",
    "mlp": "compression.models.small:mlp",
    "alexnet": "compression.models.torchvision:alexnet",
    "vgg16": "compression.models.torchvision:vgg16",
    "resnet50": "compression.models.torchvision:resnet50",
}
TRAINING_WORDS = "words of the training data"  # the name of a tokenizer that was made of them
_TEXT_MODELS = {"lstm": "compression.models.lstm:lstm"}
_LANGUAGE_MODELS = {
    "lstm_lm": "compression.models.language:lstm_lm",
    "decoder": "compression.models.language:decoder",
}
IMAGE_MODELS = Registry("model", _IMAGE_MODELS, "compression.models", ["image"])
TEXT_MODELS = Registry("model", _TEXT_MODELS, "compression.models", ["text"])
LANGUAGE_MODELS = Registry("model", _LANGUAGE_MODELS, "compression.models", ["language"])
MODELS = Registry(
    "model",
    _IMAGE_MODELS | _TEXT_MODELS | _LANGUAGE_MODELS,
    "compression.models",
    ["image", "text", "language"],
)


def build(name: str, task: TaskInterface) -> nn.Module:
    """Build the model `name` with the task's number of outputs.

    The lab's own models get new random weights; a Hugging Face hub name or folder gives pretrained ones. Raises
    UserError for a name that is unknown, does not suit the task, or cannot be downloaded.
    """
    if name.startswith(GGUF) and not task.predicts_tokens:
        raise UserError(f"{name} predicts the next token, and {task.name} is another task; take language/… for it.")
    suitable = IMAGE_MODELS if task.takes_images else LANGUAGE_MODELS if task.predicts_tokens else TEXT_MODELS
    if name in MODELS and name not in suitable:
        raise UserError(f"The model {name} is not for {task.name}; take {_choices(suitable)}.")
    if task.takes_images and (name in suitable or not is_huggingface(name)):
        return _built(name, {"outputs": task.outputs, "input_shape": list(task.input_shape), "width": 1.0})
    if task.predicts_tokens and name in suitable:
        return _built(name, {"tokens": task.outputs, "width": 1.0})
    if not task.takes_images and name in suitable:
        assert task.tokenizer is not None  # every text task has one
        return _built(name, {"outputs": task.outputs, "vocabulary": len(task.tokenizer), "width": 1.0})
    from compression.models import huggingface

    if task.tokenizer is not None and task.tokenizer.name_or_path == TRAINING_WORDS:
        raise UserError(
            f"{name} reads the tokens of its own tokenizer, and the texts of {task.name} are encoded for a model of "
            f"the lab: give model={name}, and the lab's model as the student."
        )
    if name.startswith(GGUF):
        from compression.models import gguf

        return gguf.load(name, task)
    load = huggingface.load_language_model if task.predicts_tokens else huggingface.load_pretrained
    return load(name, task)


def spec_of(model: nn.Module) -> dict[str, Any]:
    """Return the spec that `rebuild` makes the architecture of `model` from; survives JSON unchanged."""
    spec: dict[str, Any] = getattr(model, "spec")  # noqa: B009 - mypy takes any other attribute for a tensor
    return spec


def rebuild(spec: Mapping[str, Any]) -> nn.Module:
    """Build the architecture that `spec` describes, with new random weights, on the CPU; needs no network.

    Raises UserError if `spec` names an unknown builder.
    """
    if spec["builder"] == "huggingface":
        from compression.models import huggingface

        shape = spec.get("arguments", {}).get("input_shape", ())
        return _with_modules(huggingface.build_from_config(spec["config"], shape, spec.get("head", "")), spec)
    model = _make_own(spec) if spec["builder"] == OWN else _build_own(spec["builder"], spec["arguments"])
    return _with_modules(model, spec)


def transformers_config(model: nn.Module) -> Any:
    """The config of a model of transformers, which may be changed; None for other models, whatever they call config."""
    config = getattr(model, "config", None)
    return config if hasattr(config, "save_pretrained") else None


def zero_inputs(model: nn.Module, n: int) -> Tensor | dict[str, Tensor]:
    """Return `n` inputs of the shape that `model` takes, all zeros: images, or token ids `(n, 8)` with their mask.

    For tracing, where only shapes matter.
    """
    import torch

    arguments = spec_of(model).get("arguments", {})
    if shape := arguments.get("input_shape"):
        return torch.zeros(n, *shape)
    if "tokens" in arguments or spec_of(model).get("head"):
        return {"input_ids": torch.zeros(n, 8, dtype=torch.int64)}
    if (config := transformers_config(model)) is not None:
        from compression.models import huggingface

        return huggingface.zero_inputs(config, n)
    if "vocabulary" in arguments:
        ids = torch.zeros(n, 8, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.zeros(n)


def _make_own(spec: Mapping[str, Any]) -> nn.Module:
    if not isinstance(spec, OwnSpec):
        raise UserError(
            f"This model is a {spec['class']} of somebody's own code, which is not stored: give a function that makes "
            "one, compression.load(FOLDER, like=make_model), or use the folder's model.onnx or model.pt2."
        )
    return adopt(spec.make(), spec.make, spec["arguments"]["input_shape"])


def _with_modules(model: nn.Module, spec: Mapping[str, Any]) -> nn.Module:
    """Replace attentions and functions of the model by modules, where that was done before the model was stored."""
    import torch

    from compression.nn.attention import separate_attention
    from compression.nn.modular import IN_TRAINING, MODULAR, trace_modular

    if spec.get(SEPARATE):
        separate_attention(model)
        model.spec = spec_of(model) | {SEPARATE: True}  # type: ignore[assignment]
    if (image_shape := spec.get(MODULAR)) is None:
        return model
    images = torch.zeros(2, *image_shape, device=next(model.parameters()).device)
    return trace_modular(model, images, spec.get(IN_TRAINING, True))


def is_huggingface(name: str) -> bool:
    """Whether a name that is none of the lab's is a folder, or one of the hub: OWNER/NAME."""
    return not name.startswith(GGUF) and bool(name) and ("/" in name or Path(name).is_dir())


def _choices(suitable: Mapping[str, str]) -> str:
    """List the models that a task can have, as part of a sentence."""
    more = "" if suitable is IMAGE_MODELS else " or any Hugging Face hub name or folder"
    more += ", or gguf:FILE" if suitable is LANGUAGE_MODELS else ""
    return f"{', '.join(suitable)}{more}"


def _built(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    model = _build_own(name, arguments)
    training = model.training
    return _with_linear_attention(model, zero_inputs(model, 2)).train(training)


def _build_own(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """Build one of the lab's own models and attach its spec. Raises UserError for an unknown name."""
    if name not in MODELS:
        raise UserError(
            f"There is no model {name!r}; the models for images are {_choices(IMAGE_MODELS)}, or OWNER/NAME on the "
            f"Hugging Face hub, or a folder; those for text {_choices(TEXT_MODELS)}."
        )
    model: nn.Module = MODELS.load(name)(**arguments)
    if not hasattr(model, "spec"):  # one of transformers has that of its config
        model.spec = {"builder": name, "arguments": dict(arguments)}  # type: ignore[assignment]
    return model
