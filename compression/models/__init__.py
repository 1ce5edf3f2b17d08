"""The models by name, and how one is built from a name or built again from its description.

Every model carries `spec`, a dictionary that JSON can hold: `rebuild(spec)` makes the same architecture
without its weights, so that no checkpoint ever needs pickle.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from compression.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from compression.tasks.task import Task

MODELS: dict[str, str] = {
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


def build(name: str, task: Task) -> nn.Module:
    """The model called `name` with the task's outputs: ours untrained, a hub name or folder pretrained.

    Raises UserError for a name that is unknown, that does not suit the task, or that cannot be fetched.
    """
    if task.input_shape:
        return _ours(name, {"outputs": task.outputs, "input_shape": list(task.input_shape), "width": 1.0})
    if name in MODELS:
        raise UserError(f"The model {name} takes images; {task.name} needs a hub name or a folder.")
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
    return torch.zeros(n, *spec_of(model)["arguments"]["input_shape"])


def _ours(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    if name not in MODELS:
        raise UserError(
            f"There is no model {name!r}; the models are {', '.join(MODELS)}, "
            "and for a text task any Hugging Face hub name or local folder."
        )
    module, function = MODELS[name].split(":")
    model = getattr(importlib.import_module(module), function)(**arguments)
    model.spec = {"builder": name, "arguments": dict(arguments)}
    return model
