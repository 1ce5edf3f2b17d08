"""The command line, made from METHODS, TASKS and the fields of their dataclasses."""

from __future__ import annotations

import dataclasses
import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import click

from compression import __version__, methods, params
from compression.errors import UserError
from compression.runs.settings import Settings
from compression.tasks import TASKS

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda word: word.replace("_", "-"),  # mlflow run -P learning_rate=… passes it with _
    "max_content_width": 110,
}

USERS = "Who may log in to the tracking server, and see what."
STUDY = "Take part in the study, or run it: people, time, questionnaires, hand-in, analysis."


class FieldType(click.ParamType):
    """Reads and checks as the field does, and shows the field's range."""

    def __init__(self, field: params.Field):
        self.field = field
        interval = f"in {field.param.interval.text}" if field.param.interval else ""
        choices = "|".join(field.param.choices)
        several = f"{choices}{field.kind.separator}…" if field.kind.container else choices
        self.name = several if choices else f"{field.kind.shown} {interval}".strip()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if value == "" and self.field.empty:
            return self.field.default
        try:
            return self.field.parse(value)
        except UserError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return self.name


def options(cls: type) -> list[click.Parameter]:
    """A click option for every field of a dataclass."""
    return [FieldOption(field) for field in params.fields(cls).values()]


class FieldOption(click.Option):
    """The option of a field. Its default is shown unless it is empty; None in a training is the task's own value."""

    def __init__(self, field: params.Field):
        self.field = field
        shown: bool | str = not field.empty if not field.kind.container else field.text(field.default) or False
        if field.optional:
            shown = "the task's own" if field.group == "training" else False
        super().__init__(
            [f"--{field.name.replace('_', '-')}", field.name],
            type=FieldType(field),
            default=field.default,
            help=field.param.help,
            show_default=shown,
        )

    @property
    def section(self) -> str:
        """The heading of the help that it stands under."""
        conditions = [f"{name}={'|'.join(map(str, having))}" for name, having in self.field.when.items()]
        with_ = f" with {' and '.join(conditions)}" if conditions else ""
        return f"{'Training' if self.field.group else 'Options'}{with_}"


class FieldCommand(click.Command):
    """A command whose options are the fields of `classes()`, which is not called before they are needed."""

    def __init__(self, name: str, classes: Callable[[], Sequence[type]], callback: Callable, **kwargs: Any):
        super().__init__(name, callback=callback, context_settings=CONTEXT, **kwargs)
        self.classes = classes

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        own = super().get_params(ctx)
        return [*own[:-1], *(o for cls in self.classes() for o in options(cls)), own[-1]]  # --help comes last

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Group a method's own options by the condition under which they have an effect, then training, then run."""
        run = params.fields(Settings)
        sections: dict[str, list[tuple[str, str]]] = {}
        for option in self.get_params(ctx):
            own = option.section if isinstance(option, FieldOption) and option.name not in run else ""
            last = "Run" if isinstance(option, FieldOption) or option.name == "help" else "Options"
            if row := option.get_help_record(ctx):
                sections.setdefault(own or last, []).append(row)
        for heading in sorted(sections, key=lambda h: (h == "Run", h.startswith("Training"), h != "Options")):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


class Family(click.Group):
    """A family of methods: each is a command, imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return methods.of_family(self.name or "")

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        if cmd_name not in self.list_commands(ctx):
            known = ", ".join(self.list_commands(ctx))
            raise click.UsageError(f"There is no method {cmd_name!r} in {self.name}; there are {known}.")
        cls = methods.method(cmd_name)

        def run(**given: Any) -> None:
            finish(lambda chain: chain.compress(settings(given), [pick(cls, given)]))

        return FieldCommand(cmd_name, lambda: [cls, Settings], run, help=cls.__doc__)


class Later(click.Group):
    """A group of commands whose module is imported when one of them is asked for."""

    def __init__(self, name: str, place: str, **kwargs: Any):
        super().__init__(name, **kwargs)
        self.place = place

    @functools.cached_property
    def group(self) -> click.Group:
        return importlib.import_module(self.place).group

    def list_commands(self, ctx: click.Context) -> list[str]:
        return self.group.list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        return self.group.get_command(ctx, cmd_name)


def pick(cls: type, given: dict[str, Any]) -> Any:
    """The instance of `cls` from those of the parsed options that are its fields."""
    return cls(**{name: given[name] for name in params.fields(cls)})


def settings(given: dict[str, Any]) -> Settings:
    """The settings among the parsed options. Runs in somebody's name are told to the study."""
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
        click.echo(f"\n{content['title']}\n\n{report.table(content)}\n")


def compress(recipe: str, **given: Any) -> None:
    """Apply the methods of a RECIPE in turn: structured:sparsity=0.5+response:temperature=4, or @FILE.yaml."""
    finish(lambda chain: chain.compress(settings(given), methods.parse(recipe)))


def tune(recipe: str, **given: Any) -> None:
    """Search with Optuna what a RECIPE leaves open: structured+finetune:epochs=2+static."""
    from compression.tuning import tune
    from compression.tuning.plan import Plan

    content = tune.tune(settings(given), recipe, pick(Plan, given))
    click.echo(f"\n{content['title']}\n\n{tune.table(content)}\n")


def train(**given: Any) -> None:
    """Train a model from its start: a baseline that later runs begin from."""
    step = methods.method("finetune")
    finish(lambda chain: chain.train(settings(given), pick(step, given)))


