"""Structured pruning: channels, heads and neurons are cut out, so that the model is smaller and faster."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from compression.errors import UserError
from compression.methods.base import Method
from compression.methods.prune.structure.channels import ChannelUnits
from compression.methods.prune.structure.costs import COSTS
from compression.methods.prune.structure.decoder import DecoderUnits
from compression.methods.prune.structure.encoder import PARTS, EncoderUnits
from compression.methods.prune.structure.importance import CRITERIA, equal_scores, importance
from compression.methods.prune.structure.plan import TOLERANCE, PruningPlan, find_plan, merge_plans
from compression.methods.prune.structure.sparsity_penalty import bn_penalty, group_penalty
from compression.nn import layers, transformer
from compression.nn.inputs import Inputs, map_inputs
from compression.nn.recurrent import Direction
from compression.params import group, param
from compression.training.hyperparameters import Training, require_training
from compression.training.loop import fit, task_loss

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from compression.training.context import Context

WITH_PENALTY = ("bn_scale", "group")  # criteria that first train with a penalty on the loss


@dataclass(frozen=True)
class Structured(Method):
    """Cut out channels with all that depends on them (Fang et al. 2023, arXiv:2301.12900): the model gets smaller.

    bn_scale and group first train with a penalty that makes channels small, for which the training's options are:
    Liu et al. 2017, arXiv:1708.06519 (network slimming), and group sparsity by Fang et al. Of a transformer, heads,
    feed-forward neurons or hidden dimensions go, as many from every layer. Its config then says so and from_pretrained
    reads the model, unless `parts` has one of heads and hidden without the other: a config cannot express that (see
    nn/transformer.py), and only this lab reads it.

    ONNX Runtime's convolutions work on eight channels at a time on AVX2: at other numbers a ResNet-20 of half the MACs
    ran slower than the whole one, at multiples of 8 it took 0.7 of the time.
    """

    family: ClassVar[str] = "prune"
    needs_finetune: ClassVar[bool] = True

    sparsity: float = param(0.5, "share of the target to remove", interval="[0, 1)", search=(0.2, 0.9))
    target: str = param("macs", "what sparsity is a share of", choices=("channels", "params", "macs"))
    criterion: str = param("l1", "what ranks the channels", choices=tuple(CRITERIA), search=("l1", "fpgm", "taylor"))
    scope: str = param("local", "the same share of each layer, or rank all together", choices=("local", "global"))
    round_to: int = param(
        8,
        "layers with at least as many channels keep a multiple of it: 8 runs fast",
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
        when={"criterion": WITH_PENALTY},
    )
    parts: tuple[str, ...] = param(("heads", "ffn"), "parts of a transformer to cut", choices=PARTS)
    # With a penalty the last weights are the sparsest.
    training: Training = group(Training, fixed={"keep": "last"}, when={"criterion": WITH_PENALTY})

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.parts:
            raise UserError(f"parts is empty; it takes any of {', '.join(PARTS)} with / between them.")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train with the criterion's penalty, if it has one, then remove units, in place."""
        model = model.to(context.device)
        example = map_inputs(lambda tensor: tensor.to(context.device), context.task.example())
        units = self.checked_units(model, example, context)
        if units.untouched:
            context.record.warn(untouched_warning(units.untouched))
        before = units.sizes(model)
        if self.criterion in WITH_PENALTY:
            self.train_with_penalty(model, units, context)
        masked = remove_masks(model)
        self.remove_units(model, units, context)
        for name in masked:
            layer = model.get_submodule(name)
            # Masked weights are zero, so the mask of what is left is read off the weights that were cut.
            layers.set_mask(layer, layers.weight(layer) != 0)
        units.log_sizes(before, model, context.record)
        return model

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError for a model that cannot lose as much, and for one that the criterion is not made for."""
        self.checked_units(model, context.task.example(), context)

    def checked_units(self, model: nn.Module, example: Inputs, context: Context) -> ChannelUnits | EncoderUnits:
        """The units of `model` that can be removed. Raises UserError as `check` does."""
        units = self.removable_units(model, example)
        if self.criterion in WITH_PENALTY:
            require_training(self.training, context.task.training, f"criterion={self.criterion} makes channels small")
            self.penalty_function(model, units)
        self.require_reachable(model, units)
        return units

    def removable_units(self, model: nn.Module, example: Inputs) -> ChannelUnits | EncoderUnits:
        """The units of `model` that can be removed. Raises UserError for a model that has none."""
        if transformer.is_decoder(model):
            return DecoderUnits(model, example, self.parts)
        if transformer.is_transformer(model):
            return EncoderUnits(model, example, self.parts)
        kind = getattr(getattr(model, "config", None), "model_type", None)
        if kind is not None:
            raise UserError(
                f"structured cuts transformers of the types {', '.join(transformer.ARCHITECTURES)}; of a {kind} "
                "neither its config nor from_pretrained could express what is left: take a method that leaves its "
                "shapes, such as magnitude."
            )
        if any(isinstance(m, Direction) for m in model.modules()):
            raise UserError(
                "structured does not cut the units of an LSTM, which feed one another at every step: distil a thinner "
                "one (width=0.5, say), or take magnitude."
            )
        return ChannelUnits(model, example)

    def removed_share(
        self, model: nn.Module, units: ChannelUnits | EncoderUnits, total: int
    ) -> Callable[[PruningPlan], float]:
        """A function that gives the share of `total`, a cost, that is gone from `model` once a plan is carried out."""

        def share(plan: PruningPlan) -> float:
            # Counted on a copy that is cut: MACs depend on both sides of a layer, so shares do not add up.
            copied = copy.deepcopy(model)
            units.remove(copied, plan)
            return 1 - self.cost(copied, units) / total

        return share

    def cost(self, model: nn.Module, units: ChannelUnits | EncoderUnits) -> int:
        """What `model` has of the target."""
        return units.count(model) if self.target == "channels" else COSTS[self.target](model, units.example)

    def require_reachable(self, model: nn.Module, units: ChannelUnits | EncoderUnits) -> None:
        """Raise UserError if less than `sparsity` is gone of `model` with the least left in every layer."""

        def most(round_to: int) -> float:
            # All units go, so their order does not matter, and nothing is differentiated before a baseline is there.
            ranked = units.ranked_units(partial(equal_scores, self.criterion), self.scope == "global", round_to)
            return self.removed_share(model, units, self.cost(model, units))(merge_plans(ranked)) if ranked else 0.0

        if (reached := most(self.round_to)) >= self.sparsity:
            return
        finer = next((n for n in (4, 2, 1) if n < self.round_to and most(n) >= self.sparsity), None)
        if finer:
            advice = f"take round_to={finer}: with round_to={self.round_to} layers keep a multiple of {self.round_to}"
        else:
            advice = "ask for less" if reached else "take a method that leaves its shapes, such as magnitude"
        raise UserError(
            f"sparsity={self.sparsity:g} of the {self.target} cannot go from a {type(model).__name__}: with the least "
            f"left in every layer that can be cut, {reached:.3f} are gone; {advice}."
        )

    def remove_units(self, model: nn.Module, units: ChannelUnits | EncoderUnits, context: Context) -> None:
        """Rank and remove units in equal steps until the target is met, in place; warn if it is missed."""
        total = self.cost(model, units)
        for step in range(1, self.steps + 1):
            if step > 1:
                # The groups hold the indices of channels before the last cut.
                units = self.removable_units(model, units.example)
            scores = importance(model, self.criterion, self.examples, context)
            ranked = units.ranked_units(scores, self.scope == "global", self.round_to)
            share = self.removed_share(model, units, total)
            units.remove(model, find_plan(ranked, share, self.sparsity * step / self.steps))
        achieved = 1 - self.cost(model, units) / total
        if abs(achieved - self.sparsity) > TOLERANCE:
            context.record.warn(
                f"{achieved:.1%} of the {self.target} are gone instead of {self.sparsity:.1%}: channels are removed "
                f"whole, in multiples of round_to={self.round_to}."
            )

    def train_with_penalty(self, model: nn.Module, units: ChannelUnits | EncoderUnits, context: Context) -> None:
        """Train `model` in place on the task's loss plus the criterion's penalty."""
        penalty = self.penalty_function(model, units)
        unpenalized_loss = task_loss(context.task, self.training_for(context.task))

        def loss(model: nn.Module, inputs: Inputs, targets: Tensor) -> Tensor:
            value: Tensor = unpenalized_loss(model, inputs, targets)
            return value + self.penalty * penalty()

        fit(model, context, self.training, loss=loss)

    def penalty_function(self, model: nn.Module, units: ChannelUnits | EncoderUnits) -> Callable[[], Tensor]:
        """A function that gives the present penalty of `model`, a scalar."""
        if self.criterion == "group" and isinstance(units, ChannelUnits):
            return group_penalty(units.groups.values())
        if not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules()):
            others = ", ".join(name for name in CRITERIA if name not in WITH_PENALTY)
            raise UserError(
                f"criterion={self.criterion} is made for networks of convolutions with batch norms; "
                f"a {type(model).__name__} takes one of {others}."
            )
        return bn_penalty(model)


def untouched_warning(layers: Sequence[str]) -> str:
    """A sentence that names `layers`, or the first of many, as those that keep all of their channels."""
    named = ", ".join(layers[:5]) + (f" and {len(layers) - 5} more" if len(layers) > 5 else "")
    return (
        f"structured leaves all channels to {named}: without some of them the network would not run, or not answer as "
        "one in which nothing reads them."
    )


def remove_masks(model: nn.Module) -> list[str]:
    """Delete the masks, which torch-pruning does not cut, and return the names of the layers that had one."""
    names = list(layers.masked_layers(model))
    for name in names:
        delattr(model.get_submodule(name), "mask")
    return names
