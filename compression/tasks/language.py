"""Language modelling: predict each token of a text from those before it, in windows of a fixed length."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from tokenizers.decoders import ByteLevel
from torch import Tensor, nn

from compression.errors import UserError
from compression.models import LANGUAGE_MODELS, huggingface
from compression.nn.inputs import IGNORED
from compression.tasks import metrics, text_corpus
from compression.tasks.cache import Tensors, cached
from compression.tasks.generation import Continuation, generate
from compression.tasks.scores import TokenLikelihood
from compression.tasks.splits import splits_digest
from compression.tasks.task import Split, Task
from compression.tasks.vocabulary import byte_pairs, corpus_words

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    from compression.nn.inputs import Inputs
    from compression.tasks import TaskRequest

SHOWN, WRITTEN = 3, 24  # continuations in a report, and the tokens of each
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


def language(request: TaskRequest) -> Task:
    """Load the text of `language/NAME`, of a file or a folder, encoded with the tokenizer of the request's model.

    A model of the lab gets a tokenizer made from the training text. Raises UserError if data or tokenizer cannot be
    loaded, for a context that is longer than the model's or the text, and for text without a word.
    """
    corpus = text_corpus.find(request)
    reader = load_reader(request.model, corpus.texts["train"])
    context = window_length(request, reader)
    key = hashlib.sha256(repr((corpus.fingerprint(), reader.fingerprint(), context)).encode()).hexdigest()
    tensors = cached(f"language-{key[:32]}", partial(_encode, corpus, reader.tokenizer, context))
    splits = {name: _make_split(tensors, name, request.limit) for name in corpus.texts}
    tokens = ", ".join(f"{split.targets.numel():,} {name}" for name, split in splits.items())
    return Task(
        corpus.name,
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
        student="" if (request.model or DEFAULT_MODEL) == STUDENT else STUDENT,  # of its own size nobody learns
        training=FINE_TUNING | (FROM_SCRATCH if is_own(request.model) else {}),
        from_scratch=FROM_SCRATCH,
        source=corpus.source,
        description=f"{corpus.source}: {tokens} tokens in windows of {context}; {corpus.told}.",
        digest=splits_digest(splits.values()),
        is_limited=request.limit is not None,
        tokenizer=reader.tokenizer,
        continuations=partial(_continue, reader, splits["test"]),
    )


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


def is_own(model: str) -> bool:
    """Whether a model is one of the lab, which starts with new weights."""
    return (model or DEFAULT_MODEL) in LANGUAGE_MODELS


def load_reader(model: str, text: str) -> Reader:
    """Load the tokenizer of the decoder `model`; one of the lab gets one made of `text`. Raises UserError."""
    model = model or DEFAULT_MODEL
    if not is_own(model):
        return Reader(*huggingface.load_language_tokenizer(model), model)
    tokenizer = (corpus_words if model == "lstm_lm" else byte_pairs)(text)
    return Reader(tokenizer, len(tokenizer), None, model)


@torch.inference_mode()
def _continue(reader: Reader, test: Split, model: nn.Module) -> tuple[dict[str, float], list[Continuation]]:
    """What the model writes after the first halves of some windows of the test split; no figures."""
    assert isinstance(test.inputs, dict)
    windows = test.inputs["input_ids"][:SHOWN].cpu().long()
    half = max(1, windows.shape[1] // 2)
    prompts, rest = list(windows[:, :half]), windows[:, half:][:, :WRITTEN]
    # Greedily, and no further than the window goes on.
    found = generate(model, prompts, rest.shape[1])
    return {}, [
        Continuation(reader.text(prompt[-WRITTEN:]), reader.text(expected), reader.text(written))
        for prompt, expected, written in zip(prompts, rest, found, strict=True)
    ]


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


def _encode(corpus: text_corpus.Corpus, tokenizer: PreTrainedTokenizerBase, context: int) -> Tensors:
    """Return for each split its windows `(n, context)`, int32, and the bytes `(n,)` of the text of their targets."""
    tensors = {}
    for name, text in corpus.texts.items():
        encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
        count = len(encoded.ids) // context
        if not count:
            raise UserError(
                f"The {name} text of {corpus.source} has {len(encoded.ids)} tokens, less than one window of {context}: "
                "take more text, or a smaller context=N."
            )
        ids = torch.tensor(encoded.ids[: count * context], dtype=torch.int32)
        ends = _byte_ends(text, encoded, tokenizer)[: count * context]
        tensors[f"{name}.windows"] = ids.reshape(count, context)
        # The first token of a window is given, not predicted.
        tensors[f"{name}.bytes"] = ends.reshape(count, context)[:, -1] - ends.reshape(count, context)[:, 0]
    return tensors


def _byte_ends(text: str, encoded: Encoding, tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Where the tokens of `text` end in bytes of UTF-8, `(tokens,)`."""
    if isinstance(tokenizer.backend_tokenizer.decoder, ByteLevel):
        # A character of such a token stands for a byte; by its offsets, a character of two tokens would end twice. Not
        # where a normalizer has rewritten the text.
        ends = torch.tensor([len(token) for token in encoded.tokens]).cumsum(0)
        if int(ends[-1]) == len(text.encode()):
            return ends
    ends = torch.tensor([end for _, end in encoded.offsets])
    if text.isascii():
        return ends
    lengths = torch.tensor([0, *(len(character.encode()) for character in text)])
    return lengths.cumsum(0)[ends]


def _make_split(tensors: Tensors, name: str, limit: int | None) -> Split:
    windows, lengths = tensors[f"{name}.windows"][:limit], tensors[f"{name}.bytes"][:limit]
    targets = torch.full(windows.shape, IGNORED, dtype=torch.int64)
    targets[:, :-1] = windows[:, 1:]
    return Split({"input_ids": windows}, targets, as_long, int(lengths.sum()))


def as_long(inputs: Inputs) -> Inputs:
    """Return stored token ids as models take them."""
    assert isinstance(inputs, dict)
    return {name: tensor.long() for name, tensor in inputs.items()}
