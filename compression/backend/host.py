"""The MLflow project backend `host`: `mlflow run . -b host -e …` in the Python that mlflow itself runs in.

For machines without Docker, and for use inside containers: the entry point runs as a child process, whatever
environment the MLproject file names.
"""

from __future__ import annotations

import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from compression.backend.process_backend import ProcessBackend

if TYPE_CHECKING:
    from compression.backend.process_backend import Launch


class HostBackend(ProcessBackend):
    """Runs an entry point as a child of this Python. pyproject.toml registers it as `host`."""

    name = "host"

    def child_command(self, launch: Launch) -> tuple[list[str], dict[str, str]]:
        """Return the entry point's command in a shell that finds this Python as `python`."""
        shim = Path(launch.scratch, "bin", "python")  # some installations only have `python3`
        shim.parent.mkdir()
        shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
        shim.chmod(0o755)
        path = (str(shim.parent), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath))
        return ["bash", "-c", launch.command], launch.environment | {"PATH": os.pathsep.join(path)}
