"""Structured pruning: channels, heads and neurons are cut out, so that the model is smaller and faster."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.prune.structure import encoder
from compression.methods.prune.structure.channels import Channels
from compression.methods.prune.structure.importance import CRITERIA, importance
from compression.methods.prune.structure.removal import COSTS, TOLERANCE, Cut, closest
from compression.methods.prune.structure.sparse import bn_penalty, group_penalty
from compression.nn import layers, transformer
from compression.nn.inputs import Inputs, map_inputs
from compression.nn.recurrent import BiLSTM
from compression.params import group, param
from compression.training.context import Context
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import fit, task_loss

SPARSE = ("bn_scale", "group")  # criteria with a training of their own


@dataclass(frozen=True)
class Structured(Method):
    """Cut out channels with all that hangs on them (Fang et al. 2023, arXiv:2301.12900): the model gets smaller.

    bn_scale and group first train with a penalty that makes channels small, for which the recipe is used: Liu et al.
    2017, arXiv:1708.06519 (network slimming), and group sparsity by Fang et al. Of a transformer, heads, feed-forward
    neurons or hidden dimensions go, as many from every layer. Its config then says so and from_pretrained reads the
    model, unless `parts` has one of heads and hidden without the other: a config cannot tell that (see
    nn/transformer.py), and only this lab reads it.

    ONNX Runtime's convolutions work on eight channels at a time on AVX2: at other numbers a ResNet-20 of half the MACs
    ran slower than the whole one, at multiples of 8 it took 0.7 of the time.
    """

    family: ClassVar[str] = "prune"
    needs_finetune: ClassVar[bool] = True

    sparsity: float = param(0.5, "share of the target to remove", interval="[0, 1)", search=(0.2, 0.9))
    target: str = param("macs", "what sparsity is a share of", choices=("channels", "params", "macs"))
    criterion: str = param(
        "l1", "what channels are ranked by", choices=tuple(CRITERIA), search=("l1", "fpgm", "taylor")
    )
    scope: str = param("local", "the same share of each layer, or rank all together", choices=("local", "global"))
    round_to: int = param(
        8,
        "what is left of a layer with at least as many channels is a multiple of it: 8 runs fast",
        interval="[1, inf)",
    )
    steps: int = param(1, "times to rank anew on the way to the target", interval="[1, inf)")
    examples: int = param(
        512,
        "training examples to differentiate the loss on",
        interval="[1, inf)",
        when={"criterion": ("taylor", "hessian")},
    )
    penalty: float = param(
        5e-4,
        "weight of the penalty that makes channels small",
        interval="[0, inf)",
        search=(1e-5, 1e-2),
        log=True,
        when={"criterion": SPARSE},
    )
    parts: tuple[str, ...] = param(("heads", "ffn"), "parts of a transformer to cut", choices=encoder.PARTS)
    # With a penalty the last weights are the sparsest.
    training: Training = group(Training, fixed={"keep": "last"}, when={"criterion": SPARSE})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise UserError(f"parts is empty; it takes any of {', '.join(encoder.PARTS)} with / between them.")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        model = model.to(context.device)
        example = map_inputs(lambda tensor: tensor.to(context.device), context.task.example())
        units = self.units(model, example)
        before = units.sizes(model)
        if self.criterion in SPARSE:
            self.sparsify(model, units, context)
        masked = lift_masks(model)
        self.remove(model, units, context)
        for name in masked:
            layer = model.get_submodule(name)
            layers.set_mask(layer, layers.weight(layer) != 0)
        units.show(before, model, context.record)
        return model

    def check(self, model: nn.Module, context: Context) -> None:
        self.units(model, context.task.example())

    def units(self, model: nn.Module, example: Inputs) -> Channels | encoder.Encoder:
        """What of `model` can go; UserError for a model that it cannot cut."""
        if transformer.is_transformer(model):
            return encoder.Encoder(model, example, self.parts)
        if any(isinstance(m, BiLSTM) for m in model.modules()):
            raise UserError(
                "structured does not cut the units of an LSTM, which feed one another at every step: distil a thinner "
                "one (width=0.5, say), or take magnitude."
            )
        return Channels(model, example)

    def remove(self, model: nn.Module, units: Channels | encoder.Encoder, context: Context) -> None:
        """Rank and cut until the target is met, in equal steps; say so where it is missed."""
        cost = COSTS.get(self.target, lambda model, example: units.count(model))
        start = cost(model, units.example)

        def removed(cut: Cut) -> float:
            copied = copy.deepcopy(model)
            units.cut(copied, cut)
            return 1 - cost(copied, units.example) / start

        for step in range(1, self.steps + 1):
            scores = importance(model, self.criterion, self.examples, context)
            blocks = units.blocks(scores, self.scope == "global", self.round_to)
            units.cut(model, closest(blocks, removed, self.sparsity * step / self.steps, self.target))
        reached = 1 - cost(model, units.example) / start
        if abs(reached - self.sparsity) > TOLERANCE:
            context.record.warn(
                f"{reached:.1%} of the {self.target} are gone instead of {self.sparsity:.1%}: channels are removed "
                f"whole, in multiples of round_to={self.round_to}."
            )

    def sparsify(self, model: nn.Module, units: Channels | encoder.Encoder, context: Context) -> None:
        """Train with the penalty of the criterion; UserError for a model that it is not made for."""
        require_training(self.training, context.task.training, f"criterion={self.criterion} makes channels small")
        penalty = self.penalty_of(model, units)
        plain = task_loss(context.task, self.training_for(context.task))

        def loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            return plain(model, inputs, targets) + self.penalty * penalty()

        fit(model, context, self.training, loss=loss)

    def penalty_of(self, model: nn.Module, units: Channels | encoder.Encoder) -> Callable[[], Tensor]:
        if self.criterion == "group" and isinstance(units, Channels):
            return group_penalty(group for _, group in units.groups())
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            raise UserError(
                f"criterion={self.criterion} is made for networks of convolutions with batch norms; "
                f"a {type(model).__name__} takes l1, l2, fpgm, lamp, taylor, hessian or random."
            )
        return bn_penalty(model)


def lift_masks(model: nn.Module) -> list[str]:
    """Take the masks off, which torch-pruning does not cut; the names of the layers that had one."""
    names = list(layers.masked_layers(model))
    for name in names:
        delattr(model.get_submodule(name), "mask")
    return names
