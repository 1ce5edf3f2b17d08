"""Checks of what a run needs of this machine, with advice about what is missing: `compression doctor`."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from compression import tracking
from compression.backend import engine
from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Callable

MIN_FREE_BYTES = 5e9  # more than the checkpoints, models and reports of a usual run


@dataclass(frozen=True)
class CheckResult:
    """The result of one check. Without what `is_required`, every run would fail."""

    name: str
    ok: bool
    message: str
    is_required: bool = False


def run_checks() -> list[CheckResult]:
    """Run all checks, in the order in which a run needs things. Takes some seconds and changes nothing."""
    checks: list[tuple[str, Callable[[], str], bool]] = [
        ("server", check_server, True),
        ("runs", check_runs, False),
        ("journals", check_journals, False),
        ("disk", check_disk, True),
        ("data", check_data, False),
        ("gpu", check_gpu, False),
        ("engine", lambda: f"Docker {engine.connect().version()}", False),
        ("image", check_image, False),
        ("gpu in docker", check_docker_gpu, False),
    ]
    return [_run_check(name, check, is_required) for name, check, is_required in checks]


def _run_check(name: str, check: Callable[[], str], is_required: bool) -> CheckResult:
    try:
        return CheckResult(name, True, check(), is_required)
    except UserError as error:
        return CheckResult(name, False, str(error), is_required)


def check_server() -> str:
    """Check the tracking server. Raises UserError if it does not answer or refuses the login."""
    tracking.check_server()
    return f"runs go to {tracking.redact_uri(tracking.tracking_uri())}"


def check_runs() -> str:
    """Look for runs that are RUNNING though nobody works on them. Raises UserError if there are some."""
    if dead := [*tracking.dead_runs(), *tracking.lost_runs()]:
        raise UserError(
            f"{len(dead)} runs were killed before they could say so, or not all of them has arrived: "
            f"{', '.join(dead)}; `compression sync` delivers and ends them, and so does the next command."
        )
    if orphaned := tracking.never_started_runs():
        raise UserError(
            f"{len(orphaned)} runs are RUNNING whose container never came (plain `mlflow run` leaves them so when "
            "Docker is down); close them with `compression doctor --close-runs`, and use `-b docker`, which checks "
            "first."
        )
    return "none is RUNNING that nobody works on"


def check_journals() -> str:
    """Look for what could not be delivered because it is damaged. Raises UserError if there is some."""
    folder = tracking.damaged_folder()
    if damaged := sorted(path.name for path in folder.glob("*")):
        raise UserError(
            f"what is left of {len(damaged)} damaged runs is in {folder}: {', '.join(damaged)}; look whether it is "
            "worth mending, and delete it."
        )
    return "none was damaged"


def fail_never_started_runs() -> int:
    """Set the runs whose container never started to FAILED; return how many."""
    orphaned = tracking.never_started_runs()
    for run_id in orphaned:
        tracking.end_run(run_id, "FAILED", "Its container never came: see `compression doctor`.")
    return len(orphaned)


def check_disk() -> str:
    """Check the disk of COMPRESSION_HOME. Raises UserError if it is not writable or has less than 5 GB left."""
    home = tracking.home()
    folder = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(folder).free
    if not os.access(folder, os.W_OK):
        raise UserError(f"{folder} cannot be written; set COMPRESSION_HOME to a folder that can.")
    if free < MIN_FREE_BYTES:
        raise UserError(f"{folder} has {free / 1e9:.1f} GB left; make room, or set COMPRESSION_HOME elsewhere.")
    return f"{free / 1e9:.0f} GB free at {folder}"


def check_data() -> str:
    """Check where datasets come from. Raises UserError if only the task digits would have data."""
    root = os.environ.get("COMPRESSION_DATA", "")
    if root and not Path(root).is_dir():
        raise UserError(f"COMPRESSION_DATA={root} is no folder; set it to one that holds cifar10/ or glue/<name>/.")
    if root:
        return f"COMPRESSION_DATA={root} holds {', '.join(sorted(path.name for path in Path(root).iterdir()))}"
    from compression.models import hub  # imports the libraries of Hugging Face, which take a second

    if not hub.is_reachable():
        raise UserError(
            "The Hugging Face hub cannot be reached, so only the task digits has data; set HF_ENDPOINT to a mirror, or "
            "COMPRESSION_DATA to a folder that holds cifar10/ or glue/<name>/."
        )
    return "from the Hugging Face hub"


def check_gpu() -> str:
    """Return the GPU's name. Raises UserError if torch finds none."""
    import torch  # takes a second

    if not torch.cuda.is_available():
        raise UserError("torch finds no NVIDIA GPU here: `-b host` runs on the processor.")
    return torch.cuda.get_device_name()


def check_image() -> str:
    """Check the image of the lab. Raises UserError if there is no Docker engine or no image."""
    commit = engine.connect().image_commit(engine.IMAGE)
    return f"{engine.IMAGE}, built from {commit[:7] or 'an unknown commit'}"


def check_docker_gpu() -> str:
    """Check GPUs in containers. Raises UserError if there is no Docker engine, or containers get no GPU."""
    engine.connect().require_gpu()
    return "`-A gpus=all` gives containers the GPUs"
