"""Language models of a few thousand weights, and a text of 60 tokens that they learn in seconds."""

from __future__ import annotations

import torch
from torch import nn

from compression import models
from compression.models import huggingface
from compression.nn.inputs import IGNORED
from compression.tasks import metrics
from compression.tasks.scores import TokenLikelihood
from compression.tasks.task import Split, Task
from tests.conftest import stripes_task

TOKENS, CONTEXT = 60, 16
KINDS = ("llama", "mistral", "qwen2", "gpt2", "opt")  # of decoders


def windows(count: int, seed: int) -> Split:
    """Windows of a text in which each token has two followers, equally likely: the least perplexity is 2."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(TOKENS, (count, CONTEXT), generator=generator)
    follower = torch.randint(2, ids.shape, generator=generator)
    for place in range(1, CONTEXT):
        ids[:, place] = (3 * ids[:, place - 1] + follower[:, place]) % TOKENS
    targets = torch.full_like(ids, IGNORED)
    targets[:, :-1] = ids[:, 1:]
    return Split({"input_ids": ids}, targets, lambda stored: stored)


def language_task(**changes) -> Task:
    """A language task that a tiny decoder learns in a few epochs."""
    recipe = {"epochs": 2, "batch_size": 16, "learning_rate": 1e-2, "optimizer": "adamw", "schedule": "onecycle"}
    recipe |= {"warmup": 0.1, "weight_decay": 0.01, "label_smoothing": 0.0}
    given = {
        "name": "language/followers",
        "train": windows(192, 1),
        "validation": windows(32, 2),
        "test": windows(32, 3),
        "outputs": TOKENS,
        "labels": (),
        "metric": "perplexity",
        "higher_is_better": False,
        "compute_metrics": metrics.perplexity,
        "make_scores": lambda split: TokenLikelihood(split.text_bytes),
        "loss": metrics.next_token_loss,
        "model": "decoder",
        "student": "decoder",
        "training": recipe,
        "input_shape": (),
        "digest": "followers",
    }
    return stripes_task(**(given | changes))


def tiny_decoder(kind: str = "llama", **changes) -> nn.Module:
    """A decoder of two layers with four heads of eight, in two groups if it has groups, tied embeddings, untrained."""
    config = {
        "model_type": kind,
        "vocab_size": TOKENS,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
        "tie_word_embeddings": True,
        "use_cache": False,
        "bos_token_id": None,
        "eos_token_id": None,
        **{"gpt2": {"n_inner": 48}, "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": None}}.get(
            kind, {}
        ),
    }
    return huggingface.build_from_config(config | changes, head=huggingface.NEXT_TOKEN).eval()


def tiny_lstm_lm() -> nn.Module:
    """The lab's word model of LSTMs with 32 units, untrained."""
    return models.rebuild({"builder": "lstm_lm", "arguments": {"tokens": TOKENS, "width": 0.16}}).eval()
