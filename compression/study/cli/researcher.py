"""What a researcher does, a command each."""

from __future__ import annotations

from pathlib import Path

import click

from compression.study import clock, definition, people, stages, store, texts
from compression.study.cli.group import group, text_of
from compression.study.texts import pick, say


@group.command()
@click.argument("file", required=False)
@click.option("--once", is_flag=True, help="leave the study there is as it is")
def create(file: str | None, once: bool) -> None:
    """Make the study that the YAML FILE defines (without one, the shipped study), or amend the one there is."""
    if once and store.defined():
        return
    study = store.define(text_of(Path(file) if file else definition.DEFAULT))
    click.echo(say("created", title=pick(study.title), url=store.public_url()))


@group.command()
def example() -> None:
    """Print the shipped study's YAML, to begin your own from."""
    click.echo(definition.DEFAULT.read_text(encoding="utf-8"), nl=False)


@group.command()
def upgrade() -> None:
    """Bring the study's database up to date with this version of the lab."""
    store.upgrade()
    click.echo(say("upgraded", url=store.public_url()))


@group.command()
@click.argument("id")
@click.option("--background", required=True, help="one of the study's: student, engineer, …")
@click.option("--assignment", default="", help="one of the study's; the rarest so far if empty")
@click.option("--language", default="en", show_default=True, help=f"one of {', '.join(texts.LANGUAGES)}")
@click.option("--login", default="", help="their user name at the tracking server; the id if empty")
def invite(id: str, background: str, assignment: str, language: str, login: str) -> None:
    """Invite a participant, who goes by ID: p07, say, and no name."""
    with store.session() as opened:
        person = people.invite(opened, id, background, language, assignment, login)
        task = store.study(opened).assignments[person.assignment]
    click.echo(say("invited", id=id, assignment=pick(task.title), task=task.task, model=task.model))


@group.command()
@click.argument("file")
def check(file: str) -> None:
    """Verify a bundle, without running anything in it."""
    from compression.study.check import check

    found = check(Path(file))
    if found.problems:
        raise texts.Refused("bundle_problems", participant=found.participant, problems=" ".join(found.problems))
    click.echo(say("bundle_whole", participant=found.participant, files=found.files))


@group.command("people")
def show_people() -> None:
    """Everybody who was invited: background, task, stage, clock."""
    with store.session() as opened:
        for person in people.everybody(opened):
            now, read = stages.current(opened, person), clock.read(opened, person)
            stage = "no consent yet" if person.consented is None else now.name if now else "handed in"
            running = f"clock: {read.row}{'' if read.running else ' (paused)'}" if read.row else ""
            words = (person.id, person.pseudonym, person.background, person.assignment, stage, running)
            click.echo("  ".join(word.ljust(12) for word in words).rstrip())


@group.command()
@click.option("--output", default="analysis", show_default=True, help="folder to write")
def analyze(output: str) -> None:
    """Write the analysis: times, choices, learning curves, agreement; CSV and pictures, under pseudonyms."""
    from compression.study import analysis

    for path in analysis.write(Path(output)):
        click.echo(str(path))


@group.command("forget")
@click.argument("id")
@click.option("--yes", is_flag=True, help="do it without asking")
def forget_person(id: str, yes: bool) -> None:
    """Remove everything of the participant ID from the database, MLflow and this disk, and show that it is gone."""
    from compression.study import forget

    if not yes and not click.confirm(f"Remove everything of {id} for good?"):
        raise click.Abort
    traces = forget.forget(id)
    for trace in traces:
        click.echo(f"{trace.place:<16} {trace.before:>6} → {trace.left}")
    if left := next(trace.left for trace in traces if trace.place == "runs"):
        click.echo(f"{left} runs wait in the server's bin; its administrator empties it: {forget.emptying(id)}")


@group.command()
@click.option("--participant", default="", help="serve this one person, without a login, to this machine alone")
@click.option("--researcher", is_flag=True, help="serve the researcher's pages, without a login, to this machine alone")
@click.option("--host", default="127.0.0.1", show_default=True, help="address to listen at")
@click.option("--port", default=8080, show_default=True, type=click.IntRange(0, 65535))
@click.option("--name", "names", multiple=True, help="host name that visitors use; once for each")
@click.option("--https", is_flag=True, help="visitors come over https: cookies go over nothing else")
def web(participant: str, researcher: bool, host: str, port: int, names: tuple[str, ...], https: bool) -> None:
    """Serve the study's pages; behind the logins of the MLflow server in MLFLOW_TRACKING_URI, or to one person."""
    from compression.study.web import serving

    serving.serve(serving.access(participant, researcher, host), host, port, names, https)
