"""Serving the app: to a network behind logins, or without a login to this machine only."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import uvicorn

from compression.study import database, participants
from compression.study.private import make_private, make_private_folder
from compression.study.texts import StudyError, translate
from compression.study.web.access import Access, LocalAccess, LoginAccess
from compression.study.web.app import create_app
from compression.tracking import server
from compression.tracking.journal import home, write_error
from compression.tracking.run import runs_folder

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


def protect_files() -> None:
    """Take the rights of other users of this machine on what the study keeps there, from now on and from before."""
    os.umask(0o077)
    try:
        for folder in (home() / "launches", runs_folder()):
            make_private_folder(folder)
        if (file := database.local_file()) is not None:
            make_private(file)
    except OSError as error:
        raise write_error(home(), error) from error


def serve(access: Access, host: str, port: int, names: Sequence[str], https: bool) -> None:
    """Serve the app until Ctrl-C; `names` are the host names that visitors use.

    What it and the runs that it starts write is for this user alone. Raises StudyError without a study, UserError if
    the lab's folder cannot be written.
    """
    with database.open_session() as session:
        database.latest_definition(session)
    protect_files()
    # The health check of a container asks by 127.0.0.1, whatever name visitors use.
    app = create_app(access, [*names, *LOCAL_HOSTS], https)
    print(translate("serving", url=f"http://{host}:{port}"), file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)
