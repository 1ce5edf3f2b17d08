"""Deep Compression: weights share a few trained values, and which weight has which is Huffman-coded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn

from compression.methods.base import Method
from compression.methods.quantize.calibration.selection import SKIP_HELP, is_quantizable, select_layers
from compression.methods.quantize.clustering import huffman_file
from compression.methods.quantize.clustering.layers import SharedWeight, share_weight
from compression.nn.graph import replace_module
from compression.nn.inputs import Inputs, map_inputs
from compression.nn.quantized.clustered import ClusteredLayer
from compression.nn.recurrent import Gates
from compression.params import group, param
from compression.reporting.figures.quantize import bits_per_weight
from compression.training.hyperparameters import Training
from compression.training.loop import decay_groups, fit

if TYPE_CHECKING:
    from compression.training.context import Context


@dataclass(frozen=True)
class Cluster(Method):
    """Share 2^bits trained values among the weights of a layer and Huffman-code their indices.

    Deep Compression, Han et al. 2016, arXiv:1510.00149, sections 3 and 4: k-means from centroids spread evenly, then
    training of the centroids. Weights that are zero stay zero: prune first for the paper's figures. `huffman_ratio` is
    the original's parameters in 32-bit floats over the bytes of the coded file, header and all.
    """

    family: ClassVar[str] = "quantize"
    terminal: ClassVar[bool] = True

    bits: int = param(5, "bits of an index in a linear layer: it has 2^bits values", interval="[1, 8]", search=(2, 8))
    conv_bits: int = param(8, "bits of an index in a convolution", interval="[1, 8]", search=(3, 8))
    centroid_rate: float = param(
        0.01,
        "learning rate of centroids over that of the other parameters: the gradient of a centroid sums over its "
        "weights",
        interval="[0, inf)",
    )
    skip: tuple[str, ...] = param((), SKIP_HELP)
    training: Training = group(Training)

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Cluster, train the centroids, and write the coded file."""
        model = model.to(context.device)
        example = map_inputs(lambda tensor: tensor.to(context.device), context.task.example(2))
        for name, layer in self.select_layers(model, example).items():
            bits = self.bits if isinstance(layer, nn.Linear) else self.conv_bits
            replace_module(model, name, share_weight(layer, bits))
        training = self.training_for(context.task)
        rate = (training.learning_rate or 0.0) * self.centroid_rate
        model = fit(model, context, training, parameter_groups=lambda trained: parameter_groups(trained, rate))
        for name, module in list(model.named_modules()):
            if isinstance(module, SharedWeight):
                replace_module(model, name, module.convert())
        write_coded_file(model, context)
        return model

    def select_layers(self, model: nn.Module, example: Inputs) -> dict[str, nn.Linear | nn.Conv2d]:
        """The layers to cluster, by name; raises UserError if there are none."""
        found = {n: cast("nn.Linear", m) for n, m in model.named_modules() if is_quantizable(m) or type(m) is Gates}
        return {name: found[name] for name in select_layers(model, found, self.skip, example)}


def parameter_groups(model: nn.Module, rate: float) -> list[dict[str, Any]]:
    """The usual parameter groups, and one of the codebooks with the learning rate `rate` and without weight decay."""
    # By identity: `in` on a list of tensors compares them element by element.
    codebooks = {id(m.codebook): m.codebook for m in model.modules() if isinstance(m, SharedWeight)}
    rest = [g | {"params": [p for p in g["params"] if id(p) not in codebooks]} for g in decay_groups(model)]
    return [*rest, {"params": list(codebooks.values()), "lr": rate, "weight_decay": 0.0}]


def write_coded_file(model: nn.Module, context: Context) -> None:
    """Write the Huffman-coded file, check that it reads back, and record its size in all and by layer."""
    path = context.folder / "model.huffman"
    sizes = huffman_file.write(model, path)
    require_equal(huffman_file.read(path), model)
    # Of `context.original`, the model before the whole chain: what was pruned before counts as saved.
    original = sum(4 * t.numel() for t in context.original.state_dict().values() if t.is_floating_point())
    size = path.stat().st_size
    context.record.metrics({"huffman_mb": size / 1e6, "huffman_ratio": original / size})
    context.record.artifact(path)
    rows = size_table(model, sizes)
    context.record.table("huffman", rows)
    context.record.figure("huffman-bits", bits_per_weight(rows))


def require_equal(found: dict[str, Tensor], model: nn.Module) -> None:
    """Raise RuntimeError unless the tensors that were read are those of `model`, bit for bit."""
    expected = huffman_file.other_tensors(model)
    expected |= {f"{n}.weight": m.weight.cpu() for n, m in model.named_modules() if isinstance(m, ClusteredLayer)}
    for name, tensor in expected.items():
        if not torch.equal(found[name], tensor):
            raise RuntimeError(f"{name} came back from the coded file otherwise than it went in")


def size_table(model: nn.Module, sizes: dict[str, int]) -> list[dict[str, Any]]:
    """A row for each layer: values, weights that are not zero, bits per weight as an index and Huffman-coded."""
    rows = []
    for name, size in sizes.items():
        layer = cast("ClusteredLayer", model.get_submodule(name))
        count = layer.weight.numel()
        rows.append(
            {
                "layer": name,
                "weights": count,
                "nonzero": int((layer.weight != 0).sum()),
                "values": len(torch.unique(layer.indices)),
                "index_bits": layer.bits,
                "coded_bits": round(8 * size / count, 3),
                "bytes": size,
            }
        )
    return rows
