"""Commands and options made from the fields of dataclasses."""

from __future__ import annotations

import functools
import importlib
from typing import TYPE_CHECKING, Any

import click

from compression import params
from compression.errors import UserError
from compression.runs.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

CONTEXT: dict[str, Any] = {
    "help_option_names": ["-h", "--help"],
    "token_normalize_func": lambda word: word.replace("_", "-"),  # mlflow run -P learning_rate=… passes it with _
    "max_content_width": 110,
}


class FieldType(click.ParamType[Any]):
    """Reads and checks as the field does, and shows the field's range."""

    def __init__(self, field: params.Field):
        self.field = field
        interval = f"in {field.param.interval.text}" if field.param.interval else ""
        choices = "|".join(field.param.choices)
        several = f"{choices}{field.kind.separator}…" if field.kind.container else choices
        self.name = several if choices else f"{field.kind.metavar} {interval}".strip()

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse the text of an option; an empty text stands for an empty default."""
        # A default comes as its value.
        if not isinstance(value, str):
            return value
        if value == "" and self.field.empty:
            return self.field.default
        try:
            return self.field.parse(value)
        except UserError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:  # noqa: ARG002 - click's
        """The type and range, as the help shows them."""
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

    def __init__(self, name: str, classes: Callable[[], Sequence[type]], callback: Callable[..., None], **kwargs: Any):
        super().__init__(name, callback=callback, context_settings=CONTEXT, **kwargs)
        self.classes = classes

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Its own parameters, then an option per field."""
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
        # False comes first: own options, those with a condition, the training's, and at last the run's.
        for heading in sorted(sections, key=lambda h: (h == "Run", h.startswith("Training"), h != "Options")):
            with formatter.section(heading):
                formatter.write_dl(sections[heading])


class LazyGroup(click.Group):
    """A group of commands whose module, which holds them as `group`, is imported when one is asked for."""

    def __init__(self, name: str, place: str, **kwargs: Any):
        super().__init__(name, **kwargs)
        self.place = place

    @functools.cached_property
    def group(self) -> click.Group:
        """The group itself, imported now."""
        group: click.Group = importlib.import_module(self.place).group
        return group

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands of the group."""
        return self.group.list_commands(ctx)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A command of the group; None if there is none of that name."""
        return self.group.get_command(ctx, cmd_name)


def pick(cls: type, given: dict[str, Any]) -> Any:
    """Build `cls` from those of the parsed options that are its fields."""
    return cls(**{name: given[name] for name in params.fields(cls)})
