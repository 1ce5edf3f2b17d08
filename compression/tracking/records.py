"""Reading runs back from MLflow: records, metric histories, baselines, models."""

from __future__ import annotations

import contextlib
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import mlflow
from mlflow import pyfunc
from mlflow.entities import ViewType as ViewType  # which runs to search, deleted ones or not: exported
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENV

from compression import __version__
from compression.tracking import server
from compression.tracking.journal import count_undelivered, is_alive
from compression.tracking.lookup import experiments, find_run, quoted, search_runs
from compression.tracking.run import now_ms, run_folder

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mlflow.entities import Run

DELIVERY_SECONDS = 10.0  # how long a question about a run waits for more of it to arrive
IMAGE_PULL_SECONDS = 120  # how long pulling an image and starting its container may take


@dataclass(frozen=True)
class RunRecord:
    """A run as stored in MLflow."""

    id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]  # the latest of each


def get_run(run_id: str) -> RunRecord:
    """Return the run `run_id`. Raises UserError if there is none, or the server does not answer."""
    _await_delivery(run_id)
    with server.checked_client(f"read the run {run_id}") as client:
        return _run_record(find_run(client, run_id))


def _await_delivery(run_id: str) -> None:
    """Wait while a process of this machine delivers what is left of a run: a child run ends before all has arrived."""
    folder = run_folder(run_id)
    before, deadline = math.inf, 0.0
    while (left := count_undelivered(folder)) and is_alive(folder):
        if left < before:
            before, deadline = left, time.monotonic() + DELIVERY_SECONDS
        elif time.monotonic() > deadline:
            return
        time.sleep(0.05)


def _run_record(run: Run) -> RunRecord:
    return RunRecord(
        run.info.run_id,
        run.info.run_name,
        run.info.status,
        dict(run.data.params),
        dict(run.data.tags),
        dict(run.data.metrics),
    )


def finished_runs(task: str) -> list[RunRecord]:
    """Return the finished runs that measured a compressed model on the test split of `task`, newest first.

    Raises UserError if the server does not answer.
    """
    with server.checked_client(f"read the runs on {task}") as client:
        found = search_runs(client, f"tags.task = {quoted(task)} and attributes.status = 'FINISHED'")
    return [_run_record(run) for run in found if run.data.tags.get("stage") in ("compress", "chosen")]


def never_started_runs() -> list[str]:
    """Return the ids of runs that plain `mlflow run` created for a container that never started.

    They are RUNNING, but no command of the lab has joined them. Raises UserError if the server does not answer.
    """
    query = f"attributes.status = 'RUNNING' and tags.`{MLFLOW_PROJECT_ENV}` = 'docker'"
    with server.checked_client("look for runs that never began") as client:
        found = search_runs(client, query)
    latest_start = now_ms() - 1000 * IMAGE_PULL_SECONDS
    return [run.info.run_id for run in found if "stage" not in run.data.tags and run.info.start_time < latest_start]


def metric_history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Map each metric of the run to its (step, value) pairs, ordered by step.

    Raises UserError if there is no such run, or the server does not answer.
    """
    _await_delivery(run_id)
    with server.checked_client(f"read the run {run_id}") as client:
        names = client.get_run(run_id).data.metrics
        points = {name: client.get_metric_history(run_id, name) for name in names}
    return {
        name: [(p.step, p.value) for p in sorted(line, key=lambda p: (p.step, p.timestamp))]
        for name, line in points.items()
    }


def find_baseline(task: str, model: str, data_digest: str) -> str | None:
    """Return the id of the newest finished `train` run of this task, model and data, in any experiment.

    Raises UserError if the server does not answer.
    """
    tags = {"stage": "train", "task": task, "model": model, "data_digest": data_digest}
    conditions = [f"tags.{name} = {quoted(value)}" for name, value in tags.items()]
    with server.checked_client("look for a trained baseline") as client:
        found = client.search_runs(
            experiments(client),
            " and ".join([*conditions, "attributes.status = 'FINISHED'"]),
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    return found[0].info.run_id if found else None


def download(uri: str, to: Path | str) -> Path:
    """Download an artifact into the folder `to`; return its path there.

    `uri` is `runs:/<id>/<path>`, `runs:/<id>` (its `model`), `runs:/<id>/` (all artifacts),
    `models:/<name>/<version>` or `models:/<name>@<alias>`. Artifacts that a run of this machine has not delivered
    yet are copied from its folder. Raises UserError if there is no such artifact, or the server does not answer.
    """
    scheme, _, path = uri.partition(":/")
    run_id, slash, path = path.strip().partition("/") if scheme == "runs" else ("", "", "")
    path = path if slash else "model"
    local = run_folder(run_id) / "artifacts" / path
    if run_id and path and local.exists():
        return _copy(local, Path(to))
    with server.checked_client(f"download {uri}") as client:
        if run_id:
            uri = f"runs:/{find_run(client, run_id).info.run_id}/{path}"
        copy = mlflow.artifacts.download_artifacts(uri, dst_path=str(to), tracking_uri=server.tracking_uri())
    return Path(copy)


def _copy(source: Path, to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        return Path(shutil.copytree(source, to / source.name, dirs_exist_ok=True))
    return Path(shutil.copy2(source, to))


def register_model(name: str, run_id: str, aliases: Sequence[str]) -> str:
    """Register the model of a run under `name` with `aliases`; return its version.

    A run that is registered already keeps its version. An alias moves from the version that had it. Raises UserError
    if the registry refuses.
    """
    _await_delivery(run_id)
    with server.checked_client(f"register the model {name}") as client:
        with contextlib.suppress(MlflowException):  # the name exists; any other refusal is raised again below
            client.create_registered_model(name)
        run_id = find_run(client, run_id).info.run_id
        versions = [v for v in client.search_model_versions(f"name = {quoted(name)}") if v.run_id == run_id]
        version = versions[0] if versions else client.create_model_version(name, f"runs:/{run_id}/model", run_id)
        for alias in aliases:
            client.set_registered_model_alias(name, alias, version.version)
    return str(version.version)


def write_mlmodel(folder: Path | str) -> None:
    """Write the file `MLmodel` that lets MLflow register, load and serve the model in `folder`, without pickle."""
    model = Model(flavors={"compression": {"version": __version__}})
    pyfunc.add_to_model(model, loader_module="compression.models.storage", data=".")
    model.save(str(Path(folder) / "MLmodel"))
