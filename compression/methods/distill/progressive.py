"""Progressive distillation: from the teacher to the student in steps."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from compression.errors import UserError
from compression.methods.distill.layers import blocks
from compression.methods.distill.logits.figures import log_softened_outputs
from compression.methods.distill.logits.teacher_time import log_total_share
from compression.methods.distill.logits.training import train_on_logits
from compression.methods.distill.response import Response
from compression.methods.distill.students.copies import shallower_copy, thinner_copy
from compression.methods.distill.students.progression import Progression
from compression.methods.distill.students.teacher_student import freeze_teacher
from compression.nn import transformer
from compression.nn.layers import count_parameters
from compression.params import Place, param

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.training.context import Context
    from compression.training.hyperparameters import Training

STYLES = ("assistants", "blocks")


@dataclass(frozen=True)
class Progressive(Response):
    """Distil in steps. By assistants of sizes between teacher and student, each taught by the one before it: Mirzadeh
    et al. 2020, arXiv:1902.03393. Or block by block: the student's stages are trained in turn to output what the
    teacher's do, then the whole student on the teacher's logits: Gao et al. 2018, arXiv:1812.01819.

    Every step is a child run. Each assistant trains for all the epochs; blocks share them, at least one each.
    """

    style: str = param("assistants", "what is between teacher and student", choices=STYLES, search=STYLES)
    assistants: tuple[Place, ...] = param(
        (),
        "models with // between them, from large to small: names, folders, or copies of the teacher by their share of "
        "its channels (0.5) or number of layers (6); if empty, one halfway in size",
        when={"style": ("assistants",)},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.assistants and self.style != "assistants":
            raise UserError(
                f"assistants={'//'.join(self.assistants)} needs style=assistants; style={self.style} has none."
            )

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        """Train the assistants or blocks, then the student; records quality and size of each model."""
        teacher, student = self.teacher_and_student(model, context)
        progression = Progression(context)
        progression.add("teacher", teacher)
        distill = self.distill_by_blocks if self.style == "blocks" else self.distill_by_assistants
        with log_total_share(context):
            student = distill(teacher, student, progression)
        progression.record()
        return student

    def check(self, model: nn.Module, context: Context) -> None:
        """Raise UserError also where an assistant cannot be built, or stages do not fit."""
        teacher, student = self.teacher_and_student(model, context)
        if self.style == "blocks":
            blocks.stage_pairs(teacher, student, context)
        else:
            self.build_assistants(teacher, student, context)

    def distill_by_blocks(self, teacher: nn.Module, student: nn.Module, progression: Progression) -> nn.Module:
        """Train the student's stages in turn, then the whole student."""
        context = progression.context
        self.warn_of_sizes([teacher, student], context)
        pairs = blocks.stage_pairs(teacher, student, context)
        of_block, of_student = self.split_epochs(context, len(pairs))
        blocks.train_blocks(student, teacher, pairs, of_block, progression)
        return self.train_student("student", student, teacher, of_student, progression)

    def distill_by_assistants(self, teacher: nn.Module, student: nn.Module, progression: Progression) -> nn.Module:
        """Train each assistant, then the student, on the logits of the model before it."""
        context, training = progression.context, self.training_for(progression.context.task)
        assistants = self.build_assistants(teacher, student, context)
        self.warn_of_sizes([teacher, *assistants, student], context)
        for number, assistant in enumerate(assistants, 1):
            trained = self.train_student(f"assistant-{number}", assistant, teacher, training, progression)
            teacher = freeze_teacher(trained, context)
        return self.train_student("student", student, teacher, training, progression)

    def train_student(
        self, name: str, student: nn.Module, teacher: nn.Module, training: Training, progression: Progression
    ) -> nn.Module:
        """Train a student or assistant in its own child run, and add it to the progression."""
        with progression.context.stage(name) as (context, own_logger):
            teachers, logits_loss = self.active_teachers([teacher]), self.logits_loss(context.task)
            trained = train_on_logits(student, teachers, context, training, logits_loss, name=name)
            log_softened_outputs(context, [teacher], trained, self.temperature)
            progression.add(name, trained)
            own_logger.metrics({"params": progression.points[-1]["params"]})
        return trained

    def build_assistants(self, teacher: nn.Module, student: nn.Module, context: Context) -> list[nn.Module]:
        """The named assistants, untrained or copies of the teacher; if none is named, one halfway in size."""
        if self.assistants:
            assistants = [build_assistant(text, teacher, context) for text in self.assistants]
        else:
            assistants = [model for model in [halfway_copy(teacher, student)] if model is not None]
        return [model.to(context.device) for model in assistants]

    def warn_of_sizes(self, models: Sequence[nn.Module], context: Context) -> None:
        """Warn where `models`, from teacher to student, do not get smaller, and where there is no assistant."""
        sizes = [count_parameters(model) for model in models]
        listed = " -> ".join(f"{size:,}" for size in sizes)
        if not all(larger > smaller for larger, smaller in itertools.pairwise(sizes)):
            context.record.warn(
                "Progressive distillation goes from large to small models, and these have, from the teacher to the "
                f"student, {listed} parameters."
            )
        elif len(models) == 2 and self.style == "assistants":
            context.record.warn(
                f"No copy of the teacher is between it and the student in size ({listed} parameters), so there is no "
                "assistant; name one, assistants=MODEL."
            )

    def split_epochs(self, context: Context, count: int) -> tuple[Training, Training]:
        """The training of each of `count` blocks, which keeps the last weights, and that of the student after them."""
        training = self.training_for(context.task)
        assert training.epochs is not None
        least = min(1, training.epochs)  # 0 epochs are none for anybody
        # The whole student gets a share like a block's, and what the division leaves over.
        each = max(least, training.epochs // (count + 1))
        of_student = max(least, training.epochs - count * each)
        return replace(training, epochs=each, keep="last"), replace(training, epochs=of_student)


def build_assistant(text: str, teacher: nn.Module, context: Context) -> nn.Module:
    """The model that `text` names: a number of the teacher's layers, a share of its channels, or a name or folder.

    Raises UserError where it cannot be built.
    """
    try:
        if re.fullmatch(r"\d+", text):
            return shallower_copy(teacher, int(text))
        if re.fullmatch(r"0?\.\d+", text):
            return thinner_copy(teacher, float(text))
    except UserError as error:
        raise UserError(f"assistants={text} is a copy of the teacher. {error}") from error
    return context.build(text)


def halfway_copy(teacher: nn.Module, student: nn.Module) -> nn.Module | None:
    """A copy of the teacher halfway between the two in size; None where no copy is between them.

    Raises UserError where the teacher has no smaller copies.
    """
    most, least = count_parameters(teacher), count_parameters(student)
    if least >= most:
        return None
    try:
        if transformer.is_transformer(teacher) and transformer.is_transformer(student):
            layers, fewer = (len(transformer.layers(model)) for model in (teacher, student))
            found = shallower_copy(teacher, min(layers, (layers + fewer) // 2))
        else:
            # The geometric mean of the parameters: these go with the square of the width, so the fourth root.
            found = thinner_copy(teacher, (least / most) ** 0.25)
    except UserError as error:
        raise UserError(
            f"A {type(teacher).__name__} as this teacher is has no smaller copy that could be the assistant: "
            "name assistants=MODEL, or use response."
        ) from error
    # Widths and layers are whole numbers: what is halfway may be one of the two again.
    return found if least < count_parameters(found) < most else None
