"""Mixed precision: each layer gets the width that it needs, within a budget of bytes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from compression import figures
from compression.context import Context
from compression.errors import UserError
from compression.layers import Add, weight
from compression.methods.base import Method
from compression.methods.quantize.calibration import batches, observe
from compression.methods.quantize.folding import fold_batch_norms, relu_before_pool
from compression.methods.quantize.knapsack import Option, assign
from compression.methods.quantize.skipping import tell_recurrent
from compression.methods.quantize.static import Static
from compression.params import param
from compression.quantized import Numbers, QuantEmbedding, dequantize, merge, quantize, split
from compression.quantized.packing import packed_size
from compression.tasks.task import Split, Task, forward, predict

Sensitivity = dict[tuple[str, int], dict[str, float]]  # layer and width -> loss, quality and Fisher cost


@dataclass(frozen=True)
class Mixed(Method):
    """Give each layer one of several widths, so that all together keep to a budget and lose the least.

    Each layer is tried alone at each width, which gives the rise of the validation loss, and a cheap proxy that
    needs only gradients: the rounding error weighted by the Fisher information, as in Dong et al. 2020,
    arXiv:1911.03852, with the empirical Fisher for the Hessian. The sums of these are then minimised exactly, by
    dynamic programming (a multiple-choice knapsack); ranges are chosen as in static. The budget is one of bytes alone:
    integer kernels multiply bytes whatever their codes' width, so that widths do not change the time.
    """

    family: ClassVar[str] = "quantize"
    seals: ClassVar[bool] = True

    widths: str = param("2/4/8", "bits that a layer may get, 1 to 8, separated by /")
    budget: float = param(
        0.15,
        "bytes of the weights, scales included, as a share of those in 32 bits",
        interval="(0, 1]",
        search=(0.08, 0.25),
    )
    by: str = param("loss", "what is minimised: measured rise of the loss, or the proxy", choices=("loss", "fisher"))
    activation_bits: int = param(8, "bits of an activation", interval="[2, 8]", search=(4, 8))
    examples: int = param(1000, "validation examples to try the widths on", interval="[1, inf)")
    calibration_samples: int = param(512, "training examples to see activations and gradients of", interval="[1, inf)")
    skip: str = param("", "layers to leave as they are: names, or beginnings of names, separated by /")

    def __post_init__(self) -> None:
        super().__post_init__()
        parse(self.widths)

    def at(self, bits: int) -> Static:
        """Static quantization with this width."""
        return Static(
            bits=bits,
            activation_bits=self.activation_bits,
            calibration_samples=self.calibration_samples,
            skip=self.skip,
        )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device).eval()
        fold_batch_norms(model)
        relu_before_pool(model)
        layers = self.at(8).layers(model, nn.Conv2d, nn.Linear, nn.Embedding)
        tell_recurrent(model, context.record)
        found = self.sensitivity(model, layers, context)
        options = self.options(layers, found)
        budget = int(self.budget * sum(4 * weight(m).numel() for m in layers.values()))
        chosen = {name: option.bits for name, option in assign(options, budget).items()}
        context.record.table("widths", table(options, found, chosen))
        context.record.figure("widths", picture(found, chosen, self.by))
        return self.converted(model, layers, chosen, context)

    def numbers(self, layer: nn.Module, bits: int) -> Numbers:
        """What the weight of a layer is rounded to at a width."""
        return self.at(bits).weight_numbers(layer, None if isinstance(layer, nn.Embedding) else self.activation_bits)

    def sensitivity(self, model: nn.Module, layers: dict[str, nn.Module], context: Context) -> Sensitivity:
        """What each layer alone at each width does."""
        validation = context.task.validation
        order = torch.randperm(len(validation), generator=torch.Generator().manual_seed(context.seed))
        some = validation.take(order[: self.examples]).to(context.device)
        information = fisher(model, layers, context, self.calibration_samples)
        start = judged(model, some, context.task)
        found: Sensitivity = {}
        for name, layer in layers.items():
            for bits in parse(self.widths):
                values = rounded(weight(layer), self.numbers(layer, bits))
                proxy = (information[name] * (values - weight(layer)).square()).sum().item() / 2
                with replaced(layer, values):
                    now = judged(model, some, context.task)
                found[name, bits] = {
                    "loss": now["loss"] - start["loss"],
                    "quality": now["quality"] - start["quality"],
                    "fisher": proxy,
                }
        return found

    def options(self, layers: dict[str, nn.Module], found: Sensitivity) -> dict[str, list[Option]]:
        """Sizes and costs for the knapsack; a loss that falls by chance counts as one that stays."""
        made: dict[str, list[Option]] = {name: [] for name in layers}
        for (name, bits), costs in found.items():
            layer = layers[name]
            scales = 4 * self.numbers(layer, bits).scale.numel()
            size = packed_size(weight(layer).numel(), bits) + scales
            made[name].append(Option(bits, size, max(0.0, costs[self.by])))
        return made

    def converted(
        self, model: nn.Module, layers: dict[str, nn.Module], chosen: dict[str, int], context: Context
    ) -> nn.Module:
        """The model in integers of the chosen widths."""
        tables = {name: m for name, m in layers.items() if isinstance(m, nn.Embedding)}
        between = {name: m for name, m in model.named_modules() if type(m) in (Add, nn.AdaptiveAvgPool2d)}
        watched = {name: m for name, m in layers.items() if name not in tables} | between
        seen = observe(model, watched, batches(context, self.calibration_samples))
        self.at(8).draw_inputs(model, seen, context)
        for name, held in seen.items():
            model.set_submodule(name, self.at(chosen.get(name, 8)).replaced(model.get_submodule(name), held))
        for name, lookup in tables.items():
            model.set_submodule(name, QuantEmbedding.from_float(lookup, self.numbers(lookup, chosen[name])))
        return model.to(context.device)


def parse(widths: str) -> list[int]:
    """The widths of `2/4/8`; UserError for a text that does not read so."""
    parts = widths.split("/")
    if not all(part in "12345678" and len(part) == 1 for part in parts):
        raise UserError(f"widths={widths!r} is not a list of bits from 1 to 8 separated by /, such as 2/4/8.")
    return sorted({int(part) for part in parts})


def rounded(values: Tensor, numbers: Numbers) -> Tensor:
    """`values` at the nearest levels of `numbers`."""
    scale, zero_point = numbers.scale.unsqueeze(2), numbers.zero_point.unsqueeze(2)
    codes = quantize(
        split(values, numbers.granularity, numbers.group_size), scale, zero_point, numbers.low, numbers.high
    )
    return merge(dequantize(codes, scale, zero_point), values.shape)


@contextmanager
def replaced(layer: nn.Module, values: Tensor) -> Iterator[None]:
    """Have `values` for the layer's weight as long as this lasts."""
    held = cast(Tensor, layer.weight)
    before = held.detach().clone()
    with torch.no_grad():
        held.copy_(values)
    try:
        yield
    finally:
        with torch.no_grad():
            held.copy_(before)


