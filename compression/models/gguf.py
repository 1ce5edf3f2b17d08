"""Language models of the Llama architecture in GGUF files, the format of llama.cpp: `gguf:FILE` is such a model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from compression.errors import UserError, first_line
from compression.models import GGUF, gguf_file, gguf_tokenizer, huggingface, skeleton

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from torch import Tensor, nn
    from transformers import PreTrainedTokenizerBase

    from compression.models import TaskInterface
    from compression.models.gguf_file import Packed

Read = TypeVar("Read")
# What may be said of a Llama and is understood here. Another entry, of scaled positions, say, would change its answers.
KNOWN = {
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size", "tensor_data_layout"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_rms_epsilon", "rope.freq_base", "rope.dimension_count"),
}
# Names of the tensors of a file and of a model of transformers; those of a block come after `blk.N.`, `model.layers.N.`
WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
OF_A_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


@dataclass(frozen=True)
class File:
    """A GGUF file of somebody's; properties raise whatever a damaged one makes Python raise."""

    path: Path
    metadata: dict[str, Any]
    packed: dict[str, Packed]  # tensors by their names in the file

    @cached_property
    def tensors(self) -> dict[str, Packed]:
        """The tensors by their names in transformers. Raises ValueError for others than those of a Llama."""
        return {_name(name): tensor for name, tensor in self.packed.items()}

    def config(self) -> dict[str, Any]:
        """Return the config of transformers. Raises UserError for what is not read here."""
        architecture = self.metadata["general.architecture"]
        if architecture != "llama":
            raise UserError(f"{self.path} is a model of the architecture {architecture}; only llama is read from GGUF.")
        own = {name.removeprefix("llama."): value for name, value in self.metadata.items() if name.startswith("llama.")}
        # 0 says of an entry, the number of experts for instance, that there are none.
        if unknown := [name for name, value in own.items() if name not in KNOWN and value != 0]:
            raise UserError(f"{self.path} is a Llama with {', '.join(unknown)}, which is not read from GGUF.")
        hidden, heads = own["embedding_length"], own["attention.head_count"]
        size = own.get("attention.key_length", hidden // heads)
        if own.get("rope.dimension_count", size) != size or own.get("attention.value_length", size) != size:
            raise UserError(
                f"{self.path} is a Llama whose heads have parts of unequal size, which is not read from GGUF."
            )
        ids = {name: self.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos")}
        return {
            "model_type": "llama",
            "architectures": ["LlamaForCausalLM"],
            "vocab_size": self.tensors["model.embed_tokens.weight"].shape[0],
            "hidden_size": hidden,
            "intermediate_size": own["feed_forward_length"],
            "num_hidden_layers": own["block_count"],
            "num_attention_heads": heads,
            "num_key_value_heads": own.get("attention.head_count_kv", heads),
            "head_dim": size,
            "max_position_embeddings": own["context_length"],
            "rms_norm_eps": _positive(own["attention.layer_norm_rms_epsilon"]),
            "rope_parameters": {"rope_type": "default", "rope_theta": _positive(own.get("rope.freq_base", 10_000.0))},
            "attention_bias": "model.layers.0.self_attn.q_proj.bias" in self.tensors,
            "mlp_bias": "model.layers.0.mlp.up_proj.bias" in self.tensors,
            "tie_word_embeddings": "lm_head.weight" not in self.tensors,
            "use_cache": False,
            "bos_token_id": ids["bos"],
            "eos_token_id": ids["eos"],
            "dtype": "float32",
        }

    def weights(self, config: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
        """Yield the name and the values, float32, of each tensor."""
        heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
        for name, tensor in self.tensors.items():
            values = torch.from_numpy(tensor.values())
            layer = name.split(".")[-2]
            yield name, _split_halves(values, heads[layer]) if layer in heads else values

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Return the tokenizer. Raises UserError for a kind that is not read here."""
        return gguf_tokenizer.make(self.metadata, f"{GGUF}{self.path}")


def load(name: str, task: TaskInterface) -> nn.Module:
    """Load the model `gguf:FILE`, its weights in float32, on the CPU, in eval mode.

    Raises UserError for a file that is missing, damaged, of another architecture than Llama, or of another vocabulary
    than the task's text is written in.
    """

    def checked(file: File) -> nn.Module:
        if task.tokenizer is not None and task.tokenizer.get_vocab() != file.tokenizer().get_vocab():
            raise huggingface.other_vocabulary(name, task)
        return _build(file)

    return _read(name, checked)


def load_tokenizer(name: str) -> tuple[PreTrainedTokenizerBase, dict[str, Any]]:
    """Load the tokenizer of the model `gguf:FILE`; also the model's config. Raises UserError as `load` does."""
    return _read(name, lambda file: (file.tokenizer(), file.config()))


def _read(name: str, use: Callable[[File], Read]) -> Read:
    path = Path(name.removeprefix(GGUF))
    try:
        return use(File(path, *gguf_file.read(path)))
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}: write gguf:FILE, with a model of llama.cpp.") from error
    except UserError:
        raise
    except Exception as error:  # of a stranger's file, anything may come
        raise UserError(f"{path} is no whole GGUF file of a Llama: {first_line(error)}.") from error


def _build(file: File) -> nn.Module:
    config, tensors = file.config(), file.tensors
    with skeleton.without_weights(len(tensors)):
        model: Any = huggingface.build_from_config(config, head=huggingface.NEXT_TOKEN)
    skeleton.require_same_tensors(model, {name: [*tensor.shape] for name, tensor in tensors.items()})
    model.load_state_dict(dict(file.weights(config)), strict=False, assign=True)  # tied embeddings have one name
    model.tie_weights()
    # What positions turn by is computed, not stored.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    built: nn.Module = model.requires_grad_().eval()
    return built


def _name(name: str) -> str:
    """Return the name in transformers of a file's tensor. Raises ValueError for one that a Llama does not have."""
    place, _, kind = name.rpartition(".")
    block, _, part = place.removeprefix("blk.").partition(".")
    if place.startswith("blk.") and part in OF_A_BLOCK and block.isdecimal():
        return f"model.layers.{block}.{OF_A_BLOCK[part]}.{kind}"
    if place not in WHOLE:
        raise ValueError(f"it has the tensor {name}, which is not read here")
    return f"{WHOLE[place]}.{kind}"


def name_in_file(name: str) -> str:
    """Return the name in a file of a Llama's tensor in transformers, the inverse of how they are read."""
    place, _, kind = name.rpartition(".")
    whole = {theirs: own for own, theirs in WHOLE.items()}
    if place in whole:
        return f"{whole[place]}.{kind}"
    block, _, part = place.removeprefix("model.layers.").partition(".")
    of_a_block = {theirs: own for own, theirs in OF_A_BLOCK.items()}
    return f"blk.{block}.{of_a_block[part]}.{kind}"


def _split_halves(rows: Tensor, heads: int) -> Tensor:
    """Put the rows of queries or keys, `(heads x size, …)`, into the order of transformers.

    A position turns pairs of numbers of a head: in a GGUF file numbers 0 and 1, 2 and 3, …; in transformers each of the
    first half with that at its place in the second.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def interleave_halves(rows: Tensor, heads: int) -> Tensor:
    """Put the rows of queries or keys of transformers, `(heads x size, …)`, into the order of a GGUF file."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _positive(value: Any) -> float:
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"it has a constant of {value}")
    return float(str(np.float32(value)))  # as it was written before it became a float32: 1e-05, not 9.99999975e-06
