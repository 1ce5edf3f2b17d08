"""What a decoder writes is what transformers' own `generate` finds, greedily and by beam search."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from compression.tasks.generation import generate

END = 5


def decoder(seed):
    """A tiny Llama whose weights are large enough to have preferences, and to end some texts."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=23, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=END, bos_token_id=1,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        parameter.data *= 3
    return model


@pytest.mark.parametrize("beams", [1, 2, 4])
@pytest.mark.parametrize("seed", range(4))
def test_it_writes_what_transformers_writes(seed, beams):
    model = decoder(seed)
    prompts = [torch.randint(6, 23, (length,)) for length in (3, 6, 4)]
    for prompt, written in zip(prompts, generate(model, prompts, 12, END, beams), strict=True):
        options = {"num_beams": beams, "do_sample": False, "eos_token_id": END, "pad_token_id": 0}
        [whole] = model.generate(prompt[None], max_new_tokens=12, early_stopping=False, **options)
        theirs = whole[len(prompt) :].tolist()
        assert written.tolist() == (theirs[: theirs.index(END)] if END in theirs else theirs)
