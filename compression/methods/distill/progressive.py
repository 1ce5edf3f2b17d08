"""Progressive distillation: from the teacher to the student in steps."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from compression.errors import UserError
from compression.methods.distill.layers import blocks
from compression.methods.distill.logits import pictures
from compression.methods.distill.logits.lesson import learn
from compression.methods.distill.logits.teacher_time import one_share
from compression.methods.distill.response import Response
from compression.methods.distill.students.chain import Chain
from compression.methods.distill.students.copies import shallower, thinner
from compression.methods.distill.students.pair import frozen
from compression.nn import transformer
from compression.nn.layers import count_parameters
from compression.params import Place, param
from compression.training.context import Context
from compression.training.hyperparameters import Training

STYLES = ("assistants", "blocks")


@dataclass(frozen=True)
class Progressive(Response):
    """Distil in steps. By assistants of sizes between teacher and student, each taught by the one before it: Mirzadeh
    et al. 2020, arXiv:1902.03393. Or block by block: the student's stages learn in turn what the teacher's give, then
    the whole learns the teacher's answers: Gao et al. 2018, arXiv:1812.01819.

    Every step is a child run. Each assistant trains for all the epochs; blocks share them, at least one each.
    """

    style: str = param("assistants", "what lies between teacher and student", choices=STYLES, search=STYLES)
    assistants: tuple[Place, ...] = param(
        (),
        "models with // between them, from large to small: names, folders, or copies of the teacher by their share of "
        "its channels (0.5) or number of layers (6); one halfway in size if empty",
        when={"style": ("assistants",)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assistants and self.style != "assistants":
            raise UserError(
                f"assistants={'//'.join(self.assistants)} needs style=assistants; style={self.style} has none."
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher, student = self.pair(model, context)
        chain = Chain(context)
        chain.add("teacher", teacher)
        with one_share(context):
            student = self.climb(teacher, student, chain)
        chain.keep()
        return student

    def check(self, model: nn.Module, context: Context) -> None:
        teacher, student = self.pair(model, context)
        if self.style == "blocks":
            blocks.stage_pairs(teacher, student, context)
        else:
            self.between(teacher, student, context)

    def climb(self, teacher: nn.Module, student: nn.Module, chain: Chain) -> nn.Module:
        """The student, taught by way of what lies between."""
        context = chain.context
        if self.style == "blocks":
            self.warn_of_sizes([teacher, student], context)
            pairs = blocks.stage_pairs(teacher, student, context)
            each, rest = self.split_epochs(context, len(pairs))
            blocks.grow(student, teacher, pairs, each, chain)
            return self.step("student", student, teacher, rest, chain)
        assistants = self.between(teacher, student, context)
        self.warn_of_sizes([teacher, *assistants, student], context)
        for number, learner in enumerate(assistants, 1):
            learned = self.step(f"assistant-{number}", learner, teacher, self.training_for(context.task), chain)
            teacher = frozen(learned, context)
        return self.step("student", student, teacher, self.training_for(context.task), chain)

    def step(self, name: str, learner: nn.Module, teacher: nn.Module, training: Training, chain: Chain) -> nn.Module:
        """Teach one learner in a child run of its own, and add it to the chain."""
        with chain.context.stage(name) as (context, own):
            learned = learn(learner, self.heard([teacher]), context, training, self.judge(context.task), name=name)
            pictures.keep_softened(context, [teacher], learned, self.temperature)
            chain.add(name, learned)
            own.metrics({"params": chain.points[-1]["params"]})
        return learned

    def between(self, teacher: nn.Module, student: nn.Module, context: Context) -> list[nn.Module]:
        """The assistants, untrained or cut from the teacher, as they were named; one halfway if none was."""
        if self.assistants:
            found = [assistant(text, teacher, context) for text in self.assistants]
        else:
            found = [model for model in [halfway(teacher, student)] if model is not None]
        return [model.to(context.device) for model in found]

    def warn_of_sizes(self, models: Sequence[nn.Module], context: Context) -> None:
        """Say where the chain does not lead from large to small, and where it has no assistant."""
        sizes = [count_parameters(model) for model in models]
        said = " -> ".join(f"{size:,}" for size in sizes)
        if not all(larger > smaller for larger, smaller in itertools.pairwise(sizes)):
            context.record.warn(
                "Progressive distillation leads from large to small, and from the teacher to the student this chain "
                f"has {said} parameters."
            )
        elif len(models) == 2 and self.style == "assistants":
            context.record.warn(
                f"No copy of the teacher lies between it and the student in size ({said} parameters), so there is no "
                "assistant; name one, assistants=MODEL."
            )

    def split_epochs(self, context: Context, count: int) -> tuple[Training, Training]:
        """The training of each of `count` blocks, whose last weights are kept, and the one after them."""
        training = self.training_for(context.task)
        epochs = training.epochs or 0
        each = max(1, epochs // (count + 1))
        return replace(training, epochs=each, keep="last"), replace(training, epochs=max(1, epochs - count * each))


def assistant(text: str, teacher: nn.Module, context: Context) -> nn.Module:
    """The model that `text` names: a number of the teacher's layers, a share of its width, or a place."""
    try:
        if re.fullmatch(r"\d+", text):
            return shallower(teacher, int(text))
        if re.fullmatch(r"0?\.\d+", text):
            return thinner(teacher, float(text))
    except UserError as error:
        raise UserError(f"assistants={text} is a copy of the teacher. {error}") from error
    return context.build(text)


def halfway(teacher: nn.Module, student: nn.Module) -> nn.Module | None:
    """A copy of the teacher between the two in size; None where there is no room for one.

    UserError where the teacher has no smaller copies.
    """
    most, least = count_parameters(teacher), count_parameters(student)
    if least >= most:
        return None
    try:
        found = copied(teacher, student)
    except UserError as error:
        raise UserError(
            f"A {type(teacher).__name__} as this teacher is has no smaller copy that could be the assistant: "
            "name assistants=MODEL, or use response."
        ) from error
    return found if least < count_parameters(found) < most else None


def copied(teacher: nn.Module, student: nn.Module) -> nn.Module:
    """The teacher with half of the layers that the student lacks, or of the geometric mean of their parameters."""
    if transformer.is_transformer(teacher) and transformer.is_transformer(student):
        most, least = (len(transformer.layers(model)) for model in (teacher, student))
        return shallower(teacher, min(most, (most + least) // 2))
    # Parameters go with the square of the width, so their square root with its fourth root.
    return thinner(teacher, (count_parameters(student) / count_parameters(teacher)) ** 0.25)
