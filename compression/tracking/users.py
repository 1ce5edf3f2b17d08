"""The accounts of a tracking server with MLflow's basic-auth, and their permissions (none by default).

Uses the server's REST API: importing MLflow's own client for it (mlflow.server.auth.client) imports the whole server.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from mlflow.exceptions import MlflowException

from compression.errors import UserError
from compression.tracking import server

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    import requests

ROLES = {
    "participant": "writes an experiment of their own name, and sees nobody else's",
    "researcher": "reads everything",
    "app": "the study's web app: reads everything, writes the participants' experiments",
    "admin": "may do everything, users included",
}
APP = "study"  # the name of the account with the role app
READABLE_RESOURCES = ("experiment", "registered_model")
WRITING = ("EDIT", "MANAGE")  # permissions
USERS_ENDPOINT, PERMISSIONS_ENDPOINT = "/api/2.0/mlflow/users", "/api/3.0/mlflow/users/permissions"


def add(name: str, role: str, password: str) -> str:
    """Create the user `name` and grant the permissions of `role`; return the name of their own experiment, or "".

    A user that exists keeps their password. `role` is one of ROLES. The web app's account may write the experiments of
    the participants that there are, and of those who are added later. Raises UserError if the server refuses or has no
    accounts, if another user may write an experiment of the participant's name, and for an app that is not called APP.
    """
    if role == "app" and name != APP:
        raise UserError(f"The account of the study's web app is called {APP}, and not {name}.")
    users = dict(list_users())
    if role == "participant":
        _require_nobody_elses(name, users)
    if name not in users:
        _request("POST", f"{USERS_ENDPOINT}/create", username=name, password=password)
    if role == "admin":
        _request("PATCH", f"{USERS_ENDPOINT}/update-admin", username=name, is_admin=True)
    if role in ("researcher", "app"):
        for kind in READABLE_RESOURCES:
            _grant(name, kind, "*", "READ")
    if role == "app":
        for experiment in _experiments_of(users):
            _grant(APP, "experiment", experiment, "EDIT")
    if role == "participant":
        experiment = _get_or_create_experiment(name)
        for writer in (name, *({APP} & users.keys())):
            _grant(writer, "experiment", experiment, "EDIT")
        return name
    return ""


def remove(name: str) -> None:
    """Delete the user `name`; their runs stay. Raises UserError if the server refuses."""
    _request("DELETE", f"{USERS_ENDPOINT}/delete", username=name)


def set_password(name: str, password: str) -> None:
    """Replace the password of the user `name`. Raises UserError if the server refuses."""
    _request("PATCH", f"{USERS_ENDPOINT}/update-password", username=name, password=password)


def list_users() -> list[tuple[str, str]]:
    """Return the (name, "admin" or "user") of every user, sorted by name."""
    users = _request("GET", f"{USERS_ENDPOINT}/list")["users"]
    return sorted((user["username"], "admin" if user["is_admin"] else "user") for user in users)


class AlreadyExistsError(UserError):
    """The server has the user or permission already."""


def _grant(name: str, kind: str, resource: str, permission: str) -> None:
    with suppress(AlreadyExistsError):
        _request(
            "POST",
            f"{PERMISSIONS_ENDPOINT}/grant",
            username=name,
            resource_type=kind,
            resource_id=resource,
            permission=permission,
        )


def _get_or_create_experiment(name: str) -> str:
    """Return the id of the experiment `name`."""
    with server.checked_client(f"make the experiment {name}") as client:
        found = client.get_experiment_by_name(name)
        return found.experiment_id if found else client.create_experiment(name)


def _require_nobody_elses(name: str, users: Mapping[str, str]) -> None:
    """Raise UserError if another user may write the experiment `name`: whoever makes an experiment names it."""
    others = [user for user, kind in users.items() if kind != "admin" and user not in (name, APP)]
    for experiment in _experiments_of([name]):
        for other in others:
            held = _request("GET", f"{PERMISSIONS_ENDPOINT}/list?username={quote(other, safe='')}")["permissions"]
            if any(row["resource_pattern"] == experiment and row["permission"] in WRITING for row in held):
                raise UserError(
                    f"There is an experiment {name} already, which {other} may write: rename or delete it, "
                    f"or take another name for {name}."
                )


def _experiments_of(names: Collection[str]) -> list[str]:
    """Return the ids of the experiments that are called as one of `names`."""
    with server.checked_client("list the experiments") as client:
        return [found.experiment_id for found in client.search_experiments() if found.name in names]


def _request(method: str, path: str, **content: Any) -> dict[str, Any]:
    """Send a request about users and return the JSON answer. Raises UserError with the server's reason."""
    uri = server.tracking_uri()
    if not uri.startswith(server.HTTP):
        raise UserError(f"{server.redact_uri(uri)} has no users; set MLFLOW_TRACKING_URI to a server with basic-auth.")
    server.check_server()
    body: dict[str, Any] = {"json": content} if content else {}
    try:
        answer = server.request(method, path, **body)
    except MlflowException as error:
        raise UserError(
            f"The server {server.redact_uri(uri)} does not answer: {server.short_reason(error)}."
        ) from error
    if answer.status_code == 404 and not server.is_json(answer):
        raise UserError(f"The server {server.redact_uri(uri)} has no users; start it with --app-name basic-auth.")
    if answer.status_code != 200:
        raise _refusal(answer)
    return dict(answer.json()) if answer.content else {}


def _refusal(answer: requests.Response) -> UserError:
    reply = answer.json() if server.is_json(answer) else {}
    kind = AlreadyExistsError if reply.get("error_code") == "RESOURCE_ALREADY_EXISTS" else UserError
    return kind(
        f"The server refuses ({answer.status_code}): {reply.get('message') or server.short_reason(answer.text)}"
    )
