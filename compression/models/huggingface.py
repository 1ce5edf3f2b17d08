"""Classifiers of text or images and language models in the Hugging Face format: from the hub, a mirror, or a folder."""

from __future__ import annotations

import copy
import inspect
import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import transformers
from torch import Tensor, nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_MASKED_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)

from compression.errors import UserError, first_line
from compression.files import require_regular_files
from compression.models import GGUF, classes, hub, skeleton
from compression.models.conv1d import linearize
from compression.models.padding import position_tables, share_padding
from compression.nn.inputs import forward

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from transformers import PreTrainedModel

    from compression.models import TaskInterface

Loaded = TypeVar("Loaded")

# Attention maps, head pruning and counting MACs all need attention as plain torch operators, not as a fused kernel.
ATTENTION = "eager"
# The share of a model's embeddings that its tokenizer has words for, at least: embeddings are padded by up to 2% (Phi).
# For a folder without a tokenizer, transformers makes one of a handful of special tokens.
MIN_VOCABULARY = 0.9
NEXT_TOKEN = "next_token"  # the head, in a spec, of a model that predicts each token from those before it
NO_DECODER = "does not predict the next token; choose a decoder such as GPT-2 or Llama"


@dataclass(frozen=True)
class Kind:
    """Models that transformers makes for one purpose."""

    models: Any  # class of a config -> class of the model that is made of it
    what: str
    refusal: str  # what is said of a model that has none of these configs


TEXT = Kind(
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "text model",
    "cannot classify text; choose an encoder such as BERT",
)
IMAGES = Kind(
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    "model for images",
    "cannot classify images; choose one such as ViT or ResNet",
)
LANGUAGE = Kind(MODEL_FOR_CAUSAL_LM_MAPPING, "language model", NO_DECODER)


def load_pretrained(name: str, task: TaskInterface) -> nn.Module:
    """Load the pretrained model `name` in float32, with a new classifier if it has none.

    Its inputs are images, or those of `input_names`, each `(batch, length)`; its output holds `logits`
    `(batch, outputs)`, in the order of the task's labels whatever the order in the model's `id2label`. Raises UserError
    if the model cannot be loaded, does not take the task's images, reads another vocabulary than the task's texts are
    written in, or is a classifier of other classes.
    """
    config = _load_config(name, IMAGES if task.takes_images else TEXT)
    _check_outputs(name, config, task)
    if not task.takes_images:
        _check_vocabulary(name, config, task)
        if task.tokenizer is not None:
            share_padding(name, config, task.tokenizer)
    names = _class_names(name, config)
    config.num_labels = task.outputs
    config.problem_type = "regression" if task.outputs == 1 else "single_label_classification"
    if task.labels:
        config.id2label = dict(enumerate(task.labels))
        config.label2id = {label: i for i, label in enumerate(task.labels)}
    if Path(name).is_dir():
        _require_affordable(name, config)
    load: Callable[..., tuple[PreTrainedModel, dict[str, Any]]] = _auto_class(config).from_pretrained
    options: dict[str, Any] = {"config": config, "attn_implementation": ATTENTION, "dtype": torch.float32}
    model, report = _load(name, load, output_loading_info=True, **options)
    inputs = _example_images(name, model, task) if task.takes_images else zero_inputs(config, 2)
    # No weight of the classifier is missing: it was trained, and its outputs have an order.
    if task.labels and all(key.startswith(f"{model.base_model_prefix}.") for key in report["missing_keys"]):
        classes.match_outputs(model, names, task, name, inputs)
    return attach_spec(model, task.input_shape)


def load_language_model(name: str, task: TaskInterface) -> nn.Module:
    """Load the pretrained decoder `name` in float32.

    Its input is `input_ids` `(batch, length)`; its output holds `logits` `(batch, length, tokens)`. Raises UserError if
    it cannot be loaded, is no decoder, or reads another vocabulary than the task's text is written in.
    """
    config = _load_language_config(name)
    _check_vocabulary(name, config, task)
    config.use_cache = False  # of keys and values: whole windows are read at once
    if Path(name).is_dir():
        _require_affordable(name, config, AutoModelForCausalLM)
    load: Callable[..., PreTrainedModel] = AutoModelForCausalLM.from_pretrained
    model = _load(name, load, "language model", config=config, attn_implementation=ATTENTION, dtype=torch.float32)
    return attach_spec(model, head=NEXT_TOKEN)


