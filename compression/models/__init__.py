"""The models by name, and how one is built from a name or built again from its description.

Every model carries `spec`, a dictionary that JSON can hold: `rebuild(spec)` makes the same architecture
without its weights, so that no checkpoint ever needs pickle.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from compression.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Target(Protocol):
    """What a model must know of the task that it is built for: the part of `tasks.Task` that says so."""

    @property
    def name(self) -> str: ...
    @property
    def outputs(self) -> int: ...
    @property
    def labels(self) -> tuple[str, ...]: ...
    @property
    def input_shape(self) -> tuple[int, ...]: ...
    @property
    def takes_images(self) -> bool: ...
    @property
    def tokenizer(self) -> Any: ...


IMAGE_MODELS: dict[str, str] = {
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
TEXT_MODELS: dict[str, str] = {"lstm": "compression.models.lstm:lstm"}
MODELS = IMAGE_MODELS | TEXT_MODELS


def build(name: str, task: Target) -> nn.Module:
    """The model called `name` with the task's outputs: ours untrained, a hub name or folder pretrained.

    Raises UserError for a name that is unknown, that does not suit the task, or that cannot be fetched.
    """
    fitting = IMAGE_MODELS if task.takes_images else TEXT_MODELS
    if name in MODELS and name not in fitting:
        raise UserError(f"The model {name} is not for {task.name}; take {described(fitting)}.")
    if name in fitting or task.takes_images:
        takes = {"input_shape": list(task.input_shape)} if task.takes_images else {"vocabulary": len(task.tokenizer)}
        return _ours(name, {"outputs": task.outputs, **takes, "width": 1.0})
    from compression.models import huggingface

    return huggingface.pretrained(name, task)


def spec_of(model: nn.Module) -> dict[str, Any]:
    """What `rebuild` makes the architecture of `model` from; survives JSON unchanged."""
    return getattr(model, "spec")  # noqa: B009 - mypy takes any other attribute for a tensor


def rebuild(spec: Mapping[str, Any]) -> nn.Module:
    """The untrained architecture that `spec` describes, on the CPU; needs no network.

    Raises UserError where `spec` names no builder of ours.
    """
    if spec["builder"] == "huggingface":
        from compression.models import huggingface

        return huggingface.from_config(spec["config"])
    return _ours(spec["builder"], spec["arguments"])


def example(model: nn.Module, n: int) -> Tensor | dict[str, Tensor]:
    """`n` inputs of the shape that `model` takes, all zeros: for what looks at shapes alone."""
    import torch

    if hasattr(model, "config"):
        from compression.models import huggingface

        return huggingface.example(model.config, n)
    arguments = spec_of(model)["arguments"]
    if "vocabulary" in arguments:
        ids = torch.zeros(n, 8, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return torch.zeros(n, *arguments["input_shape"])


def described(fitting: Mapping[str, str]) -> str:
    """The models that a task can have, as part of a sentence."""
    more = " or any Hugging Face hub name or folder" if fitting is TEXT_MODELS else ""
    return f"{', '.join(fitting)}{more}"


def _ours(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    if name not in MODELS:
        raise UserError(
            f"There is no model {name!r}; the models for images are {described(IMAGE_MODELS)}; "
            f"those for text {described(TEXT_MODELS)}."
        )
    module, function = MODELS[name].split(":")
    model = getattr(importlib.import_module(module), function)(**arguments)
    model.spec = {"builder": name, "arguments": dict(arguments)}
    return model
