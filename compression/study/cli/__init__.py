"""`compression study …`: the commands of participants and of researchers."""

from compression.study.cli import participant, researcher
from compression.study.cli.group import group

__all__ = ["group", "participant", "researcher"]
