"""The parts of transformers, and cutting them: attention heads, feed-forward neurons, hidden dimensions, whole layers.

Every cut changes the model in place: weights, masks, the size attributes of the modules, and the model's config. A
BERT config has one `num_attention_heads`, `intermediate_size`, `hidden_size` and `num_hidden_layers` for all layers,
and implies heads of hidden_size / num_attention_heads dimensions. Therefore:

- `from_pretrained` loads a model with layers dropped, with feed-forward parts of one common width, or with heads and
  hidden size cut together so that their quotient is still the size of a head;
- it refuses the shapes of a model whose heads were cut without the hidden size, or whose layers differ. Such a model
  is loaded by `models.storage.load`; its config has the sizes of each layer in `heads_per_layer` and `ffn_per_layer`.

A decoder's config states the size of its heads, so that they go without the hidden size. Where several query heads
share a key and value (Ainslie et al. 2023, arXiv:2305.13245), they are cut together.
"""

from __future__ import annotations

import contextlib
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from compression.errors import UserError
from compression.nn.hooks import on_forward

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


@dataclass(frozen=True)
class Architecture:
    """The submodule names of an architecture: the list of layers in the base model, and the parts within a layer."""

    layers: str
    attention: str  # the module with the number of heads; parent of query, key and value
    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    heads: str  # the attribute of the attention with the number of heads; empty if it counts none
    width: str = "intermediate_size"  # the config entry for the neurons between up and down
    gate: str = ""  # the layer that gates the neurons of `up` (Shazeer 2020, arXiv:2002.05202), if there is one
    states_head_size: bool = True  # whether the config can have any number of heads, whatever the hidden size


_BERT = Architecture(
    "encoder.layer",
    "attention.self",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "intermediate.dense",
    "output.dense",
    "num_attention_heads",
)
_DISTILBERT = Architecture(
    "transformer.layer",
    "attention",
    "attention.q_lin",
    "attention.k_lin",
    "attention.v_lin",
    "attention.out_lin",
    "ffn.lin1",
    "ffn.lin2",
    "n_heads",
    "hidden_dim",
)
_LIKE_BERT = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "data2vec-text")
ENCODERS = {"distilbert": _DISTILBERT} | dict.fromkeys((*_LIKE_BERT, "roberta-prelayernorm"), _BERT)
_LLAMA = Architecture(
    "layers",
    "self_attn",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.o_proj",
    "mlp.up_proj",
    "mlp.down_proj",
    heads="",
    gate="mlp.gate_proj",
)
_OPT = Architecture(
    "decoder.layers",
    "self_attn",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "fc1",
    "fc2",
    "num_heads",
    "ffn_dim",
    states_head_size=False,
)
_GPT2 = Architecture(
    "h",
    "attn",
    "attn.c_attn",  # query, key and value in one layer
    "attn.c_attn",
    "attn.c_attn",
    "attn.c_proj",
    "mlp.c_fc",
    "mlp.c_proj",
    "num_heads",
    "n_inner",
    states_head_size=False,
)
DECODERS = {"gpt2": _GPT2, "opt": _OPT} | dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA)
ARCHITECTURES = ENCODERS | DECODERS


@dataclass(frozen=True)
class Block:
    """The parts of one transformer layer, with its current number of heads and feed-forward neurons."""

    attention: Any
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear  # (hidden, heads * head_size)
    up: nn.Linear  # (neurons, hidden)
    down: nn.Linear  # (hidden, neurons)
    gate: nn.Linear | None = None  # (neurons, hidden)

    @property
    def head_size(self) -> int:
        """Dimensions of one head."""
        return _head_size(self.attention)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        fused = 3 if self.query is self.key else 1  # query, key and value in one layer
        return self.query.out_features // fused // self.head_size

    @property
    def head_groups(self) -> int:
        """Number of keys and values, each shared by as many query heads: as many as heads, if each has its own."""
        return self.heads if self.query is self.key else self.key.out_features // self.head_size

    @property
    def neurons(self) -> int:
        """Number of feed-forward neurons."""
        return self.up.out_features


