"""What a study is: its YAML, read into checked objects. `default.yaml` beside this file is the one shipped."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, ValidationError, model_validator

from compression.errors import UserError
from compression.study.texts import LANGUAGES, Refused

DEFAULT = Path(__file__).parent / "default.yaml"
NAME = r"^[a-z0-9][a-z0-9_-]*$"


def _known_languages(text: dict[str, str]) -> dict[str, str]:
    if not text or not text.keys() <= LANGUAGES.keys():
        raise ValueError(f"a text is given by language, of {', '.join(LANGUAGES)}")
    return text


Text = Annotated[dict[str, str], AfterValidator(_known_languages)]
Name = Annotated[str, Field(pattern=NAME, max_length=40)]


class Part(BaseModel):
    """Anything in a study's YAML: it may not change, and a field that is unknown is a mistake in it."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(Part):
    """One question. `single` and `multiple` have choices; a `scale` runs from `low` to `high`, whole numbers."""

    name: Name
    kind: Literal["single", "multiple", "scale", "text"]
    text: Text
    required: bool = True
    choices: dict[str, Text] = {}
    low: int = 1
    high: int = 5
    low_text: Text | None = None
    high_text: Text | None = None

    @model_validator(mode="after")
    def _has_what_its_kind_needs(self) -> Question:
        if (self.kind in ("single", "multiple")) != bool(self.choices):
            raise ValueError(f"{self.name}: choices belong to single and multiple, and only there")
        if self.low >= self.high:
            raise ValueError(f"{self.name}: low must lie below high")
        return self


class Questionnaire(Part):
    """Questions, and, if `link` is given, an outside form that may be filled in instead."""

    title: Text
    questions: list[Question] = []
    link: HttpUrl | None = None

    @model_validator(mode="after")
    def _can_be_answered_and_told_apart(self) -> Questionnaire:
        names = [question.name for question in self.questions]
        if len(set(names)) < len(names):
            raise ValueError(f"two questions have one name: {', '.join(names)}")
        if not names and self.link is None:
            raise ValueError("a questionnaire has questions or a link")
        return self


class Stage(Part):
    """A stage is a questionnaire to answer, work with rows of the time sheet, or (neither) the hand-in."""

    name: Name
    title: Text
    about: Text
    questionnaire: str = ""
    rows: list[str] = []


class Row(Part):
    """A row of the time sheet; runs of `families` in the stage it belongs to count for it."""

    title: Text
    families: list[str] = []


class Assignment(Part):
    title: Text
    task: str
    model: str


class Study(Part):
    title: Text
    consent: Text
    idle_minutes: float = Field(60, gt=0)
    experiment: str = "{participant}"  # where the runs that the web app starts are kept
    researchers: list[str] = []  # logins, besides MLflow's administrators
    backgrounds: dict[str, Text]
    techniques: dict[str, Text]
    assignments: dict[str, Assignment] = Field(min_length=1)
    rows: dict[str, Row]
    stages: list[Stage] = Field(min_length=1)
    questionnaires: dict[str, Questionnaire]

    @model_validator(mode="after")
    def _refers_to_what_is_there(self) -> Study:
        for stage in self.stages:
            missing = [name for name in stage.rows if name not in self.rows]
            if stage.questionnaire and stage.questionnaire not in self.questionnaires:
                missing.append(stage.questionnaire)
            if missing:
                raise ValueError(f"the stage {stage.name} names {', '.join(missing)}, which is defined nowhere")
        return self

    def stage(self, name: str) -> Stage:
        """The stage `name`; refused with the names there are."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise Refused("no_stage", name=name, known=", ".join(s.name for s in self.stages))

    def stage_of_row(self, row: str) -> Stage:
        """The stage in which time is spent on `row`; refused with the names there are."""
        for stage in self.stages:
            if row in stage.rows:
                return stage
        raise Refused("no_row", name=row, known=", ".join(self.rows))

    def row_of_run(self, stage: str, families: tuple[str, ...]) -> str:
        """The row that a run of these families counts for in this stage; empty for none.

        A row for a run of several families is the one that names them all by `several`.
        """
        wanted = "several" if len(families) > 1 else families[0] if families else "none"
        rows = next((s.rows for s in self.stages if s.name == stage), [])
        return next((row for row in rows if wanted in self.rows[row].families), "")


@functools.lru_cache(maxsize=8)
def read(text: str) -> Study:
    """The study that a YAML text defines; a UserError naming the first thing wrong with it."""
    try:
        return Study.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"The study is not YAML: {' '.join(str(error).split())[:200]}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the study"
        raise UserError(f"The study's YAML is wrong at {place}: {first['msg']}.") from error
