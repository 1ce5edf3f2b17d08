"""The MLflow project backend `host`: `mlflow run . -b host -e …` in the Python that mlflow itself runs in.

For containers and machines without Docker: the entry point runs as a child process, whatever environment the
MLproject file names.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path

from compression.backend.process import Launch, ProcessBackend


class HostBackend(ProcessBackend):
    """Runs an entry point as a child of this Python. pyproject.toml registers it as `host`."""

    name = "host"

    def process(self, launch: Launch) -> tuple[list[str], dict[str, str]]:
        """The command in a shell that finds this Python as `python`."""
        shim = Path(launch.scratch, "bin", "python")  # not every Python has a `python` beside it, nor its own there
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
        shim.chmod(0o755)
        path = (str(shim.parent), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
        return ["bash", "-c", launch.command], launch.variables | {"PATH": os.pathsep.join(path)}