def load_language_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, int, int | None]:
    """Load the tokenizer of the decoder `name`; also how many tokens it tells apart, and its positions, if it has any.

    Raises UserError if it cannot be loaded, or is not the model's own.
    """
    if name.startswith(GGUF):
        from compression.models import gguf  # which builds its models here

        own, described = gguf.load_tokenizer(name)
        return own, described["vocab_size"], described["max_position_embeddings"]
    config = _load_language_config(name)
    tokenizer = _own_tokenizer(name, config)
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return tokenizer, _vocabulary_size(config), positions


def _load_language_config(name: str) -> PretrainedConfig:
    """Load the config of a decoder. Raises UserError for one of an encoder, which sees the token it should predict."""
    config = _load_config(name, LANGUAGE)
    heads = config.architectures or []
    is_decoder = any(head.endswith(("ForCausalLM", "LMHeadModel")) for head in heads)
    if not is_decoder and (heads or type(config) in MODEL_FOR_MASKED_LM_MAPPING):
        raise UserError(f"{name} ({heads[0] if heads else config.model_type}) {NO_DECODER}.")
    return config


def build_from_config(config: Mapping[str, Any], input_shape: Sequence[int] = (), head: str = "") -> nn.Module:
    """Build a model with new random weights from the config in its spec; needs no network.

    `input_shape` is `(channels, height, width)` of the images of one that takes images; `head` is NEXT_TOKEN for a
    language model, empty for a classifier.
    """
    made = AutoConfig.for_model(**config)
    auto = AutoModelForCausalLM if head == NEXT_TOKEN else _auto_class(made)
    build: Callable[..., PreTrainedModel] = auto.from_config
    return attach_spec(build(made, attn_implementation=ATTENTION, trust_remote_code=False), input_shape, head)


def is_made_by_config(model: PreTrainedModel) -> bool:
    """Whether `model` is what `build_from_config` makes of its config: a model with another head is not."""
    config = model.config
    known = type(config) in TEXT.models or type(config) in IMAGES.models
    return known and type(build_from_config(config.to_dict())) is type(model)


def _auto_class(config: PretrainedConfig) -> Any:
    """Return the class of transformers that makes the classifier of a config: of text where it could be either."""
    is_image = type(config) in IMAGES.models and type(config) not in TEXT.models
    return AutoModelForImageClassification if is_image else AutoModelForSequenceClassification


