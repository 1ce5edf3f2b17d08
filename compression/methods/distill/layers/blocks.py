"""Distillation block by block: the student grows into the teacher's place, from its inputs on."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compression.errors import UserError
from compression.methods.distill.feature import Hints
from compression.methods.distill.layers.features import Pairs, captured, layer_pairs, sample
from compression.methods.distill.layers.layered import learn_layers, require_same_kind
from compression.methods.distill.students.chain import Chain
from compression.nn.inputs import Inputs, forward, map_inputs
from compression.nn.layers import count_parameters
from compression.training.context import Context
from compression.training.hyperparameters import Training


def stage_pairs(teacher: nn.Module, student: nn.Module, context: Context) -> Pairs:
    """The stages that take one another's place; UserError where they are of no kind."""
    try:
        pairs = layer_pairs((), teacher, student)
        theirs, ours = zip(*pairs, strict=True)
        require_same_kind(pairs, sample(teacher, theirs, context), sample(student, ours, context))
    except UserError as error:
        raise UserError(
            "style=blocks puts the student's stages in the place of the teacher's, and those of a "
            f"{type(student).__name__} do not fit a {type(teacher).__name__}; take another student=, or "
            "style=assistants."
        ) from error
    return pairs


def grow(student: nn.Module, teacher: nn.Module, pairs: Pairs, training: Training, chain: Chain) -> None:
    """Train the student up to each of its stages in turn, in place, to give what the teacher's stage gives.

    Each is a child run, and adds to the chain the teacher with its first stages replaced by the student's.
    """
    context = chain.context
    for number, pair in enumerate(pairs, 1):
        name, (theirs, ours) = f"block-{number}", pair
        known, seen = sample(teacher, [theirs], context), sample(student, [ours], context)
        hints = Hints([pair], known, seen, weight=1.0)
        with context.stage(name) as (stage, own):
            learn_layers(student, teacher, hints, stage, training, unheard, name=name)
            hybrid = Hybrid(student, teacher, hints).eval()
            chain.add(name, hybrid, hybrid.count(context))
            own.metrics({"params": chain.points[-1]["params"]})


def unheard(answer: Tensor, known: object, targets: Tensor) -> Tensor:
    """A judge that leaves all to the layers: behind them nothing learns yet."""
    return answer.new_zeros(())


class Hybrid(nn.Module):
    """The teacher with all up to one layer replaced by the student and its regressor."""

    def __init__(self, student: nn.Module, teacher: nn.Module, hints: Hints) -> None:
        super().__init__()
        [(self.theirs, self.ours)] = hints.pairs
        self.student, self.teacher, self.regressor = student, teacher, hints.regressors[0]

    def forward(self, *images: Tensor, **tokens: Tensor) -> Tensor:
        inputs: Inputs = tokens or images[0]
        with captured(self.student, [self.ours]) as seen:
            forward(self.student, inputs)
        given = self.regressor(seen[self.ours])
        hook = self.teacher.get_submodule(self.theirs).register_forward_hook(lambda *call: shaped(given, call[-1]))
        try:
            return forward(self.teacher, inputs)
        finally:
            hook.remove()

    def count(self, context: Context) -> int:
        """Its parameters: the student's up to the layer, the regressor's, the teacher's behind the layer."""
        replaced = count_up_to(self.teacher, self.theirs, context)
        kept = count_parameters(self.teacher) - replaced
        return count_up_to(self.student, self.ours, context) + count_parameters(self.regressor) + kept


def shaped(given: Tensor, like: Tensor | tuple[Tensor, ...]) -> Tensor | tuple[Tensor, ...]:
    """`given` in place of a layer's output: images in its size, and in a tuple where it came in one."""
    if isinstance(like, tuple):
        return given, *like[1:]
    return F.adaptive_avg_pool2d(given, (like.shape[2], like.shape[3])) if given.ndim == 4 else given


def count_up_to(model: nn.Module, layer: str, context: Context) -> int:
    """Parameters that the output of `layer` depends on."""
    copied = copy.deepcopy(model).requires_grad_(True).eval()
    inputs = map_inputs(lambda tensor: tensor.to(context.device), context.task.example(2))
    with captured(copied, [layer]) as seen:
        forward(copied, inputs)
    weights = list(copied.parameters())
    reached = torch.autograd.grad(seen[layer].sum(), weights, allow_unused=True)
    return sum(weight.numel() for weight, slope in zip(weights, reached, strict=True) if slope is not None)
