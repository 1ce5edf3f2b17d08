"""The users of a tracking server with MLflow's basic-auth, and what each may see. The server's default is nothing.

Through its REST API: MLflow's own client for it (mlflow.server.auth.client) brings the whole server with it.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.utils.credentials import get_default_host_creds
from mlflow.utils.rest_utils import http_request

from compression.errors import UserError
from compression.tracking import server

ROLES = {
    "participant": "writes an experiment of their own name, and sees nobody else's",
    "researcher": "reads everything",
    "admin": "may do everything, users included",
}
READABLE = ("experiment", "registered_model")
USERS, GRANT = "/api/2.0/mlflow/users", "/api/3.0/mlflow/users/permissions/grant"


def add(name: str, role: str, password: str) -> str:
    """Make the user `name`, or give the one there is what `role` of ROLES may; the experiment that is theirs, if any.

    Who is there already keeps their password. UserError if the server refuses, or has no users at all.
    """
    if name not in dict(listed()):
        _ask("POST", f"{USERS}/create", username=name, password=password)
    if role == "admin":
        _ask("PATCH", f"{USERS}/update-admin", username=name, is_admin=True)
    if role == "researcher":
        for kind in READABLE:
            _grant(name, kind, "*", "READ")
    if role == "participant":
        _grant(name, "experiment", _experiment(name), "EDIT")
        return name
    return ""


def remove(name: str) -> None:
    """Remove the user `name`; what they logged stays."""
    _ask("DELETE", f"{USERS}/delete", username=name)


def renew(name: str, password: str) -> None:
    """Give the user `name` another password."""
    _ask("PATCH", f"{USERS}/update-password", username=name, password=password)


def listed() -> list[tuple[str, str]]:
    """Every user's name, with the kind of account."""
    users = _ask("GET", f"{USERS}/list")["users"]
    return sorted((user["username"], "admin" if user["is_admin"] else "user") for user in users)


class Exists(UserError):
    """The server has it already."""


def _grant(name: str, kind: str, resource: str, permission: str) -> None:
    with suppress(Exists):
        _ask("POST", GRANT, username=name, resource_type=kind, resource_id=resource, permission=permission)


def _experiment(name: str) -> str:
    with server.asking(f"make the experiment {name}") as client:
        return _found(client, name) or client.create_experiment(name)


def _found(client: MlflowClient, name: str) -> str:
    found = client.get_experiment_by_name(name)
    return found.experiment_id if found else ""


def _ask(method: str, path: str, **content: Any) -> dict[str, Any]:
    """The server's answer to a request about users; UserError with its reason where it refuses."""
    uri = server.tracking_uri()
    if not uri.startswith(("http://", "https://")):
        raise UserError(f"{server.public(uri)} has no users; set MLFLOW_TRACKING_URI to a server with basic-auth.")
    server.check_server()
    given = {"json": content} if content else {}
    try:
        answer = http_request(get_default_host_creds(uri), path, method, max_retries=0, raise_on_status=False, **given)
    except MlflowException as error:
        raise UserError(f"The server {server.public(uri)} does not answer: {server.reason(error)}.") from error
    if answer.status_code == 404 and "json" not in answer.headers.get("Content-Type", ""):
        raise UserError(f"The server {server.public(uri)} knows no users; start it with --app-name basic-auth.")
    if answer.status_code != 200:
        raise _refusal(answer)
    return answer.json() if answer.content else {}


def _refusal(answer: Any) -> UserError:
    said = answer.json() if "json" in answer.headers.get("Content-Type", "") else {}
    kind = Exists if said.get("error_code") == "RESOURCE_ALREADY_EXISTS" else UserError
    return kind(f"The server refuses ({answer.status_code}): {said.get('message') or server.reason(answer.text)}")
