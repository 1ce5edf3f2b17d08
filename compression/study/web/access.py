"""Who visits: one person on this machine, or whoever the MLflow server's logins let in."""

from __future__ import annotations

import contextlib
import os
import secrets
import tempfile
from dataclasses import dataclass

import requests
from fastapi import Request
from requests.auth import HTTPBasicAuth
from sqlalchemy.orm import Session

from compression.study import people, store
from compression.study.tables import Participant
from compression.study.texts import Refused
from compression.tracking import server
from compression.tracking.journal import home

PATIENCE = 10.0  # seconds that the server has to say whether a login is right
WHO = "/api/2.0/mlflow/users/current"


@dataclass(frozen=True)
class Visitor:
    """Somebody who is let in."""

    login: str
    researcher: bool


@dataclass(frozen=True)
class Alone:
    """No login: everybody who reaches this machine's own address is this one person."""

    participant: str = ""  # who it is; a researcher if empty
    local = True

    def visitor(self, request: Request) -> Visitor | None:
        return Visitor(self.participant, researcher=not self.participant)

    def person(self, opened: Session, visitor: Visitor) -> Participant | None:
        return people.find(opened, self.participant) if self.participant else None


@dataclass(frozen=True)
class Logins:
    """The users of the MLflow server's basic-auth; its administrators and the study's researchers see everybody."""

    uri: str
    local = False

    def visitor(self, request: Request) -> Visitor | None:
        login = request.session.get("login")
        return Visitor(login, bool(request.session.get("researcher"))) if login else None

    def person(self, opened: Session, visitor: Visitor) -> Participant | None:
        return people.of_login(opened, visitor.login)

    def enter(self, login: str, password: str) -> Visitor:
        """Ask the MLflow server whether this is one of its users; Refused if not, or if it does not answer."""
        try:
            proof = HTTPBasicAuth(login.encode(), password.encode())  # bytes: names in Chinese too
            answer = requests.get(f"{self.uri}{WHO}", auth=proof, timeout=PATIENCE, allow_redirects=False)
        except requests.RequestException as error:
            raise Refused("server_away", url=server.redact_uri(self.uri), reason=server.short_reason(error)) from error
        if answer.status_code in (401, 403):
            raise Refused("wrong_login")
        try:
            user = answer.json()["user"]
        except (ValueError, KeyError, TypeError) as error:
            raise Refused("server_away", url=server.redact_uri(self.uri), reason=answer.status_code) from error
        with store.session() as opened:
            named = store.study(opened).researchers
        return Visitor(user["username"], user["is_admin"] or user["username"] in named)


Access = Alone | Logins


def secret() -> str:
    """What cookies are signed with: COMPRESSION_STUDY_SECRET, or one that is made once and kept beside the study."""
    if given := os.environ.get("COMPRESSION_STUDY_SECRET"):
        return given
    path = home() / "study.secret"
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent) as made:  # which only its owner reads
            made.write(secrets.token_hex(32))
            made.flush()
            with contextlib.suppress(FileExistsError):  # another process was first: theirs holds
                os.link(made.name, path)
    return path.read_text()
