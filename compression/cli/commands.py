"""The commands of the lab. Heavy modules are imported when a command runs, so that help comes at once."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from compression import __version__, methods, models, tasks
from compression.cli.options import CONTEXT, FieldCommand, LazyGroup, pick
from compression.deploy.formats import FORMATS
from compression.errors import UserError
from compression.runs.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

USERS = "Manage the accounts of the tracking server and their permissions."
STUDY = "Take part in the study, or run it: people, time, questionnaires, hand-in, analysis."


class Family(click.Group):
    """A family of methods: each is a command, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """The methods of the family."""
        return methods.of_family(self.name or "")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """The command of a method; UsageError if the family has none of that name."""
        if cmd_name not in self.list_commands(ctx):
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"There is no method {cmd_name!r} in {self.name}; there are {known}.")
        cls = methods.method(cmd_name)

        def run(**given: Any) -> None:
            finish(lambda chain: chain.compress(settings(given), [pick(cls, given)]))

        return FieldCommand(cmd_name, lambda: [cls, Settings], run, help=cls.__doc__)


def settings(given: dict[str, Any]) -> Settings:
    """The settings among the parsed options, with the study as observer of runs that have a participant."""
    found: Settings = pick(Settings, given)
    if not found.person:
        return found
    from compression.study.observer import StudyObserver  # brings SQLAlchemy

    return dataclasses.replace(found, observer=StudyObserver())


def finish(work: Callable[[Any], dict[str, Any]]) -> None:
    """Do a run's work and print its table."""
    from compression.reporting import report
    from compression.runs import chain

    if content := work(chain):
        click.echo(f"\n{content['title']}\n\n{report.comparison_table(content)}\n")


def compress(recipe: str, **given: Any) -> None:
    """Apply the methods of a RECIPE in turn: structured:sparsity=0.5+response:temperature=4, or @FILE.yaml."""
    finish(lambda chain: chain.compress(settings(given), methods.parse(recipe)))


def tune(recipe: str, **given: Any) -> None:
    """Search the fields that a RECIPE leaves out, with Optuna: structured+finetune:epochs=2+static."""
    from compression.tuning import tune
    from compression.tuning.config import TuningConfig

    content = tune.tune(settings(given), recipe, pick(TuningConfig, given))
    click.echo(f"\n{content['title']}\n\n{tune.table(content)}\n")


def train(**given: Any) -> None:
    """Train a model from scratch: a baseline that later runs start from."""
    step = methods.method("finetune")
    finish(lambda chain: chain.train(settings(given), pick(step, given)))


def evaluate(**given: Any) -> None:
    """Measure a trained model without changing it."""
    finish(lambda chain: chain.evaluate(settings(given)))


def report(run: tuple[str, ...], output: str, task: str, **given: Any) -> None:
    """Write an HTML page: the report of one --run, a comparison of several, or an overview of a --task."""
    from compression.reporting import comparison, survey

    # both, or neither
    if bool(run) == bool(task):
        raise UserError("report takes run ids or a task: --run ID [--run ID …], or --task NAME.")
    if task:
        page, table = survey.write_survey(tasks.short_name(task), pick(survey.Budget, given), output)
        click.echo(table)
    else:
        page = comparison.write_page(run, output)
    if in_project():
        comparison.log_page(page, run)
    click.echo(f"Wrote {page}.")


def report_options() -> Sequence[type]:
    """The dataclasses whose fields `report` takes."""
    from compression.reporting.survey import Budget

    return [Budget]


def export(model: str, kind: str, output: str) -> None:
    """Write a stored MODEL (runs:/ID/model, models:/NAME/VERSION, a folder) as one file for other tools."""
    from compression.deploy.onnx import files
    from compression.runs.export import write

    click.echo(f"Wrote {' and '.join(map(str, files.parts(write(model, kind, Path(output)))))}.")
    if caution := FORMATS[kind].caution:
        click.echo(f"Note: {caution}", err=True)


def sync() -> None:
    """Deliver what runs could not deliver while the server was unavailable, and end those that were killed."""
    from compression import tracking

    sent = tracking.sync()
    click.echo(f"Sent {sent} entries; {tracking.undelivered_runs() or 'none'} left.")


