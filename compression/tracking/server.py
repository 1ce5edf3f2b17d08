"""The tracking server: its URI, clients for it, and checks with error messages for when it cannot be used."""

from __future__ import annotations

import logging
import os
import re
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from compression.errors import UserError
from compression.extras import explain_missing
from compression.tracking import store
from compression.tracking.store import SQLITE as SQLITE

if TYPE_CHECKING:
    from collections.abc import Iterator

HTTP = ("http://", "https://")
PROBE_TIMEOUT = 5.0  # seconds that a server has to answer before any work begins

# By default MLflow retries for minutes, prints addresses into our progress bar, and draws bars of its own. The outbox
# does the retries, and looks first: a repeated request whose first answer was lost makes a second run. 30 s is what a
# server may need to put a large file into its own store.
CLIENT_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
SERVER_HINT = "start the server, or set MLFLOW_TRACKING_URI to one that runs"
LOGIN_HINT = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may"


def tracking_uri() -> str:
    """Return the tracking URI in use; of a SQLite file with the full path, so that `sync` finds it from any folder."""
    uri = mlflow.get_tracking_uri()
    path = uri.removeprefix(SQLITE)
    return uri if path == uri else f"{SQLITE}{Path(path).absolute()}"


def is_configured() -> bool:
    """Whether a tracking URI or an experiment was chosen: by mlflow's functions, or by environment variables."""
    is_set: bool = mlflow.is_tracking_uri_set()  # type: ignore[no-untyped-call]
    return is_set or "MLFLOW_EXPERIMENT_NAME" in os.environ


def redact_uri(uri: str) -> str:
    """Return `uri` without user and password."""
    scheme, slashes, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def create_client(uri: str) -> MlflowClient:
    """Return a client that fails soon and prints nothing, unless environment variables say otherwise.

    A SQLite store that does not exist yet is made. Raises UserError if it cannot be.
    """
    for name, value in CLIENT_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it prints every retry
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # we report these errors ourselves
    if path := store.sqlite_path(uri):
        store.make_whole(path)
    return MlflowClient(uri)


def short_reason(error: Exception | str) -> str:
    """Return the root cause of an error in at most 200 characters, without credentials."""
    wrapped = getattr(error, "__context__", None)  # the exception of requests, which holds that of urllib3
    cause = getattr(wrapped.args[0], "reason", None) if wrapped and wrapped.args else None
    text = str(cause.args[-1]).rpartition(": ")[2] if cause else str(error).strip().partition("\n")[0]
    return re.sub(r"://[^/@\s]+@", "://", text)[:200] or type(error).__name__


@contextmanager
def checked_client(purpose: str, uri: str = "") -> Iterator[MlflowClient]:
    """Yield a client; errors of the store inside the block become a UserError that says "Cannot `purpose` at …"."""
    uri = uri or tracking_uri()
    try:
        with explain_missing():
            yield create_client(uri)
    except (MlflowException, requests.RequestException, SQLAlchemyError, ImportError) as error:
        raise UserError(f"Cannot {purpose} at {redact_uri(uri)}: {short_reason(error)}") from error


def check_server(uri: str = "") -> None:
    """Raise UserError, within seconds, if a tracking server, by default that in use, does not answer or refuses."""
    uri = uri or tracking_uri()
    if uri.startswith(HTTP):
        _check_http(uri)
    else:
        _check_database(uri)


def answers(uri: str) -> bool:
    """Whether `check_server` finds nothing wrong with a server."""
    try:
        check_server(uri)
    except UserError:
        return False
    return True


def check_artifact_access(client: MlflowClient, experiment: str) -> None:
    """Raise UserError if the artifacts of `experiment` are only available through a server, and none is in use."""
    found = client.get_experiment(experiment)
    needs_server = found.artifact_location.startswith("mlflow-artifacts:")
    if needs_server and not tracking_uri().startswith(HTTP):
        raise UserError(
            f"The experiment {found.name!r} keeps its files behind an MLflow server: set MLFLOW_TRACKING_URI to that "
            "server, or name another experiment (and run `mlflow server` with --no-serve-artifacts)."
        )


def _check_database(uri: str) -> None:
    if path := store.sqlite_path(uri):
        with store.reading(path, create=True) as database:
            database.execute("BEGIN IMMEDIATE")  # fails if the file is not writable; MLflow would retry for two minutes
    else:
        _check_port(uri)
    with checked_client("open the tracking store", uri) as client:
        client.search_experiments(max_results=1)


def _check_port(uri: str) -> None:
    """Raise UserError if nothing listens at the database's address. MLflow would retry for minutes."""
    try:
        url = make_url(uri)
    except SQLAlchemyError as error:
        raise UserError(f"{redact_uri(uri)} is no address of a tracking server; {SERVER_HINT}.") from error
    if url.host and url.port:
        try:
            socket.create_connection((url.host, url.port), PROBE_TIMEOUT).close()
        except OSError as error:
            raise UserError(f"The tracking database {redact_uri(uri)} does not answer ({error}); start it.") from error


def request(method: str, path: str, *, uri: str = "", **options: Any) -> requests.Response:
    """Send one HTTP request to a tracking server, with the login that MLflow uses, and without retries.

    `options` are those of MLflow's `http_request`. Raises MlflowException if the server does not answer.
    """
    creds = get_default_host_creds(uri or tracking_uri())  # type: ignore[no-untyped-call]
    answer: requests.Response = http_request(  # type: ignore[no-untyped-call]
        creds, path, method, max_retries=0, raise_on_status=False, **options
    )
    return answer


def is_json(answer: requests.Response) -> bool:
    """Whether the answer's body is declared to be JSON, as that of an MLflow server is."""
    return "json" in answer.headers.get("Content-Type", "")


def _check_http(uri: str) -> None:
    # Not /health: it answers without a login, and even if the server's database is down.
    try:
        answer = request("GET", "/api/2.0/mlflow/experiments/search?max_results=1", uri=uri, timeout=PROBE_TIMEOUT)
    except MlflowException as error:
        raise UserError(
            f"The tracking server {redact_uri(uri)} does not answer ({short_reason(error)}); {SERVER_HINT}."
        ) from error
    if answer.status_code in (401, 403):
        reason = f"{answer.status_code}: {short_reason(answer.text)}"
        raise UserError(f"The tracking server {redact_uri(uri)} refuses the login ({reason}); {LOGIN_HINT}.")
    if answer.status_code != 200 or not is_json(answer):
        raise UserError(
            f"{redact_uri(uri)} answers ({answer.status_code}), but not as an MLflow server; {SERVER_HINT}."
        )
