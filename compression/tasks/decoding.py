"""What all tasks of language models share: tokenizer, windows, examples of which a part is predicted, the `Task`."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from compression.errors import UserError
from compression.models import LANGUAGE_MODELS, huggingface
from compression.nn.inputs import IGNORED
from compression.tasks import metrics, short_name
from compression.tasks.scores import TokenLikelihood
from compression.tasks.splits import splits_digest
from compression.tasks.task import Split, Task
from compression.tasks.vocabulary import byte_pairs, corpus_words

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from transformers import PreTrainedTokenizerBase

    from compression.nn.inputs import Inputs
    from compression.tasks import TaskRequest

CONTEXT = 512  # tokens of a window, where neither the request nor the model's positions say otherwise
DEFAULT_MODEL, STUDENT = "decoder", "decoder"
FINE_TUNING: dict[str, Any] = {  # Radford et al. 2018, section 4.1, with the small batches that a laptop holds
    "epochs": 1,
    "batch_size": 8,
    "learning_rate": 5e-5,
    "optimizer": "adamw",
    "schedule": "linear",
    "warmup": 0.1,
    "weight_decay": 0.01,
    "label_smoothing": 0.0,
}
FROM_SCRATCH: dict[str, Any] = {  # those that differ for models that are not pretrained
    "epochs": 5,
    "learning_rate": 2e-3,
    "schedule": "onecycle",
}


@dataclass(frozen=True)
class Reader:
    """What turns text into tokens."""

    tokenizer: PreTrainedTokenizerBase
    tokens: int  # that the model tells apart: as many as it has outputs
    positions: int | None  # the longest window that the model takes; None for any
    model: str

    def text(self, ids: Tensor) -> str:
        """The text of tokens `(length,)`, without those that stand for no text."""
        return str(self.tokenizer.decode(ids.tolist(), skip_special_tokens=True))

    def ids(self, text: str) -> list[int]:
        """The tokens of a text, none of them added to it."""
        return list(self.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)

    def fingerprint(self) -> str:
        """A SHA-256 over the tokenizer."""
        return hashlib.sha256(self.tokenizer.backend_tokenizer.to_str().encode()).hexdigest()


def load_reader(model: str, text: str) -> Reader:
    """Load the tokenizer of the decoder `model`; one of the lab gets one made of `text`. Raises UserError."""
    model = model or DEFAULT_MODEL
    if model not in LANGUAGE_MODELS:
        return Reader(*huggingface.load_language_tokenizer(model), model)
    tokenizer = (corpus_words if model == "lstm_lm" else byte_pairs)(text)
    return Reader(tokenizer, len(tokenizer), None, model)


def window_length(request: TaskRequest, reader: Reader) -> int:
    """The length of the windows. Raises UserError where the model has fewer positions."""
    if reader.positions is None:
        return request.context or CONTEXT
    if request.context and request.context > reader.positions:
        raise UserError(
            f"context={request.context} is longer than the {reader.positions} positions of {reader.model}; take "
            f"context={reader.positions} or less."
        )
    return request.context or min(CONTEXT, reader.positions)


def place_of(request: TaskRequest, kind: str, content: str) -> str:
    """The file or folder of `KIND/PATH`, or of KIND with data=PATH; UserError, with its `content`, for neither."""
    place = request.name.removeprefix(kind).removeprefix("/") or request.data
    if not place:
        raise UserError(f"{kind} needs data=PATH: {content}.")
    return place


def continued(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> tuple[Tensor, Tensor]:
    """Return token ids `(n, longest)`, int32, and targets of the same shape, from what is given and then predicted.

    Padded with token 0 on the right, which no decoder reads; what is given, and padding, has no target.
    """
    longest = max(len(given) + len(predicted) for given, predicted in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.int32)
    targets = torch.full(ids.shape, IGNORED, dtype=torch.int64)
    for row, (given, predicted) in enumerate(rows):
        end = len(given) + len(predicted)
        ids[row, :end] = torch.tensor([*given, *predicted])
        targets[row, len(given) - 1 : end - 1] = torch.tensor(predicted)
    return ids, targets


def as_long(inputs: Inputs) -> Inputs:
    """Return stored token ids as models take them."""
    assert isinstance(inputs, dict)
    return {name: tensor.long() for name, tensor in inputs.items()}


def make_task(
    request: TaskRequest, reader: Reader, splits: Mapping[str, Split], source: str, told: str, **changes: Any
) -> Task:
    """Make the task of `splits`, judged by perplexity unless `changes`, fields of `Task`, say otherwise.

    `told` says of the data at `source` how they were read.
    """
    is_own = reader.model in LANGUAGE_MODELS
    task = Task(
        short_name(request.name, request.data),
        train=splits["train"],
        validation=splits["validation"],
        test=splits["test"],
        outputs=reader.tokens,
        labels=(),
        metric="perplexity",
        higher_is_better=False,
        compute_metrics=metrics.perplexity,
        make_scores=lambda split: TokenLikelihood(split.text_bytes),
        loss=metrics.next_token_loss,
        model=DEFAULT_MODEL,
        student="" if reader.model == STUDENT else STUDENT,  # of its own size nobody learns
        training=FINE_TUNING | (FROM_SCRATCH if is_own else {}),
        from_scratch=FROM_SCRATCH,
        source=source,
        description=f"{source}: {told}.",
        digest=splits_digest(splits.values()),
        is_limited=request.limit is not None,
        tokenizer=reader.tokenizer,
    )
    return replace(task, **changes)
