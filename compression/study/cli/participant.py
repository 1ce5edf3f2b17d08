"""What a participant does, a command each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import yaml
from sqlalchemy.orm import Session

from compression.errors import UserError
from compression.study import clock, notes, people, questionnaires, sheets, stages, store, texts, timesheet
from compression.study.cli.group import group, text_of
from compression.study.definition import Question
from compression.study.tables import Participant
from compression.study.texts import pick, say


def me(command: Callable) -> Callable:
    """The option by which a participant's command is told who they are."""
    return click.option("--participant", default="", help="your id; COMPRESSION_PARTICIPANT if empty")(command)


@contextlib.contextmanager
def as_participant(given: str) -> Iterator[tuple[Session, Participant]]:
    """A session as a participant who consented; from here on the process speaks their language."""
    id = people.named(given)
    with store.session() as opened:
        texts.language.set(people.find(opened, id).language)
        person = people.consenting(opened, id)
        yield opened, person
        if (idle := clock.idle_hours(opened, person)) is not None:
            click.echo(say("idle", row=clock.read(opened, person).row, hours=f"{idle:.1f}"), err=True)


@group.command()
@me
@click.option("--yes", is_flag=True, help="you have read the text and agree")
def consent(participant: str, yes: bool) -> None:
    """Read what the study keeps of you, and agree to take part."""
    with store.session() as opened:
        person = people.find(opened, people.named(participant))
        texts.language.set(person.language)
        click.echo(pick(store.study(opened).consent))
        if not yes and not click.confirm(say("agree")):
            raise texts.Refused("consent_first")
        people.consent(opened, person)
    click.echo(say("consented"))


@group.command()
@me
def status(participant: str) -> None:
    """Where you are: your task, the stages, the clock, and what comes next."""
    with as_participant(participant) as (opened, person):
        study, finished, now = store.study(opened), stages.done(opened, person), stages.current(opened, person)
        task = study.assignments[person.assignment]
        click.echo(say("your_task", title=pick(task.title), task=task.task, model=task.model))
        for stage in study.stages:
            mark = "✓" if stage.name in finished else "→" if stage == now else " "
            click.echo(f" {mark} {pick(stage.title)} ({stage.name})")
        click.echo(clock_line(clock.read(opened, person)))
        click.echo(pick(now.about) if now else say("all_done"))


def clock_line(read: clock.Clock) -> str:
    """What the clock is doing, in a sentence."""
    if not read.row:
        return say("clock_off")
    return say("clock_runs" if read.running else "clock_held", row=read.row)


@group.command()
@click.argument("row")
@me
def start(row: str, participant: str) -> None:
    """Start the clock for ROW of the time sheet (learn/pruning, say); what ran before ends."""
    with as_participant(participant) as (opened, person):
        clock.start(opened, person, row)
        click.echo(clock_line(clock.read(opened, person)))


def _clock_command(name: str, change: Callable[[Session, Participant], Any], about: str) -> None:
    def run(participant: str) -> None:
        with as_participant(participant) as (opened, person):
            change(opened, person)
            click.echo(clock_line(clock.read(opened, person)))

    group.command(name, help=about)(me(run))


_clock_command("pause", clock.pause, "Hold the clock.")
_clock_command("resume", clock.resume, "Go on after a pause.")
_clock_command("stop", clock.stop, "Stop the clock.")


@group.command()
@click.argument("row")
@click.option("--hours", type=float, required=True, help="to add; less than zero to take away, --hours -1.5")
@click.option("--reason", required=True, help="why; it is kept beside what was recorded")
@me
def correct(row: str, hours: float, reason: str, participant: str) -> None:
    """Correct the hours of ROW; nothing that was recorded is overwritten."""
    with as_participant(participant) as (opened, person):
        left = clock.correct(opened, person, row, hours, reason)
    click.echo(say("corrected", row=row, hours=f"{left:.2f}"))


@group.command("sheet")
@me
@click.option("--csv", "as_csv", is_flag=True, help="as CSV")
def show_sheet(participant: str, as_csv: bool) -> None:
    """Your hours: by the clock, and beside them those your runs recorded."""
    from compression.study import runs

    with as_participant(participant) as (opened, person):
        lines = timesheet.sheet(opened, person, runs.of_person(person.id))
    click.echo(sheets.text(timesheet.rows(lines)) if as_csv else timesheet.table(lines), nl=not as_csv)


