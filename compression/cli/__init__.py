"""The command line: `main` runs it. Commands and options are made from METHODS, TASKS and the fields of dataclasses."""

from __future__ import annotations

import signal
import sys
from typing import NoReturn

import click

from compression.cli.commands import cli, in_project
from compression.errors import UserError
from compression.extras import explain_missing

__all__ = ["cli", "main"]


def main(args: list[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0 done, 1 refused or failed, 2 misused, 130 Ctrl-C, 143 SIGTERM."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with explain_missing():
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
