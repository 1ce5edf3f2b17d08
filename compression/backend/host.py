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
        folder = Path(sys.executable).parent
        path = [str(folder), os.environ.get("PATH", os.defpath)]
        # Some installations only have `python3`, and in others `python` is another one. A script is the last resort:
        # on hardened machines nothing in the temporary folder can be executed.
        if not (folder / "python").exists() or not (folder / "python").samefile(sys.executable):
            shim = Path(launch.scratch, "bin", "python")
            shim.parent.mkdir()
            shim.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n', encoding="utf-8")
            shim.chmod(0o755)
            path.insert(0, str(shim.parent))
        return ["bash", "-c", launch.command], launch.environment | {"PATH": os.pathsep.join(path)}