@group.command()
@click.argument("stage", required=False)
@me
def done(stage: str | None, participant: str) -> None:
    """Say that a stage of work is done (the current one, unless STAGE is named); the next one opens."""
    with as_participant(participant) as (opened, person):
        finished = stages.finish_work(opened, person, stage or "")
        following = stages.current(opened, person)
        click.echo(say("stage_done", stage=pick(finished.title), following=pick(following.title) if following else "–"))


@group.command()
@click.argument("questionnaire")
@click.option("--file", help="YAML with an answer for every question, instead of being asked")
@click.option("--receipt", default="", help="of the outside form, where the study has one")
@me
def answer(questionnaire: str, file: str | None, receipt: str, participant: str) -> None:
    """Answer a QUESTIONNAIRE (before, learned or after); answering again keeps a new version."""
    with as_participant(participant) as (opened, person):
        stage, asked = questionnaires.find(opened, questionnaire)
        stages.require_open(opened, person, stage)
        if receipt:
            version = questionnaires.hand_receipt(opened, person, questionnaire, receipt)
        else:
            given = _answers_of(file) if file else {q.name: ask(q) for q in asked.questions}
            version = questionnaires.answer(opened, person, questionnaire, given)
    click.echo(say("answered", title=pick(asked.title), version=version))


def ask(question: Question) -> list[str]:
    """One question at the terminal, asked again until its answer can be kept."""
    click.echo(f"\n{pick(question.text)}{'' if question.required else say('optional')}")
    for name, text in question.choices.items():
        click.echo(f"  {name}: {pick(text)}")
    if question.kind == "scale":
        ends = [f"{number}{f': {pick(text)}' if text else ''}" for number, text in _ends(question)]
        click.echo("  " + " … ".join(ends))
    while True:
        given = str(
            click.prompt(say("several") if question.kind == "multiple" else ">", default="", show_default=False)
        )
        said = given.split() if question.kind == "multiple" else [given]
        try:
            questionnaires.value(question, [word.strip() for word in said if word.strip()])
        except UserError as error:
            click.echo(str(error), err=True)
        else:
            return said


def _ends(question: Question) -> list[tuple[int, dict[str, str] | None]]:
    return [(question.low, question.low_text), (question.high, question.high_text)]


def _answers_of(file: str) -> dict[str, Sequence[str]]:
    """The answers in a YAML file: a value, or a list of them, by question."""
    try:
        content = yaml.safe_load(text_of(Path(file)))
    except yaml.YAMLError as error:
        raise texts.Refused("bad_answers", file=file) from error
    if not isinstance(content, dict):
        raise texts.Refused("bad_answers", file=file)
    return {str(k): [str(x) for x in (v if isinstance(v, list) else [v]) if x is not None] for k, v in content.items()}


@group.command()
@click.argument("text")
@click.option("--run", default="", help="id of the run it is about")
@me
def note(text: str, run: str, participant: str) -> None:
    """Add TEXT (Markdown) to your journal."""
    with as_participant(participant) as (opened, person):
        notes.add(opened, person, text, run)
    click.echo(say("note_kept"))


@group.command()
@me
def journal(participant: str) -> None:
    """Print your journal as Markdown."""
    with as_participant(participant) as (opened, person):
        click.echo(notes.markdown(notes.journal(opened, person)), nl=False)


@group.command()
@click.argument("situation")
@click.argument("technique")
@click.argument("why")
@me
def prefer(situation: str, technique: str, why: str, participant: str) -> None:
    """Say which TECHNIQUE you prefer for which SITUATION, and WHY."""
    with as_participant(participant) as (opened, person):
        notes.prefer(opened, person, situation, technique, why)
    click.echo(say("preference_kept"))


@group.command()
@click.option("--output", default="", help="file to write; bundle-ID.zip if empty")
@click.option("--run", "chosen", multiple=True, help="run whose models go in; the newest if none; once for each")
@me
def bundle(output: str, chosen: tuple[str, ...], participant: str) -> None:
    """Make the one zip you hand in, with everything you did."""
    from compression.study import bundle

    id = people.named(participant)
    with as_participant(participant):
        pass  # who it is, and in which language
    made = bundle.make(id, Path(output or f"bundle-{id}.zip").absolute(), chosen)
    click.echo(say("bundled", file=made, size=f"{made.stat().st_size / 1e6:.1f}"))
