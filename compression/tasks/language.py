"""Language modelling: predict each token of a text from those before it, in windows of a fixed length."""

from __future__ import annotations

import hashlib
from functools import partial
from typing import TYPE_CHECKING

import torch
from tokenizers.decoders import ByteLevel
from torch import Tensor, nn

from compression.errors import UserError
from compression.nn.inputs import IGNORED
from compression.tasks import text_corpus
from compression.tasks.cache import Tensors, cached
from compression.tasks.decoding import Reader, as_long, load_reader, make_task, window_length
from compression.tasks.generation import Continuation, generate
from compression.tasks.task import Split, Task

if TYPE_CHECKING:
    from tokenizers import Encoding
    from transformers import PreTrainedTokenizerBase

    from compression.tasks import TaskRequest

SHOWN, WRITTEN = 3, 24  # continuations in a report, and the tokens of each


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
    told = f"{tokens} tokens in windows of {context}; {corpus.told}"
    written = partial(_continue, reader, splits["test"])
    return make_task(request, reader, splits, corpus.source, told, continuations=written)


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
