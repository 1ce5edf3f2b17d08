"""Deep Compression: weights share a few values, which are trained, and the indices are Huffman coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.methods.base import Method
from compression.methods.quantize.calibration.selection import SKIP, chosen
from compression.methods.quantize.coding import coded
from compression.nn.quantized import conv_arguments
from compression.nn.quantized.clustered import ClusteredLayer, ClusteredConv2d, ClusteredLinear
from compression.nn.recurrent import Gates
from compression.params import group, param
from compression.reporting.figures.quantize import bits_per_weight
from compression.training.context import Context
from compression.training.hyperparameters import Training
from compression.training.loop import decay_groups, fit

ROUNDS = 100  # of k-means at most; in one dimension it stands still long before


@dataclass(frozen=True)
class Cluster(Method):
    """Share 2^bits trained values among the weights of a layer and Huffman code which is where.

    Deep Compression, Han et al. 2016, arXiv:1510.00149, sections 3 and 4: k-means from centroids spread evenly, then
    training of the centroids. Weights that are zero stay zero: prune first for the paper's figures. `huffman_ratio` is
    the original's parameters in 32-bit floats over the bytes of the coded file, header and all.
    """

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    bits: int = param(5, "bits of an index in a linear layer: it has 2^bits values", interval="[1, 8]", search=(2, 8))
    conv_bits: int = param(8, "bits of an index in a convolution", interval="[1, 8]", search=(3, 8))
    centroid_rate: float = param(
        0.01, "learning rate of centroids over that of the rest: theirs are the gradients of many", interval="[0, inf)"
    )
    skip: tuple[str, ...] = param((), SKIP)
    training: Training = group(Training)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device)
        for name, layer in self.chosen(model).items():
            model.set_submodule(name, shared(layer, self.bits if isinstance(layer, nn.Linear) else self.conv_bits))
        training = self.training_for(context.task)
        rate = training.learning_rate or 0.0
        model = fit(
            model, context, training, parameter_groups=lambda trained: groups(trained, rate * self.centroid_rate)
        )
        for name, module in list(model.named_modules()):
            if isinstance(module, Shared):
                model.set_submodule(name, module.clustered())
        self.keep_file(model, context)
        return model

    def chosen(self, model: nn.Module) -> dict[str, nn.Linear | nn.Conv2d]:
        """The layers to cluster, by name."""
        found = {
            name: m
            for name, m in model.named_modules()
            if type(m) in (nn.Linear, Gates) or type(m) is nn.Conv2d and m.padding_mode == "zeros"
        }
        return {name: found[name] for name in chosen(model, found, self.skip)}

    def keep_file(self, model: nn.Module, context: Context) -> None:
        """Write the coded file, read it back, and say what it took."""
        path = context.folder / "model.huffman"
        sizes = coded.write(model, path)
        require_equal(coded.read(path), model)
        original = sum(4 * t.numel() for t in context.original.state_dict().values() if t.is_floating_point())
        size = path.stat().st_size
        context.record.metrics({"huffman_mb": size / 1e6, "huffman_ratio": original / size})
        context.record.artifact(path)
        rows = table(model, sizes)
        context.record.table("huffman", rows)
        context.record.figure("huffman-bits", bits_per_weight(rows))


def require_equal(found: dict[str, Tensor], model: nn.Module) -> None:
    """RuntimeError unless the tensors that were read are those of `model`, bit for bit."""
    kept = coded.others(model)
    kept |= {f"{n}.weight": m.weight.cpu() for n, m in model.named_modules() if isinstance(m, ClusteredLayer)}
    for name, tensor in kept.items():
        if not torch.equal(found[name], tensor):
            raise RuntimeError(f"{name} came back from the coded file otherwise than it went in")


def groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """The usual parameter groups, and one of the codebooks at their own learning rate, without decay."""
    books = {id(m.codebook): m.codebook for m in model.modules() if isinstance(m, Shared)}
    rest = [g | {"params": [p for p in g["params"] if id(p) not in books]} for g in decay_groups(model)]
    return [*rest, {"params": list(books.values()), "lr": rate, "weight_decay": 0.0}]


# --- sharing --------------------------------------------------------------------------------------------------------


def kmeans(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Centroids `(count,)`, ascending, and the index of the nearest for each of `values` `(n,)`.

    Starts from centroids spread evenly over the range ("linear initialisation", section 3.2), which keeps the few
    large weights represented. A centroid that nothing is near stays where it is.
    """
    centroids = torch.linspace(values.min().item(), values.max().item(), count, device=values.device)
    index = nearest(values, centroids)
    for _ in range(ROUNDS):
        members = index.bincount(minlength=count)
        sums = torch.zeros(count, dtype=torch.float64, device=values.device).index_add(0, index, values.double())
        centroids = torch.where(members > 0, (sums / members.clamp_min(1)).to(values.dtype), centroids)
        moved = nearest(values, centroids)
        if torch.equal(moved, index):
            break
        index = moved
    return centroids, index


