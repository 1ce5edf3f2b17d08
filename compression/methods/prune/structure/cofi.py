"""Gates on all units of a transformer: the two halves of each layer, heads, neurons, hidden dimensions.

Xia et al. 2022, arXiv:2204.00408, section 3.1. The gates are part of the model while it trains. Then they are
discretized, their values are multiplied into the weights, and what is closed is cut: a plain, smaller model remains.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from compression.methods.prune.structure.hard_concrete import Gates, open_probability
from compression.nn import transformer
from compression.nn.graph import replace_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

INITIAL_LOG_ALPHA = 3.0  # open with a probability of 0.99


class EncoderGates(nn.Module):
    """The gates of a transformer, by what they close, and the number of weights that they leave.

    `attention` and `ffn` have a gate for each layer, `heads` and `neurons` a row of gates for each layer, `hidden` one
    row for the model.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        blocks, initial = transformer.blocks(model), INITIAL_LOG_ALPHA
        self.head_sizes = [block.head_size for block in blocks]
        self.attention, self.ffn = Gates(len(blocks), initial), Gates(len(blocks), initial)
        self.heads = nn.ModuleList(Gates(block.heads, initial) for block in blocks)
        self.neurons = nn.ModuleList(Gates(block.neurons, initial) for block in blocks)
        # The library's attention wants a hidden size that its number of heads divides.
        self.hidden = Gates(transformer.hidden_size(model), initial, multiple=model.config.num_attention_heads)
        self.total = float(self.count_weights([torch.ones_like(row.log_alpha) for row in self.rows()]))

    def rows(self) -> list[Gates]:
        """All rows of gates, from coarse to fine: attention, ffn, hidden, heads of each layer, neurons of each layer.

        The functions below that take or give a tensor for each row have this order.
        """
        return cast("list[Gates]", [self.attention, self.ffn, self.hidden, *self.heads, *self.neurons])

    def sample(self) -> None:
        """Draw new values of all gates."""
        for row in self.rows():
            row.sample()

    def count_weights(self, values: Sequence[Tensor]) -> Tensor:
        """The weights of the attentions and feed-forward parts, a scalar, each counted by the product of its gates.

        `values` in [0, 1], a tensor for each row (Xia et al. 2022, eq. 3).
        """
        attention, ffn, hidden, *rest = values
        heads, neurons = rest[: len(self.heads)], rest[len(self.heads) :]
        # query, key, value and output have head_size rows or columns for each head; up and down one for each neuron
        in_attention = torch.stack([4 * size * h.sum() for size, h in zip(self.head_sizes, heads, strict=True)])
        in_ffn = torch.stack([2 * n.sum() for n in neurons])
        return hidden.sum() * ((attention * in_attention).sum() + (ffn * in_ffn).sum())

    def expected_sparsity(self) -> Tensor:
        """One minus the expected share of weights, differentiable; the gates are independent."""
        return 1 - self.count_weights([open_probability(row.log_alpha) for row in self.rows()]) / self.total

    def sparsity(self, values: Sequence[Tensor]) -> float:
        """One minus the share of weights of which every gate is open."""
        return 1 - self.count_weights([(z > 0).float() for z in values]).item() / self.total

    @torch.no_grad()
    def discretize(self, sparsity: float) -> list[Tensor]:
        """Discretized values of each row that meet `sparsity`: all log alpha are shifted alike until they do.

        One closed layer may be more than the target allows. So rows are fixed from coarse to fine, each at the shift
        that leaves slightly too much, and the finer ones are shifted further.
        """
        rows, fixed = self.rows(), list[Tensor]()
        for index, row in enumerate(rows):
            # At these shifts all gates are closed, and all open.
            low, high = -50.0, 50.0
            for _ in range(50):  # the interval of 100 shrinks below the spacing of floats
                middle = (low + high) / 2
                values = [*fixed, *(r.discretized(middle) for r in rows[index:])]
                # `high` is always a shift that leaves too much open, `low` one that leaves too little.
                low, high = (low, middle) if self.sparsity(values) <= sparsity else (middle, high)
            fixed.append(row.discretized(high))
        return fixed


class GatedLinear(nn.Module):
    """A linear layer between gates on its inputs and on its outputs, where there are any."""

    def __init__(self, layer: nn.Module, before: nn.Module | None, after: nn.Module | None) -> None:
        super().__init__()
        self.layer, self.before, self.after = layer, before, after

    def forward(self, input: Tensor) -> Tensor:
        """The gated outputs."""
        outputs: Tensor = self.layer(input if self.before is None else input * self.before())
        return outputs if self.after is None else outputs * self.after()


class GatedNorm(nn.Module):
    """A layer norm over the dimensions whose gates are open; the outputs of the others are zero."""

    def __init__(self, layer: nn.LayerNorm, after: nn.Module) -> None:
        super().__init__()
        self.layer, self.after = layer, after

    def forward(self, input: Tensor) -> Tensor:
        """The normalised and gated input."""
        # Mean and variance over the open dimensions alone: those are what the plain norm sees once the others are cut.
        # In single precision, as autocast runs layer norms.
        gate, input = self.after(), input.float()
        is_open = (gate > 0).float()
        count = is_open.sum().clamp_min(1)
        mean = (input * is_open).sum(-1, keepdim=True) / count
        centred = input - mean
        variance = (centred.square() * is_open).sum(-1, keepdim=True) / count
        normed = centred * (variance + self.layer.eps).rsqrt() * self.layer.weight + self.layer.bias
        gated: Tensor = normed * gate
        return gated


