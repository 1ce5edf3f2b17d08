"""Progressive distillation: from the teacher to the student in steps."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from torch import nn

from compression import surgery
from compression.context import Context
from compression.errors import UserError
from compression.layers import count_parameters
from compression.methods.distill import blocks, pictures
from compression.methods.distill.chain import Chain
from compression.methods.distill.features import layer_pairs
from compression.methods.distill.lesson import learn
from compression.methods.distill.pair import frozen, several
from compression.methods.distill.response import Response
from compression.methods.distill.students import shallower, thinner
from compression.methods.distill.teacher_time import one_share
from compression.params import param
from compression.training import Recipe, complete

STYLES = ("assistants", "blocks")


@dataclass(frozen=True)
class Progressive(Response):
    """Distil in steps. By assistants of sizes between teacher and student, each taught by the one before it: Mirzadeh
    et al. 2020, arXiv:1902.03393. Or block by block: the student's stages learn in turn what the teacher's give, then
    the whole learns the teacher's answers: Gao et al. 2018, arXiv:1812.01819.

    Every step is a child run. Each assistant trains for all the epochs; blocks share them, at least one each.
    """

    style: str = param("assistants", "what lies between teacher and student", choices=STYLES, search=STYLES)
    assistants: str = param(
        "",
        "models with // between them, from large to small: names, folders, or copies of the teacher by their share of "
        "its channels (0.5) or number of layers (6); one halfway in size if empty",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assistants and self.style != "assistants":
            raise UserError(f"assistants={self.assistants} needs style=assistants; style={self.style} has none.")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher, student = self.pair(model, context)
        chain = Chain(context)
        chain.add("teacher", teacher)
        with one_share(context):
            student = self.climb(teacher, student, chain)
        chain.keep()
        return student

    def climb(self, teacher: nn.Module, student: nn.Module, chain: Chain) -> nn.Module:
        """The student, taught by way of what lies between."""
        context = chain.context
        if self.style == "blocks":
            recipe, rest = self.shared(context, len(layer_pairs("", teacher, student)))
            blocks.grow(student, teacher, recipe, chain)
            return self.step("student", student, teacher, rest, chain)
        for number, learner in enumerate(self.between(teacher, student, context), 1):
            learned = self.step(f"assistant-{number}", learner, teacher, self, chain)
            teacher = frozen(learned, context)
        return self.step("student", student, teacher, self, chain)

    def step(self, name: str, learner: nn.Module, teacher: nn.Module, recipe: Recipe, chain: Chain) -> nn.Module:
        """Teach one learner in a child run of its own, and add it to the chain."""
        context = chain.context
        with context.stage(name) as own:
            learned = learn(learner, self.heard([teacher]), context, recipe, self.judge(context.task), name=name)
            pictures.keep_softened(context, [teacher], learned, self.temperature)
            chain.add(name, learned)
            own.metrics({"params": chain.points[-1]["params"]})
        return learned

    def between(self, teacher: nn.Module, student: nn.Module, context: Context) -> list[nn.Module]:
        """The assistants, untrained or cut from the teacher, from large to small."""
        named = [assistant(text, teacher, context) for text in several(self.assistants)]
        return [model.to(context.device) for model in named or [halfway(teacher, student)]]

    def shared(self, context: Context, count: int) -> tuple[Recipe, Recipe]:
        """The recipe of each of `count` blocks, whose last weights are kept, and that of the training behind them."""
        epochs = complete(self, context.task).epochs or 0
        each = max(1, epochs // (count + 1))
        return replace(self, epochs=each, keep="last"), replace(self, epochs=max(1, epochs - count * each))


def assistant(text: str, teacher: nn.Module, context: Context) -> nn.Module:
    """The model that `text` names: a number of the teacher's layers, a share of its width, or a place."""
    if re.fullmatch(r"\d+", text):
        return shallower(teacher, int(text))
    if re.fullmatch(r"0?\.\d+", text):
        return thinner(teacher, float(text))
    return context.build(text)


def halfway(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """A copy of the teacher between the two in size: of half the layers more, or of the geometric mean of parameters.

    UserError where no number of layers lies between.
    """
    if surgery.is_transformer(teacher) and surgery.is_transformer(student):
        most, least = (len(surgery.layers(model)) for model in (teacher, student))
        if most - least < 2:
            raise UserError(f"No number of layers lies between {most} and {least}; name assistants=, or use response.")
        return shallower(teacher, (most + least) // 2)
    # Parameters go with the square of the width, so their square root with its fourth root.
    return thinner(teacher, (count_parameters(student) / count_parameters(teacher)) ** 0.25)