def _example_images(name: str, model: nn.Module, task: TaskInterface) -> Tensor:
    """Return two images of noise as the task has them. Raises UserError if the model does not take such images."""
    images = torch.randn(2, *task.input_shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            forward(model.eval(), images)
    except (RuntimeError, TypeError, ValueError, IndexError) as error:
        shape = "x".join(map(str, task.input_shape))
        raise UserError(f"{name} does not take the images of {task.name}, {shape} ({first_line(error)}).") from error
    return images


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model `name`, set to pad on the right.

    Raises UserError if it cannot be loaded, has no padding token, or is not the model's own.
    """
    tokenizer = _own_tokenizer(name, _load_config(name))
    if tokenizer.pad_token is None:
        raise UserError(f"The tokenizer of {name} has no padding token; choose an encoder such as BERT.")
    tokenizer.padding_side = "right"
    return tokenizer


def _own_tokenizer(name: str, config: PretrainedConfig) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the model `name`. Raises UserError where the one that is found is not the model's own."""
    load: Callable[..., PreTrainedTokenizerBase] = AutoTokenizer.from_pretrained
    tokenizer = _load(name, load)
    if not _fills_embeddings(len(tokenizer), config):
        raise UserError(
            f"{name} has no tokenizer of its own: the one that is found knows {len(tokenizer)} words, and the model "
            f"{_vocabulary_size(config)}; put the tokenizer's files (tokenizer.json, …) next to its config."
        )
    return tokenizer


def read_vocabulary(name: str) -> dict[str, int]:
    """Return the tokens of the tokenizer of `name` and their ids. Raises UserError if it cannot be loaded."""
    load: Callable[..., PreTrainedTokenizerBase] = AutoTokenizer.from_pretrained
    return _load(name, load).get_vocab()


def input_names(name: str) -> set[str]:
    """Return the names of the inputs of the model `name` that a tokenizer makes.

    Raises UserError if its config cannot be loaded.
    """
    return set(_input_names(_load_config(name), token_types=2))


def max_length(name: str) -> int | None:
    """Return how many tokens the model `name` has positions for; None if it counts none.

    Raises UserError if its config cannot be loaded.
    """
    config = _load_config(name)
    limits = [  # RoBERTa and its like count positions from the row after that of padding
        table.num_embeddings - (0 if table.padding_idx is None else table.padding_idx + 1)
        for table in position_tables(config)
    ]
    stated = getattr(config, "max_position_embeddings", None) or -1  # -1: any length, for XLNet
    return min([*limits, *([stated] if stated > 0 else [])], default=None)


def zero_inputs(config: Any, n: int, length: int = 8) -> dict[str, Tensor]:
    """Return `n` texts of `length` times token 0, as tensors `(n, length)`, for a model with `config`."""
    fill = {"attention_mask": 1}
    return {name: torch.full((n, length), fill.get(name, 0)) for name in _input_names(config, token_types=0)}


def _input_names(config: PretrainedConfig, token_types: int) -> list[str]:
    """Return which of a tokenizer's outputs a model takes; `token_types` is their number if `config` states none."""
    names = ["input_ids", "token_type_ids", "attention_mask"]
    if getattr(config, "type_vocab_size", token_types) < 2:
        names.remove("token_type_ids")
    if type(config) not in TEXT.models:
        return names
    model_class: Any = TEXT.models[type(config)]
    taken = inspect.signature(model_class.forward).parameters
    return [name for name in names if name in taken]


def _load_config(name: str, kind: Kind = TEXT) -> PretrainedConfig:
    """Load the config of the model `name`. Raises UserError if it is none of a model of this kind."""
    config = _load(name, _read_config, kind.what)
    if type(config) not in kind.models:
        raise UserError(f"{name} ({config.model_type}) {kind.refusal}.")
    return config


def _read_config(name: str, **options: Any) -> PretrainedConfig:
    """Read a config as `AutoConfig` does. Raises ValueError for one that no memory could hold."""
    said, _ = PretrainedConfig.get_config_dict(name, **options)
    skeleton.require_countable(said)
    config: PretrainedConfig = AutoConfig.from_pretrained(name, **options)
    return config


def _require_affordable(folder: str, config: PretrainedConfig, auto: Any = None) -> None:
    """Raise UserError if a folder's files are too small for the model that its config describes."""
    stored = sum(path.stat().st_size for path in Path(folder).iterdir() if path.is_file())
    try:
        with skeleton.without_weights(stored // 1000):
            build: Callable[..., PreTrainedModel] = (auto or _auto_class(config)).from_config
            model = build(copy.deepcopy(config), attn_implementation=ATTENTION, trust_remote_code=False)
        skeleton.require_affordable(skeleton.nbytes(model), stored)
    except Exception as error:  # as in `_load`
        raise UserError(_folder_message(folder, error)) from error


def _check_outputs(name: str, config: PretrainedConfig, task: TaskInterface) -> None:
    """Raise UserError if the model is a classifier with another number of outputs than the task."""
    # In a bare encoder's config, num_labels is 2 by default and means nothing.
    heads = ("ForSequenceClassification", "ForImageClassification")
    is_classifier = any(a.endswith(heads) for a in config.architectures or ())
    if is_classifier and config.num_labels != task.outputs:
        raise UserError(f"{name} has {config.num_labels} outputs; {task.name} needs {task.outputs}.")


def _vocabulary_size(config: PretrainedConfig) -> int:
    """Return how many tokens have an embedding; 0 for a model without a vocabulary, which reads characters."""
    return getattr(config.get_text_config(), "vocab_size", None) or 0


def _fills_embeddings(words: int, config: PretrainedConfig) -> bool:
    """Whether a tokenizer of so many words may be that of a model with `config`."""
    return words >= MIN_VOCABULARY * _vocabulary_size(config)


def _check_vocabulary(name: str, config: PretrainedConfig, task: TaskInterface) -> None:
    """Raise UserError if the task's texts are written in token ids that mean other words to the model."""
    if task.tokenizer is None:
        return
    own, words = read_vocabulary(name), task.tokenizer.get_vocab()
    # Where the tokenizer that is found for `name` cannot be its own, the task's has to fill the embeddings at least.
    if own != words if _fills_embeddings(len(own), config) else not _fills_embeddings(len(words), config):
        raise other_vocabulary(name, task)


def other_vocabulary(name: str, task: TaskInterface) -> UserError:
    """Return the refusal of the model `name`, which takes the token ids of the task's texts for other words."""
    assert task.tokenizer is not None  # they are the ids of one
    return UserError(
        f"{name} reads another vocabulary than {task.tokenizer.name_or_path}, whose tokenizer encodes the texts of "
        f"{task.name}; take models of one vocabulary, or give model={name}."
    )


def _class_names(name: str, config: PretrainedConfig) -> list[str]:
    """Return the names of a classifier's outputs. Raises UserError if `id2label` and `label2id` contradict."""
    named: dict[Any, Any] = config.id2label or {}
    names = [str(named.get(i, f"LABEL_{i}")) for i in range(len(named))]
    places = {str(label): int(i) for label, i in (config.label2id or {}).items()}
    if sorted(places.values()) != list(range(len(names))) or classes.class_numbers(list(places)) is not None:
        return names
    inverse = sorted(places, key=places.__getitem__)
    if inverse != names and classes.class_numbers(names) is None:
        raise UserError(
            f"The config of {name} contradicts itself: id2label names the classes {', '.join(names)}, and label2id "
            f"{', '.join(inverse)}; correct its config.json."
        )
    return inverse


def _load(name: str, load: Callable[..., Loaded], what: str = "text model", **arguments: Any) -> Loaded:
    """Return `load(name)`, from local files only if `name` is a folder or the hub cannot be reached.

    No code that comes with a model is ever run, and nobody is asked whether it may be. Raises UserError, with `what` it
    is, if there is none, or none that can be used.
    """
    is_folder = Path(name).is_dir()
    transformers.logging.set_verbosity_error()  # type: ignore[no-untyped-call] # no page of text on a new classifier
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        if is_folder:
            require_regular_files(Path(name))
        is_local = is_folder or not hub.is_reachable()
        return load(name, local_files_only=is_local, trust_remote_code=False, **arguments)
    except Exception as error:  # transformers reads a stranger's files without checking them: anything may come of it
        raise UserError(_folder_message(name, error) if is_folder else _not_found_message(name, what, error)) from error


def _folder_message(folder: str, error: Exception) -> str:
    """Say why a folder's files cannot be used."""
    # torch's own message about a refused pickle advises to run it, and transformers' one about code does.
    if isinstance(error, UnpicklingError):
        reason = "its weights are a pickle of more than tensors"
    elif "trust_remote_code" in str(error):
        reason = "it takes code that comes with it, which is never run here; take a model that transformers knows."
    else:
        reason = first_line(error)
    return f"The folder {folder} holds no usable Hugging Face model with its tokenizer: {reason}"


def _not_found_message(name: str, what: str, error: Exception) -> str:
    """Say where the model was looked for, and which models there are."""
    from compression.models import IMAGE_MODELS, TEXT_MODELS

    return (
        f"There is no {what} {name!r}: it is no folder and not in the hub's cache here, and "
        f"{hub.failure_reason(error)}, or give a local folder; of the lab's own, {', '.join(TEXT_MODELS)} is for text, "
        f"and {', '.join(IMAGE_MODELS)} are for images."
    )


def attach_spec(model: PreTrainedModel, input_shape: Sequence[int] = (), head: str = "") -> nn.Module:
    """Make its layers those that the lab knows, set the model's `spec`, and return it.

    `input_shape` is `(channels, height, width)` of images, empty for text; `head` is as for `build_from_config`.
    """
    linearize(model)
    # Through JSON, so that the spec equals what is read back from a file (JSON's keys are strings).
    config = json.loads(model.config.to_json_string(use_diff=False))
    del config["_name_or_path"]  # a folder on this machine, which means nothing on another
    shape = {"arguments": {"input_shape": list(input_shape)}} if input_shape else {}
    heads = {"head": head} if head else {}
    model.spec = {"builder": "huggingface", "config": config, **shape, **heads}  # type: ignore[assignment]
    return model
