"""`compression users`: the accounts of the tracking server."""

from __future__ import annotations

import sys

import click

from compression.tracking import users


@click.group("users", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def group() -> None:
    """Manage the accounts of the tracking server (MLFLOW_TRACKING_URI) and their permissions, as its administrator."""


@group.command()
@click.argument("name")
@click.option(
    "--role",
    type=click.Choice(list(users.ROLES)),
    default="participant",
    show_default=True,
    help="; ".join(f"{role}: {may}" for role, may in users.ROLES.items()),
)
def add(name: str, role: str) -> None:
    """Create the user NAME. The password is prompted for, or read from the standard input."""
    experiment = users.add(name, role, read_password())
    hint = f" Their experiment: MLFLOW_EXPERIMENT_NAME={experiment}" if experiment else ""
    click.echo(f"{name} has the role {role}.{hint}")


@group.command()
@click.argument("name")
def passwd(name: str) -> None:
    """Replace the password of the user NAME. The new one is prompted for, or read from the standard input."""
    users.set_password(name, read_password())
    click.echo(f"{name} has a new password.")


@group.command()
@click.argument("name")
def remove(name: str) -> None:
    """Delete the user NAME; their runs stay."""
    users.remove(name)
    click.echo(f"{name} is gone.")


@group.command("list")
def show() -> None:
    """List all users."""
    for name, kind in users.list_users():
        click.echo(f"{name:<24} {kind}")


def read_password() -> str:
    """Read a new password: typed twice at a terminal, else the first line of the standard input.

    Never an argument, which other users of the machine could see.
    """
    if sys.stdin.isatty():
        return str(click.prompt("Password, 12 characters or more", hide_input=True, confirmation_prompt=True))
    return sys.stdin.readline().rstrip("\n")
