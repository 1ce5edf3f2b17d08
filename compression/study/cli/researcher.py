"""The commands of researchers."""

from __future__ import annotations

from pathlib import Path

import click

from compression.study import clock, database, definition, forget, participants, stages, texts
from compression.study.cli.group import group, read_text_file
from compression.study.texts import localize, translate

MAX_PROBLEMS = 20  # of a bundle that are told


@group.command()
@click.argument("file", required=False)
@click.option("--once", is_flag=True, help="change nothing if there is a study already")
def create(file: str | None, once: bool) -> None:
    """Create the study that the YAML FILE defines (without one, the shipped study), or amend the existing one."""
    if once and database.has_definition():
        return
    study = database.save_definition(read_text_file(Path(file) if file else definition.DEFAULT_FILE))
    click.echo(translate("created", title=localize(study.title), url=database.redacted_url()))


@group.command()
def example() -> None:
    """Print the shipped study's YAML, to begin your own from."""
    click.echo(definition.DEFAULT_FILE.read_text(encoding="utf-8"), nl=False)


@group.command()
def upgrade() -> None:
    """Migrate the study's database to this version of the lab."""
    database.upgrade()
    click.echo(translate("upgraded", url=database.redacted_url()))


@group.command()
@click.argument("id")
@click.option("--background", required=True, help="one of the study's: student, engineer, …")
@click.option("--assignment", default="", help="one of the study's; the least used one if empty")
@click.option("--language", default="en", show_default=True, help=f"one of {', '.join(texts.LANGUAGES)}")
@click.option("--login", default="", help="their user name at the tracking server; the id if empty")
def invite(id: str, background: str, assignment: str, language: str, login: str) -> None:
    """Invite a participant under an ID that is not their name, such as p07."""
    with database.open_session() as session:
        participant = participants.invite(session, id, background, language, assignment, login)
        task = database.load_study(session).assignments[participant.assignment]
    title = localize(task.title)
    click.echo(translate("invited", id=id, assignment=title, task=task.task, model=task.model))


@group.command()
@click.argument("file")
def check(file: str) -> None:
    """Verify a bundle, without running anything in it."""
    from compression.study import budget, bundle_check  # brings torch

    with budget.limited():
        result = bundle_check.check_bundle(Path(file))
    if result.problems:
        shown, more = result.problems[:MAX_PROBLEMS], len(result.problems) - MAX_PROBLEMS
        problems = " ".join([*shown, *([translate("more_problems", count=more)] if more > 0 else [])])
        raise texts.StudyError("bundle_problems", participant=result.participant, problems=problems)
    click.echo(translate("bundle_whole", participant=result.participant, files=result.files))


@group.command("people")
def show_participants() -> None:
    """List everybody who was invited: background, task, stage, clock."""
    with database.open_session() as session:
        for participant in participants.list_participants(session):
            current, state = stages.current(session, participant), clock.load(session, participant)
            stage = "no consent yet" if participant.consented is None else current.name if current else "handed in"
            running = f"clock: {state.row}{'' if state.is_running else ' (paused)'}" if state.row else ""
            facts = (participant.id, participant.pseudonym, participant.background, participant.assignment)
            click.echo("  ".join(fact.ljust(12) for fact in (*facts, stage, running)).rstrip())


@group.command()
@click.option("--output", default="analysis", show_default=True, help="folder to write")
def analyze(output: str) -> None:
    """Write the analysis: times, choices, learning curves, agreement; CSV and figures, under pseudonyms."""
    from compression.study import analysis  # brings matplotlib

    for path in analysis.write_analysis(Path(output)):
        click.echo(str(path))


@group.command("forget")
@click.argument("id")
@click.option("--yes", is_flag=True, help="do it without asking")
def forget_participant(id: str, yes: bool) -> None:
    """Remove everything of the participant ID from the database, MLflow and this disk, and show that it is gone."""
    if not yes and not click.confirm(f"Remove everything of {id} for good?"):
        raise click.Abort
    deletions = forget.forget(id)
    for deletion in deletions:
        click.echo(f"{deletion.place:<16} {deletion.before:>6} → {deletion.after}")
    for deletion in deletions:
        if deletion.remedy:
            click.echo(
                f"{deletion.after} {deletion.place} wait in the server's bin; its administrator empties it: "
                f"{deletion.remedy}"
            )


@group.command()
@click.option("--participant", default="", help="serve this one person, without a login, to this machine alone")
@click.option("--researcher", is_flag=True, help="serve the researcher's pages, without a login, to this machine alone")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--name", "names", multiple=True, help="host name that visitors use; once for each")
@click.option("--https", is_flag=True, help="visitors use HTTPS: cookies are sent over nothing else")
def web(participant: str, researcher: bool, host: str, port: int, names: tuple[str, ...], https: bool) -> None:
    """Serve the study's pages; behind the logins of the MLflow server in MLFLOW_TRACKING_URI, or to one person."""
    from compression.study.web import serving  # brings FastAPI

    serving.serve(serving.choose_access(participant, researcher, host), host, port, names, https)
