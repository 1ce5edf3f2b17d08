"""Serving the app: to a network behind logins, or without a login to this machine only."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import uvicorn

from compression.study import database, participants
from compression.study.texts import StudyError, translate
from compression.study.web.access import Access, LocalAccess, LoginAccess
from compression.study.web.app import create_app
from compression.tracking import server

if TYPE_CHECKING:
    from collections.abc import Sequence

LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]", "::1")


def choose_access(participant_id: str, researcher: bool, host: str) -> Access:
    """Return who may visit: this participant or a researcher, or by default the users of the tracking server.

    Raises StudyError if the participant is unknown, if `host` is not local although there is no login, or if the
    tracking URI is not a server's.
    """
    if participant_id or researcher:
        if host not in LOCAL_HOSTS:
            raise StudyError("only_here", host=host)
        if participant_id and not researcher:
            with database.open_session() as session:
                participants.find(session, participant_id)
        return LocalAccess("" if researcher else participant_id)
    uri = server.tracking_uri().rstrip("/")
    if not uri.startswith(("http://", "https://")):
        raise StudyError("say_who_visits")
    return LoginAccess(server.redact_uri(uri))


def serve(access: Access, host: str, port: int, names: Sequence[str], https: bool) -> None:
    """Serve the app until Ctrl-C; `names` are the host names that visitors use. Raises StudyError without a study."""
    with database.open_session() as session:
        database.latest_definition(session)
    app = create_app(access, [*names, *LOCAL_HOSTS], https)
    print(translate("serving", url=f"http://{host}:{port}"), file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)