class RepeatedGates(nn.Module):
    """Each gate `times` in a row: a head's gate for each of its dimensions."""

    def __init__(self, gates: Gates, times: int) -> None:
        super().__init__()
        self.gates, self.times = gates, times

    def forward(self) -> Tensor:
        """The present values, `(count * times,)`."""
        values: Tensor = self.gates().repeat_interleave(self.times)
        return values


class SingleGate(nn.Module):
    """One gate of a row."""

    def __init__(self, gates: Gates, index: int) -> None:
        super().__init__()
        self.gates, self.index = gates, index

    def forward(self) -> Tensor:
        """The present value, a scalar."""
        value: Tensor = self.gates()[self.index]
        return value


def attach_gates(model: nn.Module, gates: EncoderGates) -> None:
    """Wrap the layers of `model` that the gates act on, in place."""
    names = {id(module): name for name, module in model.named_modules()}
    blocks, norms, linears = transformer.blocks(model), list(hidden_norms(model)), list(hidden_linears(model))
    for i, block in enumerate(blocks):
        heads = RepeatedGates(cast("Gates", gates.heads[i]), block.head_size)
        # Behind the output's bias too: a closed layer adds nothing to the residual stream.
        replace_module(model, names[id(block.output)], GatedLinear(block.output, heads, SingleGate(gates.attention, i)))
        replace_module(
            model, names[id(block.down)], GatedLinear(block.down, gates.neurons[i], SingleGate(gates.ffn, i))
        )
    for norm in norms:
        replace_module(model, names[id(norm)], GatedNorm(norm, gates.hidden))
    for linear in linears:
        replace_module(model, names[id(linear)], GatedLinear(linear, None, gates.hidden))


def hidden_norms(model: nn.Module) -> Iterator[nn.LayerNorm]:
    """The norms of the hidden states: whatever reads the hidden states reads the output of one of these."""
    size = transformer.hidden_size(model)
    return (m for m in model.modules() if isinstance(m, nn.LayerNorm) and m.normalized_shape == (size,))


def hidden_linears(model: nn.Module) -> Iterator[nn.Linear]:
    """Linear layers outside the encoder with as many outputs as there are hidden dimensions: the pooler."""
    size, blocks = transformer.hidden_size(model), transformer.blocks(model)
    excluded = {m for b in blocks for m in (b.query, b.key, b.value, b.output, b.up, b.down)}
    excluded.add(transformer.classifier(model))
    linears = (m for m in model.modules() if isinstance(m, nn.Linear) and m not in excluded)
    return (m for m in linears if m.out_features == size)


@torch.no_grad()
def detach_gates(model: nn.Module, gates: EncoderGates, values: Sequence[Tensor]) -> nn.Module:
    """Multiply the discretized `values` of each row into the weights, cut what is closed, and remove the gates."""
    for row, value in zip(gates.rows(), values, strict=True):
        # In evaluation a row would give its own discretization, without the shifts that met the target.
        row.train()
        row.sampled = value  # the gates in the model now have these values
    # A list, since modules are replaced on the way. Values go into the weights before anything is cut: gates have the
    # sizes of the whole model.
    for name, module in list(model.named_modules()):
        if isinstance(module, (GatedLinear, GatedNorm)):
            fold_gates(module)
            replace_module(model, name, module.layer)
    attention, ffn, hidden, *rest = [(z > 0).nonzero().flatten().tolist() for z in values]
    for i in range(len(gates.heads)):
        cut_attention(model, i, rest[i] if i in attention else [])
        transformer.cut_ffn(model, i, rest[len(gates.heads) + i] if i in ffn else [])
    if len(hidden) < len(values[2]):
        transformer.cut_hidden(model, hidden)
    return model


def cut_attention(model: nn.Module, layer: int, keep: Sequence[int]) -> None:
    """Keep the heads `keep` of a layer; with none, a head of one dimension and zero output weights has to stay."""
    transformer.cut_heads(model, layer, keep)
    if not keep:
        # `cut_heads` leaves a head with zero output weights; of its dimensions (64 in BERT) one is enough.
        block, first = transformer.blocks(model)[layer], torch.tensor([0])
        for projection in (block.query, block.key, block.value):
            transformer.index_select_layer(projection, first, dim=0)
        transformer.index_select_layer(block.output, first, dim=1)
        block.attention.attention_head_size = 1
        if hasattr(block.attention, "all_head_size"):
            block.attention.all_head_size = 1


def fold_gates(gated: GatedLinear | GatedNorm) -> None:
    """Multiply the gates of a layer into its weight and bias, in place."""
    layer: Any = gated.layer
    if isinstance(gated, GatedLinear) and gated.before is not None:
        layer.weight.mul_(gated.before())
    if gated.after is not None:
        after = gated.after()
        # (outputs,) gates scale the rows of a matrix; a norm's vector and a single gate broadcast as they are.
        layer.weight.mul_(after.unsqueeze(-1) if layer.weight.ndim == 2 and after.ndim else after)
        layer.bias.mul_(after)
