"""What a run needs of this machine, looked at, with what to do about what is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from compression import tracking
from compression.backend import engine
from compression.errors import UserError

ROOM = 5e9  # bytes that a run's checkpoints, models and reports may take with room to spare


@dataclass(frozen=True)
class Finding:
    """One thing looked at. What is `needed` and not `well` would make every run fail."""

    name: str
    well: bool
    sentence: str
    needed: bool = False


def examine() -> list[Finding]:
    """Everything, in the order in which a run needs it. Takes some seconds and changes nothing."""
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("server", server, True),
        ("runs", runs, False),
        ("disk", disk, True),
        ("data", data, False),
        ("gpu", gpu, False),
        ("engine", lambda: f"Docker {engine.engine().version()}", False),
        ("image", image, False),
        ("gpu in docker", docker_gpu, False),
    ]
    return [_finding(name, check, needed) for name, check, needed in checks]


def _finding(name: str, check: Callable[[], str], needed: bool) -> Finding:
    try:
        return Finding(name, True, check(), needed)
    except UserError as error:
        return Finding(name, False, str(error), needed)


def server() -> str:
    tracking.check_server()
    return f"runs go to {tracking.redact_uri(tracking.tracking_uri())}"


def runs() -> str:
    if left := tracking.orphaned_runs():
        raise UserError(
            f"{len(left)} runs are RUNNING whose container never came (plain `mlflow run` leaves them so when Docker "
            "is down); close them with `compression doctor --close-runs`, and use `-b docker`, which looks first."
        )
    return "none waits for a container that never came"


def close_runs() -> int:
    """Set the runs whose container never came to FAILED; how many."""
    left = tracking.orphaned_runs()
    for run in left:
        tracking.mark_failed(run, "Its container never came: see `compression doctor`.")
    return len(left)


def disk() -> str:
    folder = tracking.home()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        raise UserError(f"{there} cannot be written; set COMPRESSION_HOME to a folder that can.")
    if free < ROOM:
        raise UserError(f"{there} has {free / 1e9:.1f} GB left; make room, or set COMPRESSION_HOME elsewhere.")
    return f"{free / 1e9:.0f} GB free at {there}"


def data() -> str:
    root = os.environ.get("COMPRESSION_DATA", "")
    if root and not Path(root).is_dir():
        raise UserError(f"COMPRESSION_DATA={root} is no folder; set it to one that holds cifar10/ or glue/<name>/.")
    if root:
        return f"COMPRESSION_DATA={root} holds {', '.join(sorted(path.name for path in Path(root).iterdir()))}"
    from compression.models import hub

    if not hub.reachable():
        raise UserError(
            "The Hugging Face hub cannot be reached, so only the task digits has data; set HF_ENDPOINT to a mirror, or "
            "COMPRESSION_DATA to a folder that holds cifar10/ or glue/<name>/."
        )
    return "from the Hugging Face hub"


def gpu() -> str:
    import torch

    if not torch.cuda.is_available():
        raise UserError("torch sees no NVIDIA GPU here: `-b host` runs on the processor.")
    return torch.cuda.get_device_name()


def image() -> str:
    commit = engine.engine().commit_of(engine.IMAGE)
    return f"{engine.IMAGE}, built from {commit[:7] or 'an unknown commit'}"


def docker_gpu() -> str:
    engine.engine().require_gpu()
    return "`-A gpus=all` gives containers the GPUs"
