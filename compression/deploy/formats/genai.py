"""A folder that onnxruntime-genai runs: a decoder's ONNX file with its cache, what it says of itself, its tokenizer.

The entries of genai_config.json: https://onnxruntime.ai/docs/genai/reference/config.html.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from compression import models
from compression.deploy.cache import PARTS, PAST, PRESENT
from compression.deploy.formats.parts import copy_tokenizer
from compression.deploy.onnx.decoder import cached_decoder
from compression.deploy.onnx.export import export
from compression.errors import UserError
from compression.files import fill_folder

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from compression.deploy.onnx.decoder import CachedDecoder


def write(model: nn.Module, stored: Path, folder: Path) -> Path:
    """Write a decoder, and the tokenizer that lies in its folder `stored`, into a new `folder`.

    Raises UserError for a model that has no cache of keys and values, or not as many heads in all layers.
    """
    decoder = cached_decoder(model)
    if decoder is None:
        raise UserError("genai is for decoders of transformers that keep keys and values; take the format onnx.")
    config = describe(decoder)
    with fill_folder(folder) as scratch:
        export(model, models.zero_inputs(model, 4), scratch / "model.onnx")
        copy_tokenizer(stored, scratch)
        (scratch / "genai_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    return folder


def describe(decoder: CachedDecoder) -> dict[str, Any]:
    """Return what genai_config.json says of a decoder. Raises UserError if its layers have unequal heads."""
    config: Any = models.transformers_config(decoder.model)
    if len(set(decoder.shapes)) > 1:
        raise UserError("genai takes as many heads in all layers, and pruning left unequal ones; take the format onnx.")
    [(heads, size)] = set(decoder.shapes)
    positions = config.max_position_embeddings
    ends = [] if config.eos_token_id is None else config.eos_token_id  # none: texts go on to their greatest length
    given = zip(("past_key_names", "past_value_names"), PARTS, strict=True)
    taken = zip(("present_key_names", "present_value_names"), PARTS, strict=True)
    described = {
        "filename": "model.onnx",
        "head_size": size,
        "hidden_size": config.hidden_size,
        "num_attention_heads": config.num_attention_heads,
        "num_key_value_heads": heads,
        "num_hidden_layers": len(decoder.shapes) // 2,
        "session_options": {"provider_options": []},
        "inputs": {"input_ids": "input_ids", **{name: f"{PAST}.%d.{part}" for name, part in given}},
        "outputs": {"logits": "logits", **{name: f"{PRESENT}.%d.{part}" for name, part in taken}},
    }
    return {
        "model": {
            "type": "llama",  # any decoder with these inputs: the type chooses no arithmetic
            "vocab_size": config.vocab_size,
            "context_length": positions,
            "bos_token_id": config.bos_token_id or 0,
            "eos_token_id": ends,
            "pad_token_id": config.pad_token_id or 0,  # of texts that have ended, beside longer ones
            "decoder": described,
        },
        # The file returns keys and values in new tensors, longer than those that it was given.
        "search": {"do_sample": False, "max_length": positions, "past_present_share_buffer": False},
    }
