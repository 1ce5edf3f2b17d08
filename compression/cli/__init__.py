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
    """Run the command line and exit: 0 done, 1 refused or failed, 2 misused, 128 + n after signal n (130: Ctrl-C)."""
    # As an exception, so that open runs are ended on the way out; killed outright, they would stay RUNNING.
    for number in (signal.SIGTERM, signal.SIGHUP):  # SIGHUP: the terminal was closed
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, lambda number, _frame: sys.exit(128 + number))
    try:
        with explain_missing():
            # Standalone, click prints and exits by itself, and a run that `mlflow run` made would not hear of it.
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
        sys.exit(130)  # 128 + SIGINT, as shells count
    sys.exit(0)


def refuse(sentence: str, code: int) -> NoReturn:
    """Exit with `code`; a run that `mlflow run` made and nobody joined yet fails with the same sentence."""
    if in_project():
        from compression import tracking

        tracking.fail_joined_run(sentence)
    sys.exit(code)
