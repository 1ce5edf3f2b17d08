"""Text models in the Hugging Face format: from the hub, a mirror, the hub's local cache, or a folder."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

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
    from collections.abc import Callable, Mapping

    from transformers import PreTrainedModel

    from compression.models import TaskInterface

Loaded = TypeVar("Loaded")

# Attention maps, head pruning and counting MACs all need attention as plain torch operators, not as a fused kernel.
ATTENTION = "eager"


def load_pretrained(name: str, task: TaskInterface) -> nn.Module:
    """Load the pretrained model `name` in float32, with a new classifier if it has none.

    Its inputs are `input_ids`, `attention_mask` and possibly `token_type_ids`, each `(batch, length)`; its output
    holds `logits` `(batch, outputs)`. Raises UserError if the model cannot be loaded, or is a classifier with another
    number of outputs than the task.
    """
    config = _load_config(name)
    _check_outputs(name, config, task)
    config.num_labels = task.outputs
    config.problem_type = "regression" if task.outputs == 1 else "single_label_classification"
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: i for i, label in enumerate(task.labels)}
    load: Callable[..., PreTrainedModel] = AutoModelForSequenceClassification.from_pretrained
    return _attach_spec(_load(name, load, config=config, attn_implementation=ATTENTION, dtype=torch.float32))


def build_from_config(config: Mapping[str, Any]) -> nn.Module:
    """Build a model with new random weights from the config in its spec; needs no network."""
    build: Callable[..., PreTrainedModel] = AutoModelForSequenceClassification.from_config
    return _attach_spec(build(AutoConfig.for_model(**config), attn_implementation=ATTENTION))


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model `name`, set to pad on the right.

    Raises UserError if it cannot be loaded, or has no padding token.
    """
    load: Callable[..., PreTrainedTokenizerBase] = AutoTokenizer.from_pretrained
    tokenizer = _load(name, load)
    if tokenizer.pad_token is None:
        raise UserError(f"The tokenizer of {name} has no padding token; choose an encoder such as BERT.")
    tokenizer.padding_side = "right"
    return tokenizer


def input_names(name: str) -> set[str]:
    """Return the names of the inputs of the model `name`: its tokenizer may make more than it takes.

    Raises UserError if its config cannot be loaded.
    """
    model_class: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(_load_config(name))]  # typed as a tuple
    return set(inspect.signature(model_class.forward).parameters)


def zero_inputs(config: Any, n: int, length: int = 8) -> dict[str, Tensor]:
    """Return `n` texts of `length` times token 0, as tensors `(n, length)`, for a model with `config`."""
    names = ["input_ids", *(["token_type_ids"] if getattr(config, "type_vocab_size", 0) > 1 else [])]
    ids = {name: torch.zeros(n, length, dtype=torch.int64) for name in names}
    return ids | {"attention_mask": torch.ones(n, length, dtype=torch.int64)}


def _load_config(name: str) -> PretrainedConfig:
    """Load the config of the model `name`. Raises UserError if it has no form that classifies text."""
    load: Callable[..., PretrainedConfig] = AutoConfig.from_pretrained
    config = _load(name, load)
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise UserError(f"{name} ({config.model_type}) cannot classify text; choose an encoder such as BERT.")
    return config


def _check_outputs(name: str, config: PretrainedConfig, task: TaskInterface) -> None:
    """Raise UserError if the model is a classifier with another number of outputs than the task."""
    # In a bare encoder's config, num_labels is 2 by default and means nothing.
    is_classifier = any(a.endswith("ForSequenceClassification") for a in config.architectures or ())
    if is_classifier and config.num_labels != task.outputs:
        raise UserError(f"{name} has {config.num_labels} outputs; {task.name} needs {task.outputs}.")


def _load(name: str, load: Callable[..., Loaded], **arguments: Any) -> Loaded:
    """Return `load(name)`, from local files only if `name` is a folder or the hub cannot be reached."""
    is_folder = Path(name).is_dir()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call] # no page of text on a new classifier
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        return load(name, local_files_only=is_folder or not hub.is_reachable(), **arguments)
    except (OSError, ValueError, RuntimeError, KeyError, SafetensorError, UnpicklingError) as error:
        raise UserError(_folder_message(name, error) if is_folder else _not_found_message(name, error)) from error


def _folder_message(folder: str, error: Exception) -> str:
    """Say why a folder's files cannot be used."""
    # torch's own message about a refused pickle advises to run it.
    is_pickle = isinstance(error, UnpicklingError)
    reason = "its weights are a pickle of more than tensors" if is_pickle else first_line(error)
    return f"The folder {folder} holds no usable Hugging Face model with its tokenizer: {reason}"


def _not_found_message(name: str, error: Exception) -> str:
    """Say where the model was looked for, and which models there are."""
    from compression.models import IMAGE_MODELS, TEXT_MODELS

    return (
        f"There is no text model {name!r}: it is no folder and not in the hub's cache here, and "
        f"{hub.failure_reason(error)}, or give a local folder; of the lab's own, {', '.join(TEXT_MODELS)} is for text, "
        f"and {', '.join(IMAGE_MODELS)} are for images."
    )


def _attach_spec(model: PreTrainedModel) -> nn.Module:
    """Set the model's `spec`, and return it."""
    # Through JSON, so that the spec equals what is read back from a file (JSON's keys are strings).
    config = json.loads(model.config.to_json_string(use_diff=False))
    del config["_name_or_path"]  # a folder on this machine, which means nothing on another
    model.spec = {"builder": "huggingface", "config": config}  # type: ignore[assignment]
    return model
