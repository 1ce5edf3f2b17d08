"""Cutting transformers: heads of an attention, neurons of a feed-forward part, hidden dimensions, whole layers.

Every cut is done in place, on the weights, their masks and the numbers that the modules keep of themselves; then the
model's config is made to tell the truth. A BERT's config has one `num_attention_heads`, `intermediate_size`,
`hidden_size` and `num_hidden_layers`, and takes every head to be hidden_size / num_attention_heads wide. So:

- `from_pretrained` reads a model whose layers are gone, whose feed-forward parts all have the same width, or whose
  heads and hidden size were cut together so that their quotient stayed the size of a head;
- heads cut without the hidden size, or layers that differ, it refuses for their shapes. Such a model is reloaded by
  `artifacts.load`; `heads_per_layer` and `ffn_per_layer` in its config say what each layer has.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from compression.errors import UserError


@dataclass(frozen=True)
class Architecture:
    """Where the parts of an architecture stand: the list of layers in the base model, the parts in a layer."""

    layers: str
    attention: str  # holds the number of heads; query, key and value are its children
    query: str
    key: str
    value: str
    output: str
    up: str
    down: str
    heads: str  # the attribute of the attention with the number of heads
    width: str = "intermediate_size"  # the config's name for the neurons between up and down


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
ARCHITECTURES = {"distilbert": _DISTILBERT} | dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _BERT)


@dataclass(frozen=True)
class Block:
    """One layer of a transformer by its parts; `heads` and the neurons are what it has now."""

    attention: Any
    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    output: nn.Linear  # (hidden, heads * head_size)
    up: nn.Linear  # (neurons, hidden)
    down: nn.Linear  # (hidden, neurons)

    @property
    def head_size(self) -> int:
        return self.attention.attention_head_size

    @property
    def heads(self) -> int:
        return self.query.out_features // self.head_size

    @property
    def neurons(self) -> int:
        return self.up.out_features


def is_transformer(model: nn.Module) -> bool:
    """Whether the functions below know their way through `model`."""
    return getattr(getattr(model, "config", None), "model_type", None) in ARCHITECTURES


def architecture(model: nn.Module) -> Architecture:
    """Where its parts stand; UserError for a model that is no transformer of a known form."""
    if not is_transformer(model):
        raise UserError(
            f"A {type(model).__name__} has no attention heads or layers that can be cut; "
            f"it takes a transformer of the form {', '.join(ARCHITECTURES)}."
        )
    return ARCHITECTURES[model.config.model_type]  # type: ignore[union-attr, index]


def layers(model: nn.Module) -> nn.ModuleList:
    """The list of the transformer's layers."""
    where = architecture(model).layers
    return model.base_model.get_submodule(where)  # type: ignore[return-value, union-attr, operator]


def blocks(model: nn.Module) -> list[Block]:
    """The parts of every layer, in their order; UserError where one is no linear layer any more."""
    n = architecture(model)
    parts = (n.attention, n.query, n.key, n.value, n.output, n.up, n.down)
    found = [Block(*(layer.get_submodule(part) for part in parts)) for layer in layers(model)]  # type: ignore[arg-type]
    if not all(isinstance(block.query, nn.Linear) and isinstance(block.up, nn.Linear) for block in found):
        raise UserError("The linear layers of this transformer were taken apart: prune it first, then decompose it.")
    return found


