"""Serving the app, with logins to a network or without them to this machine alone."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import uvicorn

from compression.study import people, store
from compression.study.texts import Refused, say
from compression.study.web.access import Access, Alone, Logins
from compression.study.web.app import create
from compression.tracking import server

HERE = ("127.0.0.1", "localhost", "[::1]", "::1")


def access(participant: str, researcher: bool, host: str) -> Access:
    """Who may visit: one named person here, or the logins of the tracking server."""
    if participant or researcher:
        if host not in HERE:
            raise Refused("only_here", host=host)
        if participant and not researcher:
            with store.session() as opened:
                people.find(opened, participant)
        return Alone("" if researcher else participant)
    uri = server.tracking_uri().rstrip("/")
    if not uri.startswith(("http://", "https://")):
        raise Refused("say_who_visits")
    return Logins(server.redact_uri(uri))


def serve(access: Access, host: str, port: int, names: Sequence[str], https: bool) -> None:
    """Serve until Ctrl-C."""
    with store.session() as opened:
        store.newest_definition(opened)  # says at once if there is no study
    app = create(access, [*names, *HERE], https)
    print(say("serving", url=f"http://{host}:{port}"), file=sys.stderr, flush=True)
    uvicorn.run(app, host=host, port=port, log_level="warning", server_header=False)
