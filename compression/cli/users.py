"""`compression users`: the accounts of the tracking server."""

from __future__ import annotations

import sys

import click

from compression.tracking import users


@click.group("users", context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def group() -> None:
    """Who may log in to the tracking server (MLFLOW_TRACKING_URI), and see what: for its administrator."""


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
    """Make the user NAME. The password is asked for, or read from the standard input."""
    theirs = users.add(name, role, password())
    click.echo(f"{name} is a {role}." + (f" Their experiment: MLFLOW_EXPERIMENT_NAME={theirs}" if theirs else ""))


@group.command()
@click.argument("name")
def passwd(name: str) -> None:
    """Give the user NAME another password, asked for or read from the standard input."""
    users.set_password(name, password())
    click.echo(f"{name} has a new password.")


@group.command()
@click.argument("name")
def remove(name: str) -> None:
    """Remove the user NAME; what they logged stays."""
    users.remove(name)
    click.echo(f"{name} is gone.")


@group.command("list")
def show() -> None:
    """Every user."""
    for name, kind in users.list_users():
        click.echo(f"{name:<24} {kind}")


def password() -> str:
    """A new password, typed twice at a terminal, else the first line of the standard input: never an argument."""
    if sys.stdin.isatty():
        return click.prompt("Password, 12 characters or more", hide_input=True, confirmation_prompt=True)
    return sys.stdin.readline().rstrip("\n")
