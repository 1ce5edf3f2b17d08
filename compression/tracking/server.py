"""The tracking server: which one, whether it answers, and the sentence when it does not."""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import mlflow
import requests
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from compression.errors import UserError

SQLITE = "sqlite:///"
PROBE = 5.0  # seconds that a server has to answer before any work begins

# MLflow alone would retry for minutes, print addresses into a progress bar, and draw bars of its own. The outbox
# retries better; 30 s is what a server may need to put a large file into its own store.
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
TELL_SERVER = "start the server, or set MLFLOW_TRACKING_URI to one that runs"
TELL_LOGIN = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to an account that may"


def tracking_uri() -> str:
    """The tracking URI in use; a SQLite file by its full path, so that `sync` finds it from any folder."""
    uri = mlflow.get_tracking_uri()
    path = uri.removeprefix(SQLITE)
    return uri if path == uri else f"{SQLITE}{Path(path).absolute()}"


def public(uri: str) -> str:
    """`uri` without user and password."""
    scheme, slashes, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{authority.rpartition('@')[2]}{slash}{path}"


def client(uri: str) -> MlflowClient:
    """A client that fails soon and draws nothing, unless the environment says otherwise."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it prints every retry
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # what we say ourselves
    return MlflowClient(uri)


def reason(error: Exception | str) -> str:
    """What is wrong, short enough for a sentence, and without anybody's password."""
    wrapped = getattr(error, "__context__", None)  # what requests raised; within it, what urllib3 did
    cause = getattr(wrapped.args[0], "reason", None) if wrapped and wrapped.args else None
    text = str(cause.args[-1]).rpartition(": ")[2] if cause else str(error).strip().partition("\n")[0]
    return re.sub(r"://[^/@\s]+@", "://", text)[:200] or type(error).__name__


@contextmanager
def asking(purpose: str) -> Iterator[MlflowClient]:
    """A client for questions: whatever the store raises at one becomes a UserError."""
    uri = tracking_uri()
    try:
        yield client(uri)
    except (MlflowException, requests.RequestException, SQLAlchemyError, ImportError) as error:
        raise UserError(f"Cannot {purpose} at {public(uri)}: {reason(error)}") from error


def check_server() -> None:
    """Raise a UserError, within seconds, if the tracking server is gone or refuses the login."""
    uri = tracking_uri()
    if uri.startswith(("http://", "https://")):
        _check_http(uri)
    else:
        _check_database(uri)


def require_files(client: MlflowClient, experiment: str) -> None:
    """UserError for an experiment that a server made, which hands out its files, where there is no server."""
    found = client.get_experiment(experiment)
    behind = found.artifact_location.startswith("mlflow-artifacts:")
    if behind and not tracking_uri().startswith(("http://", "https://")):
        raise UserError(
            f"The experiment {found.name!r} keeps its files behind an MLflow server: set MLFLOW_TRACKING_URI to that "
            "server, or name another experiment (and run `mlflow server` with --no-serve-artifacts)."
        )


def _check_database(uri: str) -> None:
    if uri.startswith(SQLITE):
        _check_file(uri)
    else:
        _check_port(uri)
    with asking("open the tracking store") as store:
        store.search_experiments(max_results=1)


def _check_file(uri: str) -> None:
    """MLflow would try a SQLite file that it cannot open for two minutes."""
    try:
        with closing(sqlite3.connect(uri.removeprefix(SQLITE), timeout=30)) as database:
            database.execute("BEGIN IMMEDIATE")  # says whether it can be written, and changes nothing
    except sqlite3.Error as error:
        raise UserError(
            f"The tracking store {uri} cannot be used: {error}; set MLFLOW_TRACKING_URI to another."
        ) from error


def _check_port(uri: str) -> None:
    """MLflow would try a database that is gone for minutes."""
    url = make_url(uri)
    if url.host and url.port:
        try:
            socket.create_connection((url.host, url.port), PROBE).close()
        except OSError as error:
            raise UserError(f"The tracking database {public(uri)} does not answer ({error}); start it.") from error


def _check_http(uri: str) -> None:
    # Not /health: it answers without a login, and while the server's database is gone.
    path = "/api/2.0/mlflow/experiments/search?max_results=1"
    creds = get_default_host_creds(uri)
    try:
        answer = http_request(creds, path, "GET", max_retries=0, timeout=PROBE, raise_on_status=False)
    except MlflowException as error:
        raise UserError(
            f"The tracking server {public(uri)} does not answer ({reason(error)}); {TELL_SERVER}."
        ) from error
    if answer.status_code in (401, 403):
        said = f"{answer.status_code}: {reason(answer.text)}"
        raise UserError(f"The tracking server {public(uri)} refuses the login ({said}); {TELL_LOGIN}.")
    if answer.status_code != 200 or "json" not in answer.headers.get("Content-Type", ""):
        raise UserError(f"{public(uri)} answers ({answer.status_code}), but not as an MLflow server; {TELL_SERVER}.")
