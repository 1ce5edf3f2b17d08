"""The tokenizer in the header of a GGUF file: byte pairs as of GPT-2, or the byte pairs of SentencePiece."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from tokenizers.pre_tokenizers import PreTokenizer

CONTROL, USER_DEFINED = 3, 4  # of the types of tokens; both are looked for in a text before anything else
SPECIAL = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
SPACE = "▁"  # how SentencePiece writes one
LLAMA_3 = (  # the pattern of words in Llama 3's tokenizer
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False)


def _smollm() -> PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> PreTokenizer:
    bytes_alone = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(LLAMA_3), "isolated"), bytes_alone])


# How a text is split before its byte pairs are merged, by the name in `tokenizer.ggml.pre`.
SPLITTERS: dict[str, Callable[[], PreTokenizer]] = {
    "gpt-2": _gpt2,
    "smollm": _smollm,
    "llama-bpe": _llama3,
    "llama-v3": _llama3,
    "llama3": _llama3,
}


def make(metadata: Mapping[str, Any], name: str) -> PreTrainedTokenizerFast:
    """Return the tokenizer that a GGUF file's `metadata` describe; `name` is that of its model.

    Raises UserError for a kind that is not read here, and whatever Python raises for a damaged description.
    """
    own = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items()}
    kinds = {"gpt2": _byte_level, "llama": _sentence_piece}
    if own["model"] not in kinds:
        raise UserError(f"The tokenizer of {name} is of the kind {own['model']}; {' and '.join(kinds)} are read.")
    tokenizer = kinds[own["model"]](own, name)
    for token, kind in zip(own["tokens"], own.get("token_type", ()), strict=False):
        if kind in (CONTROL, USER_DEFINED):
            added = AddedToken(token, normalized=False, special=kind == CONTROL)
            (tokenizer.add_special_tokens if kind == CONTROL else tokenizer.add_tokens)([added])
    special = {SPECIAL[key]: own["tokens"][i] for key in SPECIAL if (i := own.get(f"{key}_token_id")) is not None}
    wrap: Callable[..., PreTrainedTokenizerFast] = PreTrainedTokenizerFast
    return wrap(tokenizer_object=tokenizer, name_or_path=name, **special)


def splitter_of(described: Mapping[str, Any]) -> str | None:
    """Return the name of the rules by which a tokenizer of byte pairs, the content of its tokenizer.json, splits texts.

    None for rules without a name here, and for a tokenizer that is not of byte pairs or changes texts before it.
    """
    if described["model"]["type"] != "BPE" or described.get("normalizer"):
        return None
    rules = described["pre_tokenizer"]
    return next((name for name, make_one in SPLITTERS.items() if _rules(make_one()) == rules), None)


def _rules(splitter: PreTokenizer) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    return json.loads(tokenizer.to_str())["pre_tokenizer"]


def _byte_level(own: Mapping[str, Any], name: str) -> Tokenizer:
    splitter = own.get("pre", "")
    if splitter not in SPLITTERS:
        raise UserError(
            f"The tokenizer of {name} splits texts by the rules of {splitter or 'nobody'}; those of "
            f"{', '.join(SPLITTERS)} are read."
        )
    merges = [tuple(merge.split(" ", 1)) for merge in own["merges"]]
    tokenizer = Tokenizer(models.BPE(_numbered(own["tokens"]), merges))
    tokenizer.pre_tokenizer = SPLITTERS[splitter]()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _sentence_piece(own: Mapping[str, Any], name: str) -> Tokenizer:  # noqa: ARG001 - called like `_byte_level`
    vocabulary = _numbered(own["tokens"])
    unknown = own["tokens"][own.get("unknown_token_id", 0)]
    merges = _merges(vocabulary, own["scores"])
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))
    prefixed = own.get("add_space_prefix", True)
    steps = [normalizers.Prepend(SPACE)] if prefixed else []
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if prefixed else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _numbered(tokens: list[str]) -> dict[str, int]:
    """Return the tokens and their ids. Raises ValueError for one that is there twice."""
    vocabulary = {token: i for i, token in enumerate(tokens)}
    if len(vocabulary) < len(tokens):
        raise ValueError("its tokenizer has a token twice")
    return vocabulary


def _merges(vocabulary: Mapping[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make another, those of the highest score first.

    SentencePiece (Kudo and Richardson 2018, arXiv:1808.06226) merges the pair whose token has the highest score; of
    equal ones, that of the pair with the lower ids here.
    """
    found = [
        (-scores[i], vocabulary[token[:cut]], vocabulary[token[cut:]], token[:cut], token[cut:])
        for token, i in vocabulary.items()
        for cut in range(1, len(token))
        if token[:cut] in vocabulary and token[cut:] in vocabulary
    ]
    return [(left, right) for *_, left, right in sorted(found)]
