"""The commands of participants."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
import yaml

from compression.errors import UserError
from compression.files import to_csv
from compression.study import (
    clock,
    database,
    notes,
    participant_runs,
    participants,
    questionnaires,
    stages,
    texts,
    timesheet,
)
from compression.study.cli.group import group, read_text_file
from compression.study.texts import localize, translate

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from sqlalchemy.orm import Session

    from compression.study.definition import Question
    from compression.study.tables import Participant

Command = TypeVar("Command", bound=Callable[..., None])


def participant_option(command: Command) -> Command:
    """Add the option --participant to a command."""
    about = "your id; COMPRESSION_PARTICIPANT if empty"
    return click.option("--participant", "participant_id", default="", help=about)(command)


@contextlib.contextmanager
def participant_session(participant_id: str) -> Iterator[tuple[Session, Participant]]:
    """Yield a database session and the participant, who has consented; sets the language to theirs from here on.

    Prints a warning at the end if their clock is idle. Raises StudyError if there is no such participant, or they
    have not consented.
    """
    participant_id = participants.resolve_id(participant_id)
    with database.open_session() as session:
        # First of all: what is refused from here on is told in their language.
        texts.language.set(participants.find(session, participant_id).language)
        participant = participants.find_consenting(session, participant_id)
        yield session, participant
        if (idle := clock.hours_if_idle(session, participant)) is not None:
            row = clock.load(session, participant).row
            click.echo(translate("idle", row=row, hours=f"{idle:.1f}"), err=True)


@group.command()
@participant_option
@click.option("--yes", is_flag=True, help="you have read the text and agree")
def consent(participant_id: str, yes: bool) -> None:
    """Read what the study keeps of you, and agree to take part."""
    with database.open_session() as session:
        participant = participants.find(session, participants.resolve_id(participant_id))
        texts.language.set(participant.language)
        click.echo(localize(database.load_study(session).consent))
        if not yes and not click.confirm(translate("agree")):
            raise texts.StudyError("consent_first")
        participants.record_consent(session, participant)
    click.echo(translate("consented"))


@group.command()
@participant_option
def status(participant_id: str) -> None:
    """Show where you are: your task, the stages, the clock, and what comes next."""
    with participant_session(participant_id) as (session, participant):
        study, current = database.load_study(session), stages.current(session, participant)
        completed = stages.completed(session, participant)
        task = study.assignments[participant.assignment]
        click.echo(translate("your_task", title=localize(task.title), task=task.task, model=task.model))
        for stage in study.stages:
            mark = "✓" if stage.name in completed else "→" if stage == current else " "
            click.echo(f" {mark} {localize(stage.title)} ({stage.name})")
        click.echo(describe_clock(clock.load(session, participant)))
        click.echo(localize(current.about) if current else translate("all_done"))


def describe_clock(state: clock.Clock) -> str:
    """Return the state of the clock as a sentence."""
    if not state.row:
        return translate("clock_off")
    return translate("clock_runs" if state.is_running else "clock_held", row=state.row)


@group.command()
@click.argument("row")
@participant_option
def start(row: str, participant_id: str) -> None:
    """Start the clock for ROW of the time sheet, such as learn/pruning; any other row's clock stops."""
    with participant_session(participant_id) as (session, participant):
        clock.start(session, participant, row)
        click.echo(describe_clock(clock.load(session, participant)))


def _add_clock_command(name: str, change: Callable[[Session, Participant], Any], about: str) -> None:
    def run(participant_id: str) -> None:
        with participant_session(participant_id) as (session, participant):
            change(session, participant)
            click.echo(describe_clock(clock.load(session, participant)))

    group.command(name, help=about)(participant_option(run))


_add_clock_command("pause", clock.pause, "Pause the clock.")
_add_clock_command("resume", clock.resume, "Resume the clock after a pause.")
_add_clock_command("stop", clock.stop, "Stop the clock.")


@group.command()
@click.argument("row")
@click.option("--hours", type=float, required=True, help="to add; negative to subtract, as in --hours -1.5")
@click.option("--reason", required=True, help="why; it is kept with what was recorded")
@participant_option
def correct(row: str, hours: float, reason: str, participant_id: str) -> None:
    """Correct the hours of ROW; nothing that was recorded is overwritten."""
    with participant_session(participant_id) as (session, participant):
        corrected = clock.add_correction(session, participant, row, hours, reason)
    click.echo(translate("corrected", row=row, hours=f"{corrected:.2f}"))


@group.command("sheet")
@participant_option
@click.option("--csv", "as_csv", is_flag=True, help="as CSV")
def show_sheet(participant_id: str, as_csv: bool) -> None:
    """Show your hours: by the clock, and as your runs recorded them."""
    with participant_session(participant_id) as (session, participant):
        lines = timesheet.build_timesheet(session, participant, participant_runs.load_runs(participant.id))
    table = to_csv(timesheet.to_records(lines)) if as_csv else timesheet.format_table(lines)
    click.echo(table, nl=not as_csv)