@contextlib.contextmanager
def record_hidden_states(model: nn.Module) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """What goes into each layer and what comes out, `(batch, length, hidden)`, of the forward passes within.

    The library's own output_hidden_states leaves its hooks in the model for good.
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def look(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        seen.append((given[0], output[0] if isinstance(output, tuple) else output))

    hooks = [layer.register_forward_hook(look) for layer in layers(model)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def cut_heads(model: nn.Module, layer: int, keep: Sequence[int]) -> None:
    """Keep the heads `keep` of one layer's attention; the logits are those of the model with the others masked.

    With nothing to keep, one head stays with its output weights at zero: no attention in the library can do without.
    """
    block = blocks(model)[layer]
    rows = _spread(keep or [0], block.head_size)
    for projection in (block.query, block.key, block.value):
        index_select_layer(projection, rows, dim=0)
    index_select_layer(block.output, rows, dim=1)
    if not keep:
        nn.init.zeros_(block.output.weight)
    setattr(block.attention, architecture(model).heads, block.heads)
    if hasattr(block.attention, "all_head_size"):
        block.attention.all_head_size = block.query.out_features
    update_config(model)


def cut_ffn(model: nn.Module, layer: int, keep: Sequence[int]) -> None:
    """Keep the neurons `keep` of one layer's feed-forward part; the logits are those with the others masked.

    With nothing to keep, one neuron stays with its output weights at zero.
    """
    block = blocks(model)[layer]
    rows = torch.as_tensor(list(keep) or [0])
    index_select_layer(block.up, rows, dim=0)
    index_select_layer(block.down, rows, dim=1)
    if not keep:
        nn.init.zeros_(block.down.weight)
    update_config(model)


def keep_layers(model: nn.Module, kept: Sequence[int]) -> None:
    """Keep the layers at the indices `kept`, in their order; UserError if none is left."""
    every = layers(model)
    if not kept:
        raise UserError("A transformer needs at least one layer; keep one.")
    chosen = [every[i] for i in sorted(kept)]
    every._modules.clear()
    every.extend(chosen)
    for index, block in enumerate(blocks(model)):
        if hasattr(block.attention, "layer_idx"):
            block.attention.layer_idx = index
    holder = model.base_model.get_submodule(architecture(model).layers.rpartition(".")[0])  # type: ignore[union-attr, operator]
    if hasattr(holder, "n_layers"):
        holder.n_layers = len(chosen)
    update_config(model)


def cut_hidden(model: nn.Module, keep: Sequence[int]) -> None:
    """Keep the dimensions `keep` of the hidden states, from the embeddings to the classifier.

    Layer norms then take mean and variance over what is left, so the logits are not those of a masked model.
    """
    size, index = hidden_size(model), torch.as_tensor(list(keep))
    parts = blocks(model)
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
    """The layer that gives the logits: the last linear one."""
    return [m for m in model.modules() if isinstance(m, nn.Linear)][-1]


def hidden_size(model: nn.Module) -> int:
    """Dimensions of the hidden states as they are now."""
    return blocks(model)[0].query.in_features


@torch.no_grad()
def index_select_layer(module: Any, index: Tensor, dim: int) -> None:
    """Keep the entries `index` of a layer's weight along `dim`, in place, with its mask and (along 0) its bias."""
    index = index.to(module.weight.device)
    module.weight = _selected(module.weight, index, dim)
    if getattr(module, "mask", None) is not None:
        module.mask = module.mask.index_select(dim, index)
    if dim == 0 and module.bias is not None:
        module.bias = _selected(module.bias, index, 0)
    for attribute, axis in (("out_features", 0), ("in_features", 1), ("embedding_dim", 1)):
        if hasattr(module, attribute):
            setattr(module, attribute, module.weight.shape[axis])
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(module.weight.shape)


def _selected(parameter: Tensor, index: Tensor, dim: int) -> nn.Parameter:
    return nn.Parameter(parameter.index_select(dim, index), requires_grad=parameter.requires_grad)


def _spread(heads: Iterable[int], size: int) -> Tensor:
    """Rows of the projections that belong to `heads`."""
    return torch.cat([torch.arange(h * size, (h + 1) * size) for h in heads])


def update_config(model: nn.Module) -> None:
    """Make the config say what the model has; the form that the module's docstring describes."""
    config: Any = model.config
    parts = blocks(model)
    heads, neurons, size = [b.heads for b in parts], [b.neurons for b in parts], hidden_size(model)
    config.num_hidden_layers, config.hidden_size = len(parts), size
    if len(set(heads)) == 1 and size % heads[0] == 0:
        config.num_attention_heads = heads[0]
    # A config whose heads do not divide its hidden size builds nothing, and artifacts build before they restore.
    config.num_attention_heads = math.gcd(config.num_attention_heads, size)
    if len(set(neurons)) == 1:
        setattr(config, architecture(model).width, neurons[0])
    implied = size // config.num_attention_heads == parts[0].head_size and set(heads) == {config.num_attention_heads}
    _remark(config, "heads_per_layer", None if implied else heads)
    _remark(config, "ffn_per_layer", None if len(set(neurons)) == 1 else neurons)


def entries_unknown_to_transformers(config: Any) -> list[str]:
    """The entries of a config that only this lab reads."""
    return [name for name in ("heads_per_layer", "ffn_per_layer") if hasattr(config, name)]


def emptied_layers(model: nn.Module) -> set[str]:
    """The output layers of attentions and feed-forward parts that were cut to nothing, one head or neuron for show.

    Layers that are no `nn.Linear` any more, but have a weight, count too.
    """
    if not is_transformer(model):
        return set()
    known, n = {module: name for name, module in model.named_modules()}, architecture(model)
    left: dict[nn.Module, Any] = {}
    for layer in layers(model):
        left[layer.get_submodule(n.output)] = layer.get_submodule(n.attention).attention_head_size
        left[layer.get_submodule(n.down)] = 1
    weights = {known[part]: (getattr(part, "weight", None), width) for part, width in left.items()}
    return {name for name, (w, width) in weights.items() if w is not None and w.shape[1] == width and not w.any()}


def _remark(config: Any, name: str, value: list[int] | None) -> None:
    if value is not None:
        setattr(config, name, value)
    elif hasattr(config, name):
        delattr(config, name)
