"""GGUF, the file of llama.cpp, with a Llama's integer weights in packings of 32 that share a scale.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md; the packings: ggml-quants.c of that repository.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType, TokenType

from compression.deploy.formats.parts import grouped, shared_group_size, take_apart
from compression.errors import UserError
from compression.files import replace_file
from compression.models import gguf_tokenizer
from compression.models.gguf import interleave_halves, name_in_file

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    from torch import Tensor, nn

    from compression.nn.quantized import QuantLinear

KIND = "gguf"
BLOCK = 32  # weights of a block
ARCHITECTURES = ("llama", "mistral")  # those of transformers that llama.cpp calls llama
# By bits and whether zero is in the middle.
PACKINGS = {
    (4, True): GGMLQuantizationType.Q4_0,
    (4, False): GGMLQuantizationType.Q4_1,
    (8, True): GGMLQuantizationType.Q8_0,
}
FILE_TYPES = {
    GGMLQuantizationType.Q4_0: LlamaFileType.MOSTLY_Q4_0,
    GGMLQuantizationType.Q4_1: LlamaFileType.MOSTLY_Q4_1,
    GGMLQuantizationType.Q8_0: LlamaFileType.MOSTLY_Q8_0,
}


def write(model: nn.Module, stored: Path, path: Path) -> Path:
    """Write a Llama of integer weights, and the tokenizer in its folder `stored`, to the file `path`.

    Scales, and for affine codes the value of the lowest, are rounded to 16 bits; codes are the model's. Raises
    UserError for a model or a tokenizer that the format cannot hold.
    """
    parts = take_apart(model, KIND)
    config = parts.config
    header = _header(config)
    words = _tokenizer(stored)
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    with replace_file(path) as half:
        writer = GGUFWriter(half, "llama")
        for name, value in (header | words).items():
            _ADDERS[type(value)](writer, name, value)
        kinds: list[GGMLQuantizationType] = []
        for name, layer in parts.integers.items():
            kind, packed = _packed(name, layer, heads.get(name.rpartition(".")[2]))
            writer.add_tensor(name_in_file(f"{name}.weight"), packed, raw_dtype=kind)
            kinds.append(kind)
        for name, tensor in parts.floats.items():
            count = heads.get(name.split(".")[-2])
            values = interleave_halves(tensor, count) if count else tensor
            writer.add_tensor(name_in_file(name), values.float().contiguous().numpy())
        writer.add_file_type(FILE_TYPES[max(set(kinds), key=kinds.count)])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return path


_ADDERS: dict[type, Any] = {
    str: GGUFWriter.add_string,
    int: GGUFWriter.add_uint32,
    float: GGUFWriter.add_float32,
    list: GGUFWriter.add_array,
}


def _header(config: dict[str, Any]) -> dict[str, Any]:
    """What a file says of a model. Raises UserError for one that is no plain Llama."""
    rope = config.get("rope_parameters") or {}
    plain = config["model_type"] in ARCHITECTURES and not config.get("sliding_window")
    if not plain or rope.get("rope_type", "default") != "default" or config.get("hidden_act") != "silu":
        raise UserError(f"gguf is for Llamas with plain positions, and this is a {config['model_type']}; take genai.")
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    described = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": size,
        "attention.value_length": size,
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": float(rope.get("rope_theta", 10_000.0)),
        "rope.dimension_count": size,
        "vocab_size": config["vocab_size"],
    }
    ids = {
        f"tokenizer.ggml.{name}_token_id": config[f"{name}_token_id"]
        for name in ("bos", "eos")
        if isinstance(config.get(f"{name}_token_id"), int)
    }
    return {f"llama.{name}": value for name, value in described.items()} | ids


def _tokenizer(stored: Path) -> dict[str, Any]:
    """What a file says of a tokenizer. Raises UserError for one that is not of byte pairs as GPT-2's is."""
    file = stored / "tokenizer.json"
    said = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    splitter = gguf_tokenizer.splitter_of(said) if said else None
    if splitter is None:
        raise UserError(
            "gguf has a tokenizer in it, and that of this model is none whose rules a GGUF file can name; take genai."
        )
    words = {**said["model"]["vocab"], **{token["content"]: token["id"] for token in said["added_tokens"]}}
    if sorted(words.values()) != list(range(len(words))):
        raise UserError("gguf numbers the words of a tokenizer without gaps, and this one has some; take genai.")
    special = {token["content"] for token in said["added_tokens"] if token["special"]}
    added = {token["content"] for token in said["added_tokens"]} - special
    tokens = sorted(words, key=words.__getitem__)
    kinds = [
        TokenType.CONTROL if token in special else TokenType.USER_DEFINED if token in added else TokenType.NORMAL
        for token in tokens
    ]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": splitter,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.merges": [
            pair if isinstance(pair, str) else " ".join(pair) for pair in said["model"]["merges"]
        ],
    }


def _packed(name: str, layer: QuantLinear, heads: int | None) -> tuple[GGMLQuantizationType, np.ndarray]:
    """The packing of a layer, and its bytes `(outputs, bytes of a row)`; `heads` are those of queries and keys."""
    if layer.in_features % BLOCK:
        raise UserError(f"gguf takes inputs in multiples of {BLOCK}; {name} has {layer.in_features}; take genai.")
    kind = PACKINGS.get((layer.bits, layer.qscheme == "symmetric"))
    if kind is None:
        raise UserError(
            f"gguf holds 4 bits, and 8 with zero in the middle; {name} has {layer.bits}, {layer.qscheme}; take genai."
        )
    size = shared_group_size({name: layer}, KIND, BLOCK) or layer.in_features
    scale, zero_point = grouped(layer, size)
    scale, zero_point = (each.repeat_interleave(size // BLOCK, dim=1) for each in (scale, zero_point.float()))
    codes = layer.codes
    if heads:
        codes, scale, zero_point = (interleave_halves(each, heads) for each in (codes, scale, zero_point))
    blocks = codes.view(*scale.shape, BLOCK)
    constants = [scale]
    if kind is GGMLQuantizationType.Q4_1:
        constants.append(scale * (-(2 ** (layer.bits - 1)) - zero_point))  # the value of the lowest code
    digits = blocks.view(torch.uint8) if layer.bits == 8 else _halves(blocks)
    packed = torch.cat([*(each.half().unsqueeze(2).view(torch.uint8) for each in constants), digits], 2)
    return kind, packed.flatten(1).numpy()


def _halves(blocks: Tensor) -> Tensor:
    """Codes of 4 bits `(…, 32)` as bytes `(…, 16)`: the first 16 in the lower halves, the others in the upper ones."""
    unsigned = (blocks + 8).view(torch.uint8)
    return unsigned[..., : BLOCK // 2] | unsigned[..., BLOCK // 2 :] << 4
