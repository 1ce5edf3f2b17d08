"""Reading back what runs left in MLflow: baselines, models, histories."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
from mlflow import MlflowClient, pyfunc
from mlflow.entities import Run, ViewType
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.utils.mlflow_tags import MLFLOW_PROJECT_ENV

from compression import __version__
from compression.tracking import server
from compression.tracking.delivery import KEY
from compression.tracking.run import NOTE, folder_of, milliseconds

PULL_SECONDS = 120  # what a container may take to come


@dataclass(frozen=True)
class Stored:
    """A run as MLflow has it."""

    id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float]  # the latest of each


def stored(run_id: str) -> Stored:
    """The run `run_id`; a UserError if there is none, or the server does not answer."""
    with server.asking(f"read the run {run_id}") as client:
        return _read(_at_server(client, run_id))


def _at_server(client: MlflowClient, run_id: str) -> Run:
    """The run as it is there: one that began while the server was gone is known by its key to whoever began it."""
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        made = client.search_runs(_experiments(client), f"tags.`{KEY}` = {_quoted(run_id)}")
        if not made:
            raise
        return made[0]


def _read(run: Any) -> Stored:
    return Stored(
        run.info.run_id,
        run.info.run_name,
        run.info.status,
        dict(run.data.params),
        dict(run.data.tags),
        dict(run.data.metrics),
    )


def finished(task: str) -> list[Stored]:
    """The finished runs on `task` that measured a compressed model on its test split, the newest first."""
    with server.asking(f"read the runs on {task}") as client:
        found, token = [], None
        while True:
            page = client.search_runs(
                _experiments(client),
                f"tags.task = {_quoted(task)} and attributes.status = 'FINISHED'",
                page_token=token,
            )
            found += [_read(run) for run in page if run.data.tags.get("stage") in ("compress", "chosen")]
            if not (token := page.token):
                return found


def never_begun() -> list[str]:
    """The ids of runs that plain `mlflow run` made for a container that never came: RUNNING, and nobody joined them."""
    asked = f"attributes.status = 'RUNNING' and tags.`{MLFLOW_PROJECT_ENV}` = 'docker'"
    with server.asking("look for runs that never began") as client:
        found = client.search_runs(_experiments(client), asked)
    earliest = milliseconds() - 1000 * PULL_SECONDS
    return [run.info.run_id for run in found if "stage" not in run.data.tags and run.info.start_time < earliest]


def close(run_id: str, note: str) -> None:
    """Set a run that nobody works on to FAILED, with `note` on its page."""
    with server.asking(f"close the run {run_id}") as client:
        client.set_tag(run_id, NOTE, note)
        client.set_terminated(run_id, "FAILED")


def history(run_id: str) -> dict[str, list[tuple[int, float]]]:
    """Every metric of the run -> its (step, value), in the order of the steps."""
    with server.asking(f"read the run {run_id}") as client:
        names = client.get_run(run_id).data.metrics
        points = {name: client.get_metric_history(run_id, name) for name in names}
    return {
        name: [(p.step, p.value) for p in sorted(line, key=lambda p: (p.step, p.timestamp))]
        for name, line in points.items()
    }


def find_baseline(task: str, model: str, data_digest: str) -> str | None:
    """The id of the newest finished `train` run of the same task, model and data, in any experiment."""
    tags = {"stage": "train", "task": task, "model": model, "data_digest": data_digest}
    asked = [f"tags.{name} = {_quoted(value)}" for name, value in tags.items()]
    with server.asking("look for a trained baseline") as client:
        found = client.search_runs(
            _experiments(client),
            " and ".join([*asked, "attributes.status = 'FINISHED'"]),
            max_results=1,
            order_by=["attributes.start_time DESC"],
        )
    return found[0].info.run_id if found else None


def _quoted(value: str) -> str:
    """`value` in a filter; MLflow knows no escapes, but two kinds of quotes."""
    return f'"{value}"' if "'" in value else f"'{value}'"


def _experiments(client: MlflowClient) -> list[str]:
    ids: list[str] = []
    token = None
    while True:
        page = client.search_experiments(view_type=ViewType.ACTIVE_ONLY, page_token=token)
        ids += [experiment.experiment_id for experiment in page]
        if not (token := page.token):
            return ids


def download(uri: str, to: Path | str) -> Path:
    """What `uri` names, inside the folder `to`.

    `runs:/<id>/<path>`, `runs:/<id>` (its `model`), `runs:/<id>/` (everything), `models:/<name>/<version>` or
    `models:/<name>@<alias>`. What a run of this machine has not delivered yet comes from its folder here. A
    UserError if there is no such thing, or the server does not answer.
    """
    scheme, _, path = uri.partition(":/")
    run_id, slash, path = path.strip().partition("/") if scheme == "runs" else ("", "", "")
    path = path if slash else "model"
    here = folder_of(run_id) / "artifacts" / path
    if run_id and path and here.exists():
        return _copied(here, Path(to))
    with server.asking(f"download {uri}") as client:
        if run_id:
            uri = f"runs:/{_at_server(client, run_id).info.run_id}/{path}"
        got = mlflow.artifacts.download_artifacts(uri, dst_path=str(to), tracking_uri=server.tracking_uri())
    return Path(got)


def _copied(source: Path, to: Path) -> Path:
    to.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        return Path(shutil.copytree(source, to / source.name, dirs_exist_ok=True))
    return Path(shutil.copy2(source, to))


def register(name: str, run_id: str, aliases: Sequence[str]) -> str:
    """Register the model of a run under `name` with `aliases`; its version. A version of this run is used again.

    An alias moves from the version that had it. Raises a UserError where the registry refuses.
    """
    with server.asking(f"register the model {name}") as client:
        with contextlib.suppress(MlflowException):  # it exists: a real refusal comes again below
            client.create_registered_model(name)
        run_id = _at_server(client, run_id).info.run_id
        known = [v for v in client.search_model_versions(f"name = {_quoted(name)}") if v.run_id == run_id]
        made = known[0] if known else client.create_model_version(name, f"runs:/{run_id}/model", run_id)
        for alias in aliases:
            client.set_registered_model_alias(name, alias, made.version)
    return str(made.version)


def describe_model(folder: Path | str) -> None:
    """Write the file `MLmodel` that lets MLflow register, load and serve the model in `folder`, without pickle."""
    described = Model(flavors={"compression": {"version": __version__}})
    pyfunc.add_to_model(described, loader_module="compression.models.storage", data=".")
    described.save(str(Path(folder) / "MLmodel"))
