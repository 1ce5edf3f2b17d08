"""Decoders of the forms of the hub, in two layers of 32, untrained."""

from __future__ import annotations

import torch

from tests.methods.tiny_language import tiny_decoder

OWN_NAMES = {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32}
FORMS = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "qwen2": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "gpt2": OWN_NAMES,
    "gpt_neox": {"num_key_value_heads": None},
    "gemma3_text": {"head_dim": 8, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
}


def make(form: str, **changes):
    torch.manual_seed(0)
    return tiny_decoder(form, **(FORMS[form] | changes)).eval()