def nearest(values: Tensor, centroids: Tensor) -> Tensor:
    """Index of the nearest of the ascending `centroids`, int64."""
    return torch.bucketize(values.contiguous(), (centroids[1:] + centroids[:-1]) / 2)


def codebook(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, bool]:
    """At most 2^bits values, an index into them for each weight, and whether the first stands for the pruned.

    The first value is 0 where some weights are zero, and only these have it.
    """
    flat = weight.detach().flatten()
    alive = flat != 0
    pruned = not bool(alive.all())
    index = torch.zeros_like(flat, dtype=torch.int64)
    count = min(2**bits - pruned, flat[alive].unique().numel())
    if not count:
        return flat.new_zeros(1), index.view(weight.shape), True
    book, index[alive] = kmeans(flat[alive], count)
    if pruned:
        book = torch.cat([book.new_zeros(1), book])
        index[alive] += 1
    return book, index.view(weight.shape), pruned


class Shared(nn.Module):
    """A layer in training: its weight is looked up in `codebook`, so a value's gradient is the sum over its weights."""

    codebook: nn.Parameter
    index: Tensor
    live: Tensor
    bits: int

    def share(self, layer: nn.Linear | nn.Conv2d, bits: int) -> None:
        book, index, pruned = codebook(layer.weight, bits)
        me: Any = self
        me.weight, me.bias, self.bits = None, layer.bias, bits
        self.codebook = nn.Parameter(book)
        self.register_buffer("index", index, persistent=False)
        self.register_buffer("live", torch.ones_like(book), persistent=False)
        self.live[0] = 0.0 if pruned else 1.0

    def looked_up(self) -> Tensor:
        return (self.codebook * self.live)[self.index]

    def clustered(self) -> ClusteredLayer:
        """The layer as it is deployed."""
        raise NotImplementedError


class SharedLinear(Shared, nn.Linear):
    """`nn.Linear` with shared weights, in training."""

    def __init__(self, layer: nn.Linear, bits: int) -> None:
        nn.Linear.__init__(self, layer.in_features, layer.out_features, layer.bias is not None, device="meta")
        self.share(layer, bits)

    def forward(self, inputs: Tensor) -> Tensor:
        return F.linear(inputs, self.looked_up(), self.bias)

    def clustered(self) -> ClusteredLayer:
        made = ClusteredLinear(self.in_features, self.out_features, self.bias is not None, self.bits)
        return made.set_indices(self.index, self.codebook * self.live, self.bias)


class SharedConv2d(Shared, nn.Conv2d):
    """`nn.Conv2d` with shared weights, in training."""

    def __init__(self, layer: nn.Conv2d, bits: int) -> None:
        nn.Conv2d.__init__(self, **conv_arguments(layer), bias=layer.bias is not None, device="meta")
        self.share(layer, bits)

    def forward(self, inputs: Tensor) -> Tensor:
        return self._conv_forward(inputs, self.looked_up(), self.bias)

    def clustered(self) -> ClusteredLayer:
        made = ClusteredConv2d(**conv_arguments(self), bias=self.bias is not None, bits=self.bits)
        return made.set_indices(self.index, self.codebook * self.live, self.bias)


def shared(layer: nn.Linear | nn.Conv2d, bits: int) -> Shared:
    """The layer to train in place of `layer`."""
    return SharedLinear(layer, bits) if isinstance(layer, nn.Linear) else SharedConv2d(layer, bits)


# --- shown ----------------------------------------------------------------------------------------------------------


def table(model: nn.Module, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """What each layer took: values, weights that are not zero, bits a weight as an index and Huffman coded."""
    rows = []
    for name, size in sizes.items():
        layer = cast(ClusteredLayer, model.get_submodule(name))
        count = layer.weight.numel()
        rows.append(
            {
                "layer": name,
                "weights": count,
                "nonzero": int((layer.weight != 0).sum()),
                "values": layer.indices.unique().numel(),
                "index_bits": layer.bits,
                "coded_bits": round(8 * size / count, 3),
                "bytes": size,
            }
        )
    return rows
