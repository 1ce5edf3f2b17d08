"""A Llama of a few thousand weights as llama.cpp's converter writes one, and the same model in transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import gguf
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import LlamaConfig, LlamaForCausalLM

from compression.tasks.vocabulary import byte_pairs

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from transformers import PreTrainedTokenizerFast

TEXT = "the quick brown fox jumps over the lazy dog, and it's 1234 times over the quick brown foxes\n" * 3
LAYERS, HIDDEN, INNER, HEADS, GROUPS = 2, 64, 96, 4, 2
PARTS = {  # name in the file: name in transformers, packing
    "attn_norm": ("input_layernorm", Kind.F32),
    "attn_q": ("self_attn.q_proj", Kind.Q4_1),
    "attn_k": ("self_attn.k_proj", Kind.Q8_0),
    "attn_v": ("self_attn.v_proj", Kind.Q4_1),
    "attn_output": ("self_attn.o_proj", Kind.Q5_0),
    "ffn_norm": ("post_attention_layernorm", Kind.F32),
    "ffn_gate": ("mlp.gate_proj", Kind.F16),
    "ffn_up": ("mlp.up_proj", Kind.BF16),
    "ffn_down": ("mlp.down_proj", Kind.Q4_0),
}


def tokenizer() -> PreTrainedTokenizerFast:
    """Return one of byte pairs that splits texts as GPT-2's does."""
    return byte_pairs(TEXT)


def write_llama(path: Path, tied: bool = True, **entries: Any) -> LlamaForCausalLM:
    """Write a random Llama, and return it with the values that its packed weights have.

    `entries` replace those of the header, by name with `_` for `.`; None leaves one out.
    """
    torch.manual_seed(0)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=HIDDEN,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=GROUPS,
        max_position_embeddings=128,
        tie_word_embeddings=tied,
        attn_implementation="eager",
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0},
    )
    model = LlamaForCausalLM(config).eval()
    writer = gguf.GGUFWriter(path, entries.pop("architecture", "llama"))
    header = _header(config, words) | entries
    for name, value in header.items():
        if value is not None:
            _add(writer, name, value)
    tensors = {"token_embd": ("model.embed_tokens", Kind.Q8_0), "output_norm": ("model.norm", Kind.F32)}
    tensors |= {} if tied else {"output": ("lm_head", Kind.Q8_0)}
    tensors |= {
        f"blk.{i}.{a}": (f"model.layers.{i}.{b}", kind) for i in range(LAYERS) for a, (b, kind) in PARTS.items()
    }
    for name, (place, kind) in tensors.items():
        weight = model.get_submodule(place).weight
        if weight.ndim == 1:
            torch.nn.init.uniform_(weight, 0.5, 1.5)
        heads = {"attn_q": HEADS, "attn_k": GROUPS}.get(name.rpartition(".")[2])
        stored = _interleave(weight.data, heads) if heads else weight.data
        packed = gguf.quantize(stored.numpy(), kind)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=kind)
        values = torch.from_numpy(gguf.dequantize(packed, kind).copy())
        weight.data = _deinterleave(values, heads) if heads else values
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model


def _header(config: LlamaConfig, words: PreTrainedTokenizerFast) -> dict[str, Any]:
    described = json.loads(words.backend_tokenizer.to_str())["model"]
    return {
        "llama.block_count": config.num_hidden_layers,
        "llama.context_length": config.max_position_embeddings,
        "llama.embedding_length": config.hidden_size,
        "llama.feed_forward_length": config.intermediate_size,
        "llama.attention.head_count": config.num_attention_heads,
        "llama.attention.head_count_kv": config.num_key_value_heads,
        "llama.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "llama.rope.freq_base": 5000.0,
        "llama.rope.dimension_count": HIDDEN // HEADS,
        "llama.expert_count": 0,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": sorted(described["vocab"], key=described["vocab"].__getitem__),
        "tokenizer.ggml.merges": [" ".join(pair) for pair in described["merges"]],
    }


def _add(writer: gguf.GGUFWriter, name: str, value: Any) -> None:
    adders = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32, list: writer.add_array}
    adders[type(value)](name, value)


def _interleave(rows: Tensor, heads: int) -> Tensor:
    """As llama.cpp's convert_hf_to_gguf.py: rows i and i + size / 2 of a head come to lie side by side."""
    return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape).contiguous()


def _deinterleave(rows: Tensor, heads: int) -> Tensor:
    size = len(rows) // heads
    order = [h * size + i for h in range(heads) for i in (*range(0, size, 2), *range(1, size, 2))]
    return rows[order]