def evaluate(**given: Any) -> None:
    """Measure a trained model as it is."""
    finish(lambda chain: chain.evaluate(settings(given)))


def report(run: tuple[str, ...], output: str, task: str, **given: Any) -> None:
    """Write a page: of one --run its own report, of several how they compare, of a --task all its runs."""
    from compression.reporting import comparison, survey

    if bool(run) == bool(task):
        raise UserError("report takes run ids or a task: --run ID [--run ID …], or --task NAME.")
    if task:
        page, table = survey.write(task, pick(survey.Budget, given), output)
        click.echo(table)
    else:
        page = comparison.write(run, output)
    if in_project():
        comparison.keep(page, run)
    click.echo(f"Wrote {page}.")


def surveyed() -> Sequence[type]:
    """What a report over a task's runs is told besides."""
    from compression.reporting.survey import Budget

    return [Budget]


def export(model: str, kind: str, output: str) -> None:
    """Write a stored MODEL (runs:/ID/model, models:/NAME/VERSION, a folder) as one file for other tools."""
    from compression.runs import export as files

    click.echo(f"Wrote {files.write(model, kind, Path(output))}.")
    if kind in files.CAUTIONS:
        click.echo(f"Note: {files.CAUTIONS[kind]}", err=True)


def sync() -> None:
    """Send what runs could not deliver while the tracking server was gone."""
    from compression import tracking

    sent = tracking.sync()
    click.echo(f"Sent {sent} records; {tracking.undelivered_runs() or 'none'} left.")


def doctor(close_runs: bool) -> None:
    """Look at what runs need (server, disk, data, GPU, Docker) and say what to do about what is missing."""
    from compression.backend import doctor

    if close_runs:
        click.echo(f"Closed {doctor.close_runs()} runs.")
    findings = doctor.examine()
    for found in findings:
        mark = "ok" if found.well else "MISSING" if found.needed else "no"
        click.echo(f"{mark:<8} {found.name:<14} {found.sentence}")
    if lacking := [found.name for found in findings if found.needed and not found.well]:
        raise UserError(f"No run can begin without: {', '.join(lacking)}.")


def in_project() -> bool:
    """Whether `mlflow run` started this command, and made a run for it."""
    return "MLFLOW_RUN_ID" in os.environ


def tuned() -> Sequence[type]:
    """What `tune` is told."""
    from compression.tuning.plan import Plan

    return [Plan, Settings]


def overview() -> str:
    lines = [f"  {name:<10} {', '.join(methods.of_family(name))}" for name in methods.FAMILIES]
    tasks = ", ".join(TASKS)
    return "\n".join(["\b", "Methods, by family:", *lines, "", f"Tasks: {tasks}"])


@click.group(context_settings=CONTEXT, epilog=overview())
@click.version_option(__version__)
def cli() -> None:
    """Compress a neural network, measure it honestly before and after, keep everything in MLflow."""


for name, about in methods.FAMILIES.items():
    if name != "train":
        cli.add_command(Family(name, help=f"{about[0].upper()}{about[1:]}.", context_settings=CONTEXT))
recipe = click.Argument(["recipe"])
runs = click.Option(["--run"], multiple=True, help="run id; once for each run to compare")
of_task = click.Option(["--task"], default="", help="report over all finished runs of a task")
model = click.Argument(["model"])
kind = click.Option(
    ["--format", "kind"],
    type=click.Choice(["onnx", "qcdq", "pth"]),
    default="onnx",
    show_default=True,
    help="onnx: to deploy; qcdq: 8-bit containers in standard operators; pth: the weights alone",
)
file = click.Option(["--output"], required=True, help="file to write")
closing = click.Option(["--close-runs"], is_flag=True, help="set runs whose container never came to FAILED")
output = click.Option(["--output"], default="report.html", show_default=True, help="file to write")
cli.add_command(FieldCommand("compress", lambda: [Settings], compress, params=[recipe], help=compress.__doc__))
cli.add_command(FieldCommand("tune", tuned, tune, params=[recipe], help=tune.__doc__))
cli.add_command(FieldCommand("train", lambda: [methods.method("finetune"), Settings], train, help=train.__doc__))
cli.add_command(FieldCommand("evaluate", lambda: [Settings], evaluate, help=evaluate.__doc__))
cli.add_command(FieldCommand("report", surveyed, report, params=[runs, of_task, output], help=report.__doc__))
cli.add_command(click.Command("export", callback=export, params=[model, kind, file], help=export.__doc__))
cli.add_command(click.Command("sync", callback=sync, help=sync.__doc__))
cli.add_command(click.Command("doctor", callback=doctor, params=[closing], help=doctor.__doc__))
cli.add_command(Later("users", "compression.cli.users", help=USERS, context_settings=CONTEXT))
cli.add_command(Later("study", "compression.study.cli", help=STUDY, context_settings=CONTEXT))


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 refused or failed, 2 misused, 130 Ctrl-C, 143 SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        cli.main(args, prog_name="compression", standalone_mode=False)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        refuse(error.format_message(), error.exit_code)
    except UserError as error:
        click.echo(f"Error: {error}", err=True)
        refuse(str(error), 1)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    sys.exit(0)


def refuse(sentence: str, code: int) -> NoReturn:
    """Exit with `code`; a run that `mlflow run` made and nobody joined yet fails with the same sentence."""
    if in_project():
        from compression import tracking

        tracking.fail_joined_run(sentence)
    sys.exit(code)