def doctor(close_runs: bool) -> None:
    """Check what runs need (server, disk, data, GPU, Docker), with advice about what is missing."""
    from compression.backend import doctor

    if close_runs:
        click.echo(f"Closed {doctor.fail_never_started_runs()} runs.")
    results = doctor.run_checks()
    for result in results:
        mark = "ok" if result.ok else "MISSING" if result.is_required else "no"
        click.echo(f"{mark:<8} {result.name:<14} {result.message}")
    if missing := [result.name for result in results if result.is_required and not result.ok]:
        raise UserError(f"No run can begin without: {', '.join(missing)}.")


def in_project() -> bool:
    """Whether `mlflow run` started this command, and made a run for it."""
    return "MLFLOW_RUN_ID" in os.environ


def tune_options() -> Sequence[type]:
    """The dataclasses whose fields `tune` takes."""
    from compression.tuning.config import TuningConfig

    return [TuningConfig, Settings]


def overview() -> str:
    """List the methods by family, the tasks and the models, those of installed packages too, for the help's end."""
    lines = [f"  {name:<10} {', '.join(methods.of_family(name))}" for name in methods.FAMILIES]
    paragraphs = (
        f"Tasks: {', '.join((*tasks.TASKS, *tasks.FORMS))}",
        f"Models for images: {', '.join(models.IMAGE_MODELS)}, or a name of the Hugging Face hub, or a folder",
        f"Models for text: {', '.join(models.TEXT_MODELS)}, or a name of the Hugging Face hub, or a folder",
        f"Language models: {', '.join(models.LANGUAGE_MODELS)}, or a name of the hub, or a folder, or gguf:FILE",
    )
    return "\n\n".join(["\n".join(["\b", "Methods, by family:", *lines]), *paragraphs])


class Lab(click.Group):
    """The group of all commands; the end of its help is made when it is shown: it looks into installed packages."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write methods, tasks and models."""
        self.epilog = overview()
        super().format_epilog(ctx, formatter)


@click.group(cls=Lab, context_settings=CONTEXT)
@click.version_option(__version__)
def cli() -> None:
    """Compress a neural network, measure it honestly before and after, keep everything in MLflow."""


for name, about in methods.FAMILIES.items():
    # a command of its own, below
    if name != "train":
        cli.add_command(Family(name, help=f"{about[0].upper()}{about[1:]}.", context_settings=CONTEXT))
recipe = click.Argument(["recipe"])
runs = click.Option(["--run"], multiple=True, help="run id; once for each run to compare")
of_task = click.Option(["--task"], default="", help="report over all finished runs of a task")
model = click.Argument(["model"])
kind = click.Option(
    ["--format", "kind"],
    type=click.Choice([*FORMATS]),
    default="onnx",
    show_default=True,
    help="; ".join(f"{name}: {each.about}" for name, each in FORMATS.items()),
)
file = click.Option(["--output"], required=True, help="file or folder to write")
closing = click.Option(["--close-runs"], is_flag=True, help="set runs whose container never started to FAILED")
output = click.Option(["--output"], default="report.html", show_default=True, help="file to write")
cli.add_command(FieldCommand("compress", lambda: [Settings], compress, params=[recipe], help=compress.__doc__))
cli.add_command(FieldCommand("tune", tune_options, tune, params=[recipe], help=tune.__doc__))
cli.add_command(FieldCommand("train", lambda: [methods.method("finetune"), Settings], train, help=train.__doc__))
cli.add_command(FieldCommand("evaluate", lambda: [Settings], evaluate, help=evaluate.__doc__))
cli.add_command(FieldCommand("report", report_options, report, params=[runs, of_task, output], help=report.__doc__))
cli.add_command(click.Command("export", callback=export, params=[model, kind, file], help=export.__doc__))
cli.add_command(click.Command("sync", callback=sync, help=sync.__doc__))
cli.add_command(click.Command("doctor", callback=doctor, params=[closing], help=doctor.__doc__))
# Their modules import SQLAlchemy or MLflow's client, for which no other command's help should wait.
cli.add_command(LazyGroup("users", "compression.cli.users", help=USERS, context_settings=CONTEXT))
cli.add_command(LazyGroup("study", "compression.study.cli", help=STUDY, context_settings=CONTEXT))
