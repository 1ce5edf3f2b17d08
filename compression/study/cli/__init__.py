"""The commands of `compression study`, for participants and researchers."""

from compression.study.cli import participant, researcher
from compression.study.cli.group import group

__all__ = ["group", "participant", "researcher"]
