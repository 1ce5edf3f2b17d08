"""Load a model by its name, URI or folder, and check that it fits the task."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression import models, tracking
from compression.errors import UserError, first_line
from compression.files import read_text
from compression.models import classes, huggingface_images, storage
from compression.nn.inputs import forward

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from compression.nn.inputs import Inputs
    from compression.tasks.task import Split, Task


# The root mean square of what padding changes of the logits, over that of the logits: more than the little that models
# with convolutions over tokens (ConvBERT) read of it.
MAX_CHANGE_BY_PADDING = 0.1
MAX_TOKENIZER_BYTES = 2**28  # of a tokenizer.json; Gemma's, of 262,144 tokens, has 33 MB


def open_model(spec: str, task: Task) -> nn.Module:
    """Load the model `spec`, on the CPU, in eval mode; UserError if it does not fit the task.

    `runs:/…`, `models:/…` and folders of the lab hold trained models; a hub name or a Hugging Face folder is taken
    with the weights it has; a name of the lab is a model yet to train.
    """
    with stored_folder(spec) as folder:
        if folder is None:
            if task.takes_images and models.is_huggingface(spec):
                _require_same_normalization(huggingface_images.normalization(spec), task, spec)
            return require_fit(models.build(spec, task), task, spec)
        model = require_fit(storage.load(folder), task, spec)
        _require_same_tokens(folder, task, spec)
        _match_metadata(model, folder, task, spec)
        return model


def stored_model(spec: str) -> nn.Module | None:
    """Load a model that the lab stored at `runs:/…`, `models:/…` or in a folder; None if `spec` is neither."""
    with stored_folder(spec) as folder:
        return None if folder is None else storage.load(folder)


@contextlib.contextmanager
def stored_folder(spec: str) -> Iterator[Path | None]:
    """The folder of a model that the lab stored, for as long as the block runs; None if `spec` is no such model."""
    if spec.startswith(("runs:/", "models:/")):
        with tempfile.TemporaryDirectory() as scratch:
            yield tracking.download(spec, Path(scratch))
    else:
        yield Path(spec) if _is_stored(spec) else None


def built_name(spec: str) -> str:
    """The name of the architecture stored at a URI or in a folder of the lab; any other `spec` is a name itself."""
    if spec.startswith(("runs:/", "models:/")):
        whole = spec if spec.count("/") > 1 else f"{spec}/model"
        with tempfile.TemporaryDirectory() as scratch:
            # The description alone, not the weights.
            structure = tracking.download(f"{whole}/{storage.STRUCTURE_FILE}", Path(scratch))
            return str(storage.read_metadata(structure.parent).get("model") or "")
    return str(storage.read_metadata(Path(spec)).get("model") or "") if _is_stored(spec) else spec


def _is_stored(spec: str) -> bool:
    """Whether `spec` is the folder of a model that the lab stored."""
    # Not Path.exists, which raises for a text that is too long for a path, or holds a NUL.
    return os.path.exists(os.path.join(spec, storage.STRUCTURE_FILE))


def _require_same_tokens(folder: Path, task: Task, spec: str) -> None:
    """Raise UserError if the stored model reads other tokens than the task's: its ids would mean other words."""
    file = folder / "tokenizer.json"
    if task.tokenizer is None or not file.exists():
        return
    known = task.tokenizer.get_vocab()
    if any(known.get(token) != i for token, i in _stored_vocabulary(file).items()):
        raise UserError(
            f"{spec} was trained on texts of another vocabulary than those of {task.name}, which the tokenizer of "
            f"{task.tokenizer.name_or_path} encodes; take a model trained on {task.name}, or name the one whose "
            "tokenizer it used as model=NAME."
        )


