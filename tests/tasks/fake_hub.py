"""A server that answers as the Hugging Face hub does, as far as fetching files goes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COMMIT = "0123456789abcdef0123456789abcdef01234567"
Repositories = dict[str, dict[str, bytes]]  # "datasets/owner/name" -> path -> content


@contextlib.contextmanager
def serve(repositories: Repositories, delay: float = 0.0) -> Iterator[str]:
    """The endpoint of a hub with these repositories, each answer `delay` seconds late."""
    handler = type("Handler", (_Handler,), {"repositories": repositories, "delay": delay})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    repositories: Repositories
    delay: float

    def do_HEAD(self) -> None:
        time.sleep(self.delay)
        status, headers, content = self.answer()
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    do_GET = do_HEAD

    def answer(self) -> tuple[int, dict[str, str], bytes]:
        path = self.path.split("?")[0].strip("/")
        if not path:
            return 200, {}, b""
        for name, files in self.repositories.items():
            if path == f"api/{name}/revision/main":
                return 200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode()
            if path == f"api/{name}/tree/{COMMIT}":
                return 200, {}, json.dumps([_entry(file, content) for file, content in files.items()]).encode()
            file = path.removeprefix(f"{name}/resolve/{COMMIT}/")
            if file in files:
                return 200, {"ETag": f'"{_checksum(files[file])}"', "X-Repo-Commit": COMMIT}, files[file]
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def log_message(self, *_: object) -> None:
        pass


def _entry(file: str, content: bytes) -> dict[str, object]:
    return {"type": "file", "path": file, "size": len(content), "oid": _checksum(content)}


def _checksum(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
