"""Gates on everything a transformer consists of: layers' halves, heads, neurons, hidden dimensions.

Xia et al. 2022, arXiv:2204.00408, section 3.1. The gates hang in the model while it trains; `settle` decides them,
and what is left is a plain, smaller model with the gates' values multiplied into its weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from compression.methods.prune.structure.hard_concrete import Gates, open_probability
from compression.nn import transformer

START = 3.0  # log alpha: open with a probability of 0.99


class Masks(nn.Module):
    """The gates of a transformer, by what they close, and the weights that each combination stands for.

    `attention` and `ffn` have a gate a layer, `heads` and `neurons` a row of gates for each layer, `hidden` one row.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        parts = transformer.blocks(model)
        self.head_sizes = [b.head_size for b in parts]
        self.attention, self.ffn = Gates(len(parts), START), Gates(len(parts), START)
        self.heads = nn.ModuleList(Gates(b.heads, START) for b in parts)
        self.neurons = nn.ModuleList(Gates(b.neurons, START) for b in parts)
        # the library's attention wants a hidden size that its number of heads divides
        self.hidden = Gates(transformer.hidden_size(model), START, multiple=model.config.num_attention_heads)
        self.total = float(self.size([torch.ones_like(g.log_alpha) for g in self.every()]))

    def every(self) -> list[Gates]:
        """All rows, the coarse before the fine, and last what each layer has."""
        return cast("list[Gates]", [self.attention, self.ffn, self.hidden, *self.heads, *self.neurons])

    def draw(self) -> None:
        for gates in self.every():
            gates.draw()

    def size(self, opened: Sequence[Tensor]) -> Tensor:
        """Weights of the attentions and feed-forward parts, given how open each of `every` is (Xia et al., eq. 3)."""
        attention, ffn, hidden, *rest = opened
        heads, neurons = rest[: len(self.heads)], rest[len(self.heads) :]
        inner = torch.stack([4 * size * h.sum() for size, h in zip(self.head_sizes, heads, strict=True)])
        between = torch.stack([2 * n.sum() for n in neurons])
        return hidden.sum() * ((attention * inner).sum() + (ffn * between).sum())

    def expected_sparsity(self) -> Tensor:
        """One minus the expected share of weights, which gradients can follow: gates are independent."""
        return 1 - self.size([open_probability(g.log_alpha) for g in self.every()]) / self.total

    def sparsity(self, decided: Sequence[Tensor]) -> float:
        """One minus the share of weights in which every gate is open."""
        return 1 - self.size([(z > 0).float() for z in decided]).item() / self.total

    @torch.no_grad()
    def settle(self, sparsity: float) -> list[Tensor]:
        """Decide every gate, all log alpha shifted alike so that the target is met; what `every` gives, in its order.

        One closed layer may be more than is missing. So rows are settled from coarse to fine, each on the side where
        too much is left, and the finer ones shifted further.
        """
        rows, settled = self.every(), list[Tensor]()
        for index, row in enumerate(rows):
            low, high = -50.0, 50.0
            for _ in range(50):
                middle = (low + high) / 2
                found = [*settled, *(r.decide(middle) for r in rows[index:])]
                low, high = (low, middle) if self.sparsity(found) <= sparsity else (middle, high)
            settled.append(row.decide(high))
        return settled


class Gated(nn.Module):
    """A linear layer between gates on its inputs and on its outputs, where there are any."""

    def __init__(self, layer: nn.Module, before: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, inputs: Tensor) -> Tensor:
        outputs = self.layer(inputs if self.before is None else inputs * self.before())
        return outputs if self.after is None else outputs * self.after()