def judged(model: nn.Module, some: Split, task: Task) -> dict[str, float]:
    """Loss and quality of the model on `some` examples."""
    logits, targets = predict(model.eval(), some)
    return {"loss": task.loss(logits, targets).item(), "quality": task.metrics(logits, targets)[task.metric]}


def fisher(model: nn.Module, layers: dict[str, nn.Module], context: Context, samples: int) -> dict[str, Tensor]:
    """Mean squared gradient of each weight over small batches of training examples, times a batch's size.

    The gradient of a mean over b independent examples has 1/b of the variance of one example's.
    """
    weights = {name: cast(Tensor, layer.weight) for name, layer in layers.items()}
    total = {name: torch.zeros_like(w) for name, w in weights.items()}
    train, size = context.task.train.to(context.device), 8
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(context.seed))[:samples]
    parts = 0
    for inputs, targets in train.take(order).batches(size):
        loss = context.task.loss(forward(model.eval(), inputs), targets)
        gradients = torch.autograd.grad(loss, list(weights.values()), materialize_grads=True)
        for sum_, gradient in zip(total.values(), gradients, strict=True):
            sum_ += len(targets) * gradient.square()
        parts += 1
    return {name: sum_ / parts for name, sum_ in total.items()}


def table(options: dict[str, list[Option]], found: Sensitivity, chosen: dict[str, int]) -> list[dict[str, Any]]:
    """A row a layer: the width it got, its bytes, and what each width would cost."""
    rows = []
    for name, layer in options.items():
        row: dict[str, Any] = {"layer": name, "bits": chosen[name]}
        row["bytes"] = next(o.size for o in layer if o.bits == chosen[name])
        for option in layer:
            row |= {f"{what}_{option.bits}": value for what, value in found[name, option.bits].items()}
        rows.append(row)
    return rows


@figures.styled
def picture(found: Sensitivity, chosen: dict[str, int], by: str) -> Figure:
    """Cost of each width for each layer, and the widths chosen."""
    names, widths = list(chosen), sorted({bits for _, bits in found})
    figure, axes = figures.canvas(2, width=max(9.0, 0.35 * len(names) + 3), height=3.8)
    places = np.arange(len(names))
    for number, bits in enumerate(widths):
        shade = figures.SHADES(1 - 0.8 * number / len(widths))
        costs = [max(found[name, bits][by], 0.0) for name in names]
        axes[0].bar(
            places + 0.8 * (number + 0.5) / len(widths) - 0.4,
            costs,
            0.8 / len(widths),
            color=shade,
            label=f"{bits} bits",
        )
    axes[0].set_yscale("symlog", linthresh=1e-4)
    axes[0].set(title="Rise of the loss, alone" if by == "loss" else "Fisher-weighted error, alone")
    axes[0].legend()
    axes[1].bar(places, [chosen[name] for name in names], 0.6, color=figures.AFTER)
    axes[1].set(title="Bits chosen", yticks=widths)
    for place in axes:
        place.set_xticks(places, names, rotation=90, fontsize=max(5, 9 - len(names) // 20))
    return figure
