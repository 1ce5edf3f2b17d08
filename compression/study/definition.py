"""The definition of a study: pydantic models of its YAML. `default.yaml` is the study that is shipped."""

import functools
from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, HttpUrl, ValidationError, model_validator

from compression.errors import UserError
from compression.study.texts import LANGUAGES, StudyError

DEFAULT_FILE = Path(__file__).parent / "default.yaml"
NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"


def _check_languages(text: dict[str, str]) -> dict[str, str]:
    if not text or not text.keys() <= LANGUAGES.keys():
        raise ValueError(f"a text is given by language, of {', '.join(LANGUAGES)}")
    return text


LocalizedText = Annotated[dict[str, str], AfterValidator(_check_languages)]
Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=40)]


class DefinitionModel(BaseModel):
    """Base of all parts of a study: immutable, and an unknown field in the YAML is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Question(DefinitionModel):
    """A question; `single` and `multiple` need `choices`, a `scale` takes the integers from `low` to `high`."""

    name: Name
    kind: Literal["single", "multiple", "scale", "text"]
    text: LocalizedText
    required: bool = True
    choices: dict[str, LocalizedText] = {}
    low: int = 1
    high: int = 5
    low_text: LocalizedText | None = None
    high_text: LocalizedText | None = None

    @model_validator(mode="after")
    def _check_kind(self) -> Self:
        if (self.kind in ("single", "multiple")) != bool(self.choices):
            raise ValueError(f"{self.name}: choices belong to single and multiple, and only there")
        if self.low >= self.high:
            raise ValueError(f"{self.name}: low must lie below high")
        return self


class Questionnaire(DefinitionModel):
    """Questions, or a `link` to an external form, or both: then either may be filled in."""

    title: LocalizedText
    questions: list[Question] = []
    link: HttpUrl | None = None  # http and https alone: a javascript: link would run in the page

    @model_validator(mode="after")
    def _check_questions(self) -> Self:
        names = [question.name for question in self.questions]
        if len(set(names)) < len(names):
            raise ValueError(f"two questions have one name: {', '.join(names)}")
        if not names and self.link is None:
            raise ValueError("a questionnaire has questions or a link")
        return self


class Stage(DefinitionModel):
    """A questionnaire to answer, work on `rows` of the time sheet, or (with neither) the hand-in."""

    name: Name
    title: LocalizedText
    about: LocalizedText
    questionnaire: str = ""
    rows: list[str] = []


class Row(DefinitionModel):
    """A row of the time sheet; runs of the method `families` count for it if they were started in its stage."""

    title: LocalizedText
    families: list[str] = []


class Assignment(DefinitionModel):
    """The task and model that a participant compresses."""

    title: LocalizedText
    task: str
    model: str


class Study(DefinitionModel):
    """A whole study, as one YAML file defines it."""

    title: LocalizedText
    consent: LocalizedText
    idle_minutes: float = Field(60, gt=0)  # a clock that runs longer without an event causes a warning
    experiment: str = "{participant}"  # MLflow experiment of the runs that the web app starts
    researchers: list[str] = []  # logins with a researcher's rights, besides MLflow's administrators
    backgrounds: dict[str, LocalizedText]
    techniques: dict[str, LocalizedText]
    assignments: dict[str, Assignment] = Field(min_length=1)
    rows: dict[str, Row]
    stages: list[Stage] = Field(min_length=1)
    questionnaires: dict[str, Questionnaire]

    @model_validator(mode="after")
    def _check_references(self) -> Self:
        for stage in self.stages:
            missing = [name for name in stage.rows if name not in self.rows]
            if stage.questionnaire and stage.questionnaire not in self.questionnaires:
                missing.append(stage.questionnaire)
            if missing:
                raise ValueError(f"the stage {stage.name} names {', '.join(missing)}, which is defined nowhere")
        return self

    def stage(self, name: str) -> Stage:
        """Return the stage `name`. Raises StudyError with the known names if there is none."""
        for stage in self.stages:
            if stage.name == name:
                return stage
        raise StudyError("no_stage", name=name, known=", ".join(s.name for s in self.stages))

    def stage_of_row(self, row: str) -> Stage:
        """Return the stage that `row` belongs to. Raises StudyError with the known rows if there is none."""
        for stage in self.stages:
            if row in stage.rows:
                return stage
        raise StudyError("no_row", name=row, known=", ".join(self.rows))

    def row_of_run(self, stage: str, families: tuple[str, ...]) -> str:
        """Return the row that a run of the method `families` in `stage` counts for; empty if there is none.

        In the YAML, `several` stands for a run of more than one family and `none` for a run without a method.
        """
        wanted = "several" if len(families) > 1 else families[0] if families else "none"
        rows = next((s.rows for s in self.stages if s.name == stage), [])
        return next((row for row in rows if wanted in self.rows[row].families), "")


# Every request asks for it. A Study is frozen, so that all of them may have the same one.
@functools.lru_cache(maxsize=8)
def parse_study(text: str) -> Study:
    """Parse the YAML of a study. Raises UserError that names the first mistake in it."""
    try:
        return Study.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        raise UserError(f"The study is not YAML: {' '.join(str(error).split())[:200]}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "the study"
        raise UserError(f"The study's YAML is wrong at {place}: {first['msg']}.") from error