class GatedNorm(nn.Module):
    """A layer norm over the dimensions whose gates are open; the others come out as zero."""

    def __init__(self, layer: nn.LayerNorm, after: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = layer, after

    def forward(self, inputs: Tensor) -> Tensor:
        gate, inputs = self.after(), inputs.float()
        opened = (gate > 0).float()
        count = opened.sum().clamp_min(1)
        mean = (inputs * opened).sum(-1, keepdim=True) / count
        centred = inputs - mean
        variance = (centred.square() * opened).sum(-1, keepdim=True) / count
        return (centred * (variance + self.layer.eps).rsqrt() * self.layer.weight + self.layer.bias) * gate


class Repeated(nn.Module):
    """Each gate for `times` neighbouring features: a head for its dimensions."""

    def __init__(self, gates: Gates, times: int) -> None:
        super().__init__()
        self.gates, self.times = gates, times

    def forward(self) -> Tensor:
        return self.gates().repeat_interleave(self.times)


class One(nn.Module):
    """A single gate of a row."""

    def __init__(self, gates: Gates, index: int) -> None:
        super().__init__()
        self.gates, self.index = gates, index

    def forward(self) -> Tensor:
        return self.gates()[self.index]


def attach(model: nn.Module, masks: Masks) -> None:
    """Hang the gates into `model`."""
    names = {id(module): name for name, module in model.named_modules()}
    parts, norms, linears = transformer.blocks(model), list(hidden_norms(model)), list(hidden_linears(model))
    for i, block in enumerate(parts):
        heads = Repeated(cast(Gates, masks.heads[i]), block.head_size)
        model.set_submodule(names[id(block.output)], Gated(block.output, heads, One(masks.attention, i)))
        model.set_submodule(names[id(block.down)], Gated(block.down, masks.neurons[i], One(masks.ffn, i)))
    for norm in norms:
        model.set_submodule(names[id(norm)], GatedNorm(norm, masks.hidden))
    for linear in linears:
        model.set_submodule(names[id(linear)], Gated(linear, None, masks.hidden))


def hidden_norms(model: nn.Module) -> Iterator[nn.LayerNorm]:
    """The norms of the hidden states: all that reads them reads a norm's output."""
    size = transformer.hidden_size(model)
    return (m for m in model.modules() if isinstance(m, nn.LayerNorm) and m.normalized_shape == (size,))


def hidden_linears(model: nn.Module) -> Iterator[nn.Linear]:
    """Layers outside the encoder's that give as many features: the pooler, whose output is cut with the rest."""
    size, parts = transformer.hidden_size(model), transformer.blocks(model)
    inner = {m for b in parts for m in (b.query, b.key, b.value, b.output, b.up, b.down)} | {
        transformer.classifier(model)
    }
    linears = (m for m in model.modules() if isinstance(m, nn.Linear) and m not in inner)
    return (m for m in linears if m.out_features == size)


@torch.no_grad()
def detach(model: nn.Module, masks: Masks, settled: Sequence[Tensor]) -> nn.Module:
    """Take the gates out: multiply their values into the weights, then cut what is closed."""
    for row, value in zip(masks.every(), settled, strict=True):
        row.train()
        row.drawn = value  # what the gates in the model give from here on
    for name, module in list(model.named_modules()):
        if isinstance(module, (Gated, GatedNorm)):
            fold(module)
            model.set_submodule(name, module.layer)
    attention, ffn, hidden, *rest = [(z > 0).nonzero().flatten().tolist() for z in settled]
    for i in range(len(masks.heads)):
        cut_attention(model, i, rest[i] if i in attention else [])
        transformer.cut_ffn(model, i, rest[len(masks.heads) + i] if i in ffn else [])
    if len(hidden) < len(settled[2]):
        transformer.cut_hidden(model, hidden)
    return model


def cut_attention(model: nn.Module, layer: int, keep: Sequence[int]) -> None:
    """Keep the heads `keep`; with none, the one that must stay has a single dimension, and output weights of zero."""
    transformer.cut_heads(model, layer, keep)
    if not keep:
        block, first = transformer.blocks(model)[layer], torch.tensor([0])
        for projection in (block.query, block.key, block.value):
            transformer.index_select_layer(projection, first, dim=0)
        transformer.index_select_layer(block.output, first, dim=1)
        block.attention.attention_head_size = 1
        if hasattr(block.attention, "all_head_size"):
            block.attention.all_head_size = 1


def fold(gated: Any) -> None:
    """Multiply the gates into the layer's weight and bias."""
    layer = gated.layer
    if getattr(gated, "before", None) is not None:
        layer.weight.mul_(gated.before())
    if gated.after is not None:
        after = gated.after()
        layer.weight.mul_(after.unsqueeze(-1) if layer.weight.ndim == 2 and after.ndim else after)
        layer.bias.mul_(after)
