"""A server that answers as the Hugging Face hub does, as far as listing and fetching files goes."""

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
            if path in (f"api/{name}/revision/main", f"api/{name}/revision/{COMMIT}", f"api/{name}"):
                return 200, {}, json.dumps({"id": name, "sha": COMMIT, "siblings": []}).encode()
            if f"{path}/".startswith(f"api/{name}/tree/{COMMIT}/"):
                return 200, {}, json.dumps(_listed(files, path.partition(COMMIT)[2].strip("/"))).encode()
            if path.startswith(f"{name}/resolve/"):
                return _content(files.get(path.split("/", 5)[5]))
        return 404, {"X-Error-Code": "RepoNotFound"}, b""

    def log_message(self, *_: object) -> None:
        pass


def _content(content: bytes | None) -> tuple[int, dict[str, str], bytes]:
    if content is None:
        return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
    return 200, {"ETag": f'"{_checksum(content)}"', "X-Repo-Commit": COMMIT}, content


def _listed(files: dict[str, bytes], folder: str) -> list[dict[str, object]]:
    """What lies in `folder` ("" for the top) itself, as files are at most one folder deep here."""
    inside = {file: content for file, content in files.items() if file.rpartition("/")[0] == folder}
    folders = {file.rpartition("/")[0] for file in files if not folder} - {""}
    return [{"type": "directory", "path": name, "oid": COMMIT} for name in folders] + [
        {"type": "file", "path": file, "size": len(content), "oid": _checksum(content)}
        for file, content in inside.items()
    ]


def _checksum(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