def _stored_vocabulary(file: Path) -> dict[str, int]:
    """The tokens of a tokenizer.json and their ids; UserError if it is damaged."""
    try:
        stored = json.loads(read_text(file, MAX_TOKENIZER_BYTES))["model"].get("vocab", {})
        # WordPiece and BPE store {token: id}, Unigram [[token, score], …] in the order of the ids.
        return stored if isinstance(stored, dict) else {token: i for i, (token, *_) in enumerate(stored)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UserError(f"{file} is not whole ({first_line(error)}): store the model again.") from error


@torch.no_grad()
def require_fit(model: nn.Module, task: Task, spec: str) -> nn.Module:
    """`model`, if it takes the task's inputs and has as many outputs as the task; else a UserError."""
    model.cpu().eval()
    # With a single example, a network that flattens the batch along with the features would pass.
    count = min(2, len(task.test))
    expected = *task.test.targets[:count].shape, task.outputs
    try:
        given = tuple(forward(model, task.example(count)).shape)
        for inputs in _extreme_texts(task):
            forward(model, inputs)
        change = _change_by_padding(model, task)
    except UserError:
        raise
    except Exception as error:  # whatever another's network raises
        raise UserError(f"{spec} does not take the inputs of {task.name} ({first_line(error)}).") from error
    if given[:1] != (count,):
        raise UserError(f"{spec} gives outputs of the shape {given} for {count} examples; take one that answers each.")
    if given != expected:
        outputs = " x ".join(map(str, given[1:])) or "no"
        raise UserError(
            f"{spec} gives {outputs} outputs and {task.name} has {task.outputs}; take a model trained on {task.name}."
        )
    if change > MAX_CHANGE_BY_PADDING:
        raise _padding_error(model, task, spec, change)
    return model


def _change_by_padding(model: nn.Module, task: Task) -> float:
    """How much padding changes of the logits of the shortest test text: root mean square over that of the logits.

    0 for a network of somebody's own, which may have learned from texts of one padded length.
    """
    inputs = task.test.inputs
    if models.transformers_config(model) is None or not isinstance(inputs, dict) or "attention_mask" not in inputs:
        return 0.0
    lengths = inputs["attention_mask"].flatten(1).sum(1)
    rows = torch.stack([lengths.argmin(), lengths.argmax()])
    both: Any = next(task.test.select(rows).to("cpu").batches(2))[0]
    shape = both["attention_mask"].shape
    tokens = both["attention_mask"][0].nonzero().flatten()
    if len(shape) != 2 or not 0 < len(tokens) < shape[1]:
        return 0.0
    text = slice(int(tokens[0]), int(tokens[-1]) + 1)
    alone = {name: tensor[:1, text] if tensor.shape[:2] == shape else tensor[:1] for name, tensor in both.items()}
    expected, padded = forward(model, alone), forward(model, both)[:1]
    return ((padded - expected).square().mean() / expected.square().mean().clamp_min(1e-12)).sqrt().item()


def _padding_error(model: nn.Module, task: Task, spec: str, change: float) -> UserError:
    """What to say of a model that finds a text's end by another token (GPT-2), or wants padding on the left (XLNet)."""
    token = getattr(models.transformers_config(model), "pad_token_id", None)
    return UserError(
        f"{spec} answers a text otherwise when it is padded (by {change:.0%} of its logits), as {task.name} pads it: "
        f"the token of its padding (pad_token_id={token} in its config) or the side is another; take an encoder such "
        "as BERT."
    )


def _extreme_texts(task: Task) -> Iterator[Inputs]:
    """The longest text of each split and the one with the largest token id: a model may have too few embeddings."""
    splits: list[Split] = [*task.splits().values(), *task.further_test_splits.values()]
    for split in splits:
        if isinstance(split.inputs, dict) and "input_ids" in split.inputs:
            ids: Tensor = split.inputs["input_ids"]
            mask = split.inputs.get("attention_mask", torch.ones_like(ids))
            longest = mask.sum(1).argmax()
            rows = torch.stack([longest, ids.amax(1).argmax()])
            yield next(split.select(rows).to("cpu").batches(2))[0]


@torch.no_grad()
def _match_metadata(model: nn.Module, folder: Path, task: Task, spec: str) -> None:
    """Compare what is stored beside a model with the task, and put the model's outputs into the order of its labels.

    Raises UserError if the model was trained on other classes or differently normalized images.
    """
    stored = storage.read_metadata(folder)
    if stored.get("labels") and task.labels:
        classes.match_outputs(model, [str(label) for label in stored["labels"]], task, spec, task.example(2))
        if (config := models.transformers_config(model)) is not None:
            config.id2label = dict(enumerate(task.labels))
            config.label2id = {label: i for i, label in enumerate(task.labels)}
    _require_same_normalization(stored.get("normalization"), task, spec)


def _require_same_normalization(used: Mapping[str, list[float]] | None, task: Task, spec: str) -> None:
    """Raise UserError if a model takes images normalized with the mean and the standard deviation `used`, not so."""
    if not used or task.normalization is None:
        return
    if any(not _is_close(used[name], values) for name, values in task.normalization.described().items()):
        raise UserError(
            f"{spec} was trained on images normalized with mean={_slashed(used['mean'])} and "
            f"std={_slashed(used['std'])}; give these to {task.name}."
        )


def _is_close(used: list[float], given: list[float]) -> bool:
    """Whether a statistic of each channel, or one of all, is that of another source to three digits."""
    values = used * len(given) if len(used) == 1 else used
    return len(values) == len(given) and all(abs(a - b) < 1e-3 for a, b in zip(values, given, strict=True))


def _slashed(values: list[float]) -> str:
    """A list of numbers as a field takes it."""
    return "/".join(f"{value:g}" for value in values)