def is_transformer(model: nn.Module) -> bool:
    """Whether `model` is a Hugging Face transformer of a type in `ARCHITECTURES`."""
    return getattr(getattr(model, "config", None), "model_type", None) in ARCHITECTURES


def is_decoder(model: nn.Module) -> bool:
    """Whether `model` is a Hugging Face transformer of a type in `DECODERS`, which reads from left to right."""
    return getattr(getattr(model, "config", None), "model_type", None) in DECODERS


def is_encoder(model: nn.Module) -> bool:
    """Whether `model` is a Hugging Face transformer of a type in `ENCODERS`."""
    return getattr(getattr(model, "config", None), "model_type", None) in ENCODERS


def require_encoder(model: nn.Module, what: str) -> None:
    """Raise UserError if `model` is a decoder; `what` is the part of the sentence before "a LlamaForCausalLM"."""
    if is_decoder(model):
        raise UserError(
            f"{what} a {type(model).__name__}, which reads from left to right; it takes an encoder of the type "
            f"{', '.join(ENCODERS)}."
        )


def architecture(model: nn.Module) -> Architecture:
    """Look up the submodule names of `model`. Raises UserError for a model that is no transformer of a known type."""
    if not is_transformer(model):
        raise UserError(
            f"A {type(model).__name__} has no attention heads or layers that can be cut; "
            f"it takes a transformer of the type {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[model.config.model_type]  # type: ignore[union-attr, index]


def layers(model: nn.Module) -> nn.ModuleList:
    """Return the transformer's list of layers."""
    name = architecture(model).layers
    return model.base_model.get_submodule(name)  # type: ignore[return-value, union-attr]


def blocks(model: nn.Module) -> list[Block]:
    """Return the parts of every layer, in order. Raises UserError if linear layers were decomposed before."""
    a = architecture(model)
    parts = (a.attention, a.query, a.key, a.value, a.output, a.up, a.down, *([a.gate] if a.gate else []))
    found = [Block(*(layer.get_submodule(part) for part in parts)) for layer in layers(model)]  # type: ignore[arg-type]
    if not all(isinstance(block.query, nn.Linear) and isinstance(block.up, nn.Linear) for block in found):
        raise UserError("The linear layers of this transformer are decomposed: prune it first, then decompose it.")
    return found


@contextlib.contextmanager
def record_hidden_states(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Record the hidden states before and after each layer, `(batch, length, hidden)`, of forward passes in the block.

    The option output_hidden_states of transformers is no alternative: it leaves its hooks in the model for good.
    """
    states: list[tuple[Tensor, Tensor]] = []
    named = {str(index): layer for index, layer in enumerate(layers(model))}
    with on_forward(named, lambda call: states.append((call.inputs[0], call.output_tensor))):
        yield states


def cut_heads(model: nn.Module, layer: int, keep: Sequence[int]) -> None:
    """Keep only the heads `keep` of one layer's attention; the logits equal those with the other heads masked.

    Where queries share keys and values, `keep` counts these, and all queries of each stay. If it is empty, one head
    stays with its output weights at zero, since transformers needs at least one.
    """
    block = blocks(model)[layer]
    shared = block.heads // block.head_groups * block.head_size  # rows of the queries of one key
    of_queries, of_keys = (_head_rows(keep or [0], size) for size in (shared, block.head_size))
    for projection, rows in ((block.query, of_queries), (block.key, of_keys), (block.value, of_keys)):
        index_select_layer(projection, rows, dim=0)
    index_select_layer(block.output, of_queries, dim=1)
    if not keep:
        nn.init.zeros_(block.output.weight)
    if attribute := architecture(model).heads:
        setattr(block.attention, attribute, block.heads)
    if hasattr(block.attention, "all_head_size"):
        block.attention.all_head_size = block.query.out_features
    update_config(model)


def cut_ffn(model: nn.Module, layer: int, keep: Sequence[int]) -> None:
    """Keep only the neurons `keep` of one layer's feed-forward part; the logits equal those with the others masked.

    If `keep` is empty, one neuron stays with its output weights at zero.
    """
    block = blocks(model)[layer]
    rows = torch.as_tensor(list(keep) or [0])
    for entering in filter(None, (block.up, block.gate)):
        index_select_layer(entering, rows, dim=0)
    index_select_layer(block.down, rows, dim=1)
    if not keep:
        nn.init.zeros_(block.down.weight)
    update_config(model)


def keep_layers(model: nn.Module, kept: Sequence[int]) -> None:
    """Keep only the layers at the indices `kept`, in their order. Raises UserError if there are none."""
    every = layers(model)
    if not kept:
        raise UserError("A transformer needs at least one layer; keep one.")
    chosen = [every[i] for i in sorted(kept)]
    every._modules.clear()
    every.extend(chosen)
    for index, block in enumerate(blocks(model)):
        if hasattr(block.attention, "layer_idx"):
            block.attention.layer_idx = index
    config: Any = model.config
    if kinds := getattr(config, "layer_types", None):  # Qwen2's layers attend to the whole text or to a window of it
        config.layer_types = [kinds[i] for i in sorted(kept)]
    parent = model.base_model.get_submodule(architecture(model).layers.rpartition(".")[0])  # type: ignore[union-attr]
    if hasattr(parent, "n_layers"):  # DistilBERT counts its layers there
        parent.n_layers = len(chosen)
    update_config(model)


def cut_hidden(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep only the dimensions `keep` of the hidden states, from the embeddings to the classifier.

    Layer norms then average over the dimensions that are left, so the logits differ from those of a masked model.
    Raises UserError if as many would be left as an Electra's embeddings have, which its config takes to need no
    projection.
    """
    size, index = hidden_size(model), torch.as_tensor(list(keep))
    embedding_size = getattr(model.config, "embedding_size", size)
    if len(index) == embedding_size != size:
        raise UserError(
            f"A hidden size of {embedding_size} cannot be told from that of the embeddings, which are projected to the "
            "hidden size: take another sparsity."
        )
    parts = blocks(model)
    # Heads * head_size, neurons or classes may be as many as there are hidden dimensions: these sides stay whole.
    inner_out = {m for b in parts for m in (b.query, b.key, b.value, b.up)} | {classifier(model)}
    inner_in = {m for b in parts for m in (b.output, b.down)}
    for module in model.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == size:
            index_select_layer(module, index, dim=1)
        elif isinstance(module, nn.LayerNorm) and module.normalized_shape == (size,):
            index_select_layer(module, index, dim=0)
        elif isinstance(module, nn.Linear):
            if module.in_features == size and module not in inner_in:
                index_select_layer(module, index, dim=1)
            if module.out_features == size and module not in inner_out:
                index_select_layer(module, index, dim=0)
    update_config(model)


def classifier(model: nn.Module) -> nn.Linear:
    """Return the layer that outputs the logits: the last linear one."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def hidden_size(model: nn.Module) -> int:
    """Return the current number of hidden dimensions."""
    return blocks(model)[0].query.in_features


def _head_size(attention: Any) -> int:
    """Dimensions of one head."""
    return int(attention.head_dim if hasattr(attention, "head_dim") else attention.attention_head_size)


@torch.no_grad()
def index_select_layer(module: Any, index: Tensor, dim: int) -> None:
    """Keep the entries `index` `(kept,)` of a layer's weight along `dim`, in place, and of its mask.

    For dim 0 (the outputs) it keeps those of the bias as well. The size attributes of the layer are updated.
    """
    index = index.to(module.weight.device)
    module.weight = _index_select(module.weight, index, dim)
    if getattr(module, "mask", None) is not None:
        module.mask = module.mask.index_select(dim, index)
    if dim == 0 and module.bias is not None:
        module.bias = _index_select(module.bias, index, 0)
    for attribute, axis in (("out_features", 0), ("in_features", 1), ("embedding_dim", 1)):
        if hasattr(module, attribute):
            setattr(module, attribute, module.weight.shape[axis])
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _index_select(parameter: Tensor, index: Tensor, dim: int) -> nn.Parameter:
    """Build a parameter of the entries `index` along `dim`; it trains if `parameter` did."""
    return nn.Parameter(parameter.index_select(dim, index), requires_grad=parameter.requires_grad)


def _head_rows(heads: Iterable[int], size: int) -> Tensor:
    """Return the rows of the query, key and value weights that belong to `heads`, each of `size` rows."""
    return torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads])


def update_config(model: nn.Module) -> None:
    """Write the current sizes of the model to its config, in the form that the module's docstring describes."""
    config: Any = model.config
    parts = blocks(model)
    heads, neurons, size = [b.heads for b in parts], [b.neurons for b in parts], hidden_size(model)
    if is_decoder(model):
        _update_decoder_config(model, parts)
        return
    # Electra projects its embeddings where the two sizes differ: equal ones have to stay equal.
    if getattr(config, "embedding_size", None) == config.hidden_size:
        config.embedding_size = size
    config.num_hidden_layers, config.hidden_size = len(parts), size
    if len(set(heads)) == 1 and size % heads[0] == 0:
        config.num_attention_heads = heads[0]
    # transformers builds nothing from a config whose heads do not divide its hidden size, and artifacts are built from
    # the config before they are restored.
    config.num_attention_heads = math.gcd(config.num_attention_heads, size)
    if len(set(neurons)) == 1:
        setattr(config, architecture(model).width, neurons[0])
    implied = size // config.num_attention_heads == parts[0].head_size and set(heads) == {config.num_attention_heads}
    _set_or_delete(config, "heads_per_layer", None if implied else heads)
    _set_or_delete(config, "ffn_per_layer", None if len(set(neurons)) == 1 else neurons)


def _update_decoder_config(model: nn.Module, parts: Sequence[Block]) -> None:
    config: Any = model.config
    config.num_hidden_layers = len(parts)
    heads, neurons = [b.heads for b in parts], [b.neurons for b in parts]
    if len(set(neurons)) == 1:
        setattr(config, architecture(model).width, neurons[0])
    _set_or_delete(config, "ffn_per_layer", None if len(set(neurons)) == 1 else neurons)
    if not architecture(model).states_head_size:
        return
    # transformers builds no Llama whose heads do not divide its hidden size: that of the next smaller number is built,
    # and restored from the artifact, as with BERT.
    size, shared = hidden_size(model), parts[0].heads // parts[0].head_groups
    told = next(n for n in range(min(b.head_groups for b in parts), 0, -1) if size % (n * shared) == 0)
    config.head_dim = parts[0].head_size
    config.num_attention_heads, config.num_key_value_heads = told * shared, told
    _set_or_delete(config, "heads_per_layer", None if set(heads) == {told * shared} else heads)


def entries_unknown_to_transformers(config: Any) -> list[str]:
    """Return the names of config entries that `update_config` wrote and only this lab reads."""
    return [name for name in ("heads_per_layer", "ffn_per_layer") if hasattr(config, name)]


def emptied_layers(model: nn.Module) -> set[str]:
    """Return the names of output layers whose attention or feed-forward part was cut to nothing.

    These are the layers with the inputs of a single head or neuron, all of whose weights are zero. Quantized layers
    count too; decomposed ones, which have no weight of their own, do not.
    """
    if not is_transformer(model):
        return set()
    names, a = {module: name for name, module in model.named_modules()}, architecture(model)
    least_inputs: dict[nn.Module, Any] = {}  # of output layers, with one head or one neuron left
    for layer in layers(model):
        attention: Any = layer.get_submodule(a.attention)
        shared = getattr(attention, "num_key_value_groups", 1)  # queries of one key
        least_inputs[layer.get_submodule(a.output)] = shared * _head_size(attention)
        least_inputs[layer.get_submodule(a.down)] = 1
    weights = {names[part]: (getattr(part, "weight", None), least) for part, least in least_inputs.items()}
    return {name for name, (w, least) in weights.items() if w is not None and w.shape[1] == least and not w.any()}


def _set_or_delete(config: Any, name: str, value: list[int] | None) -> None:
    if value is not None:
        setattr(config, name, value)
    elif hasattr(config, name):
        delattr(config, name)