@group.command()
@click.argument("stage", required=False)
@participant_option
def done(stage: str | None, participant_id: str) -> None:
    """Say that a stage of work is done (the current one, unless STAGE is named); the next one opens."""
    with participant_session(participant_id) as (session, participant):
        finished = stages.finish_work(session, participant, stage or "")
        following = stages.current(session, participant)
        title = localize(following.title) if following else "–"
        click.echo(translate("stage_done", stage=localize(finished.title), following=title))


@group.command()
@click.argument("questionnaire")
@click.option("--file", help="YAML with an answer for every question, instead of being asked")
@click.option("--receipt", default="", help="receipt of the external form, if the study has one")
@participant_option
def answer(questionnaire: str, file: str | None, receipt: str, participant_id: str) -> None:
    """Answer a QUESTIONNAIRE (before, learned or after); answering again keeps a new version."""
    with participant_session(participant_id) as (session, participant):
        stage, definition = questionnaires.find_questionnaire(session, questionnaire)
        stages.require_open(session, participant, stage)
        if receipt:
            version = questionnaires.save_receipt(session, participant, questionnaire, receipt)
        else:
            answers = _read_answers(file) if file else {q.name: prompt_answer(q) for q in definition.questions}
            version = questionnaires.append_answers(session, participant, questionnaire, answers)
    click.echo(translate("answered", title=localize(definition.title), version=version))


def prompt_answer(question: Question) -> list[str]:
    """Ask a question at the terminal until the answer is valid, and return its texts."""
    click.echo(f"\n{localize(question.text)}{'' if question.required else translate('optional')}")
    for name, text in question.choices.items():
        click.echo(f"  {name}: {localize(text)}")
    if question.kind == "scale":
        ends = ((question.low, question.low_text), (question.high, question.high_text))
        labels = [f"{number}{f': {localize(text)}' if text else ''}" for number, text in ends]
        click.echo("  " + " … ".join(labels))
    prompt = translate("several") if question.kind == "multiple" else ">"
    while True:
        line = str(click.prompt(prompt, default="", show_default=False))
        words = line.split() if question.kind == "multiple" else [line]
        try:
            questionnaires.parse_answer(question, [word.strip() for word in words if word.strip()])
        except UserError as error:
            click.echo(str(error), err=True)
        else:
            return words


def _read_answers(file: str) -> dict[str, Sequence[str]]:
    """Read a YAML file with an answer, or a list of them, for each question. Raises StudyError if it is not one."""
    try:
        content = yaml.safe_load(read_text_file(Path(file)))
    except yaml.YAMLError as error:
        raise texts.StudyError("bad_answers", file=file) from error
    if not isinstance(content, dict):
        raise texts.StudyError("bad_answers", file=file)
    lists = {question: value if isinstance(value, list) else [value] for question, value in content.items()}
    return {str(question): [str(v) for v in values if v is not None] for question, values in lists.items()}


@group.command()
@click.argument("text")
@click.option("--run", default="", help="id of the run it is about")
@participant_option
def note(text: str, run: str, participant_id: str) -> None:
    """Add TEXT (Markdown) to your journal."""
    with participant_session(participant_id) as (session, participant):
        notes.add_note(session, participant, text, run)
    click.echo(translate("note_kept"))


@group.command()
@participant_option
def journal(participant_id: str) -> None:
    """Print your journal as Markdown."""
    with participant_session(participant_id) as (session, participant):
        journal_text = notes.format_journal(notes.list_notes(session, participant))
    click.echo(texts.printable(journal_text, allowed="\n\t"), nl=False)  # a researcher reads those of others


@group.command()
@click.argument("situation")
@click.argument("technique")
@click.argument("why")
@participant_option
def prefer(situation: str, technique: str, why: str, participant_id: str) -> None:
    """Say which TECHNIQUE you prefer for which SITUATION, and WHY."""
    with participant_session(participant_id) as (session, participant):
        notes.add_preference(session, participant, situation, technique, why)
    click.echo(translate("preference_kept"))


@group.command("bundle")
@click.option("--output", default="", help="file to write; bundle-ID.zip if empty")
@click.option("--run", "run_ids", multiple=True, help="run whose models are included, once for each; else the newest")
@participant_option
def write_bundle(output: str, run_ids: tuple[str, ...], participant_id: str) -> None:
    """Make the one zip you hand in, with everything you did."""
    from compression.study import bundle  # brings torch

    participant_id = participants.resolve_id(participant_id)
    with participant_session(participant_id):
        pass  # checks the participant and sets the language; the session is not kept open while files are written
    path = bundle.make_bundle(participant_id, Path(output or f"bundle-{participant_id}.zip").absolute(), run_ids)
    click.echo(translate("bundled", file=path, size=f"{path.stat().st_size / 1e6:.1f}"))
