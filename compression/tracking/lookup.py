"""Finding runs at the server: by id, by key, over all experiments."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlflow.entities import ViewType
from mlflow.exceptions import MlflowException

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

# Names, one a line: where a process looks for runs that has more rights at the server than the person it works for.
EXPERIMENTS_VARIABLE = "COMPRESSION_EXPERIMENTS"
RUN_KEY_TAG = "compression.key"  # identifies a run before MLflow has given it an id, so that it is created only once


def find_run(client: MlflowClient, run_id: str) -> Run:
    """Return the run by its id, or by the key that stood for it if it started while the server did not answer.

    Raises MlflowException, with the error code RESOURCE_DOES_NOT_EXIST if there is none.
    """
    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        found = search_runs(client, f"tags.`{RUN_KEY_TAG}` = {quoted(run_id)}")
        if not found:
            raise
        return found[0]


def search_runs(client: MlflowClient, condition: str) -> list[Run]:
    """Return all runs of the experiments that are not deleted for which `condition` holds, newest first."""
    found: list[Run] = []
    token = None
    while True:
        page = client.search_runs(experiments(client), condition, page_token=token)
        found += page
        if not (token := page.token):
            return found


def experiments(client: MlflowClient) -> list[str]:
    """The ids of all experiments that are not deleted; of those alone that EXPERIMENTS_VARIABLE names, if it is set."""
    allowed = os.environ.get(EXPERIMENTS_VARIABLE, "").splitlines()
    ids: list[str] = []
    token = None
    while True:
        page = client.search_experiments(view_type=ViewType.ACTIVE_ONLY, page_token=token)
        ids += [found.experiment_id for found in page if not allowed or found.name in allowed]
        if not (token := page.token):
            return ids


def quoted(value: str) -> str:
    """Quote `value` for a filter string; MLflow has no escapes, but two kinds of quotes."""
    return f'"{value}"' if "'" in value else f"'{value}'"
