"""Text models of the Hugging Face format: from the hub, a mirror, the hub's cache here, or a folder."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from compression.errors import UserError, first_line
from compression.models import hub

if TYPE_CHECKING:
    from compression.models import Target

# Attention maps, head pruning and counting multiplications all need attention spelled out in torch operators.
_ATTENTION = "eager"


def pretrained(name: str, task: Target) -> nn.Module:
    """The pretrained model `name` in float32, with the task's outputs: a new classifier if it had none.

    It takes `input_ids`, `attention_mask` and perhaps `token_type_ids`, each `(batch, length)`; its output
    holds `logits` `(batch, outputs)`. Raises UserError where the model cannot be had or classifies into
    another number of classes.
    """
    config = _config(name)
    _check_outputs(name, config, task)
    config.num_labels = task.outputs
    config.problem_type = "regression" if task.outputs == 1 else "single_label_classification"
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: i for i, label in enumerate(task.labels)}
    load = AutoModelForSequenceClassification.from_pretrained
    return _described(_fetch(name, load, config=config, attn_implementation=_ATTENTION, dtype=torch.float32))


def from_config(config: Mapping[str, Any]) -> nn.Module:
    """The untrained model that the config in the spec of a `pretrained` one describes; needs no network."""
    known = AutoConfig.for_model(**config)
    return _described(AutoModelForSequenceClassification.from_config(known, attn_implementation=_ATTENTION))


def tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of the model `name`, padding on the right.

    Raises UserError where it cannot be had, or cannot pad.
    """
    found = _fetch(name, AutoTokenizer.from_pretrained)
    if found.pad_token is None:
        raise UserError(f"The tokenizer of {name} has no padding token; choose an encoder such as BERT.")
    found.padding_side = "right"
    return found


def input_names(name: str) -> set[str]:
    """The tensors that the model `name` takes: a tokenizer may make more than its model understands."""
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(_config(name))]
    return set(inspect.signature(kind.forward).parameters)


def example(config: Any, n: int, length: int = 8) -> dict[str, Tensor]:
    """`n` texts of `length` times the first word."""
    kinds = ["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else []
    ids = {name: torch.zeros(n, length, dtype=torch.int64) for name in ("input_ids", *kinds)}
    return ids | {"attention_mask": torch.ones(n, length, dtype=torch.int64)}


def _config(name: str) -> PretrainedConfig:
    config = _fetch(name, AutoConfig.from_pretrained)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{name} ({config.model_type}) cannot classify text; choose an encoder such as BERT.")
    return config


def _check_outputs(name: str, config: PretrainedConfig, task: Target) -> None:
    # A bare encoder says 2 whatever it is for; only a classifier means it.
    classifies = any(a.endswith("ForSequenceClassification") for a in config.architectures or ())
    if classifies and config.num_labels != task.outputs:
        raise UserError(f"{name} has {config.num_labels} outputs; {task.name} needs {task.outputs}.")


def _fetch(name: str, load: Callable[..., Any], **arguments: Any) -> Any:
    """`load(name)`, from this disk alone where `name` is a folder or the hub cannot be reached."""
    here = Path(name).is_dir()
    transformers.logging.set_verbosity_error()  # a new classifier is announced in a page of text
    transformers.logging.disable_progress_bar()
    try:
        return load(name, local_files_only=here or not hub.reachable(), **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise UserError(_unusable(name, error) if here else _missing(name, error)) from error


def _unusable(folder: str, error: Exception) -> str:
    # torch's own words on a refused pickle are the advice to run it.
    refused = isinstance(error, UnpicklingError)
    reason = "its weights are a pickle of more than tensors" if refused else first_line(error)
    return f"The folder {folder} holds no usable Hugging Face model with its tokenizer: {reason}"


def _missing(name: str, error: Exception) -> str:
    from compression.models import IMAGE_MODELS, TEXT_MODELS

    return (
        f"There is no text model {name!r}: it is no folder and not in the hub's cache here, and "
        f"{hub.trouble(error)}, or give a local folder; of the lab's own, {', '.join(TEXT_MODELS)} is for text, "
        f"and {', '.join(IMAGE_MODELS)} are for images."
    )


def _described(model: Any) -> nn.Module:
    # Through JSON, so that the spec equals what is read back from a file (JSON's keys are texts).
    config = json.loads(model.config.to_json_string(use_diff=False))
    del config["_name_or_path"]  # the folder on this machine: nobody else's business
    model.spec = {"builder": "huggingface", "config": config}
    return model
