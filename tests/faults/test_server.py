"""A server in trouble behind a proxy that loses answers, answers nonsense, or hangs: what arrives, and who waits."""

import contextlib
import http.client
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from mlflow import MlflowClient

from compression import tracking
from compression.errors import UserError
from tests.tracking.test_tracking import Server, names, point_at, steps

pytestmark = [pytest.mark.faults, pytest.mark.timeout(900)]
STEPS = 12
PATIENCE = 20.0  # seconds that a run may take longer than with a healthy server, however long that hangs
ANSWERS = {
    "fail": (500, b'{"error_code": "INTERNAL_ERROR", "message": "injected"}'),
    "html": (200, b"<html>Please log in.</html>", "text/html"),
    "later": (503, b"", "text/plain", {"Retry-After": "3600"}),
}


def ask(port, method, path, body, headers):
    """Ask the server itself; returns status, content and headers of its answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    kept = {name: value for name, value in headers.items() if name.lower() not in ("host", "connection")}
    connection.request(method, path, body, kept | {"Host": f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


class Proxy:
    """Passes requests on to a server, with the faults of its `mode`, such as "lose 0.3"."""

    def __init__(self, port):
        self.mode, chance = "ok", random.Random(5)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def pass_on(handler):  # noqa: N805 - the proxy is `self`
                kind, _, number = self.mode.partition(" ")
                body = handler.rfile.read(int(handler.headers.get("content-length") or 0))
                if kind in ("slow", "hang"):
                    time.sleep(float(number))
                strikes = kind not in ("ok", "slow") and chance.random() < float(number)
                if strikes and kind in ANSWERS:
                    handler.answer(*ANSWERS[kind])
                    return
                handler.close_connection = strikes
                if kind == "hang":
                    return
                status, content, headers = ask(port, handler.command, handler.path, body, handler.headers)
                if not strikes:  # else it has arrived, and its answer is lost
                    handler.answer(status, content, headers.get("content-type", "application/json"))

            def answer(self, status, content, kind="application/json", headers=()):
                self.send_response(status)
                for name, value in {"content-type": kind, "content-length": str(len(content)), **dict(headers)}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def handle(self):
                with contextlib.suppress(OSError):  # the client gave up
                    super().handle()

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = pass_on

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        self.uri = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture(scope="module")
def proxy(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    proxy = Proxy(server.port)
    proxy.client = MlflowClient(server.uri)
    with pytest.MonkeyPatch.context() as patch:
        point_at(patch, proxy.uri, tmp_path_factory.mktemp("home"))
        tracking.check_server()
        yield proxy
    proxy.server.shutdown()
    server.kill()


def work(proxy, name, mode, at):
    """A run with child runs, whose server gets into trouble at step `at`; returns how long it took, s."""
    began = time.monotonic()
    with tracking.start_run(name) as run:
        for step in range(STEPS):
            if step == at:
                proxy.mode = mode
            run.metrics({"m": float(step)}, step)
            run.table(f"t{step}", [{"a": step}])
            if step % 4 == 3:
                with run.child(f"{name}.{step}", {}) as child:
                    child.metrics({"m": 1.0})
            time.sleep(0.05)
    return time.monotonic() - began


def count_wrong(client, name):
    """What is lost or doubled of a run and its child runs."""
    found = client.search_runs(["0"], f"attributes.run_name = '{name}'")
    wrong = abs(len(found) - 1)
    for run in found:
        wrong += steps(client, run.info.run_id, "m") != [(n, float(n)) for n in range(STEPS)]
        wrong += len(names(client, run.info.run_id)) != STEPS
        wrong += run.info.status != "FINISHED"
    for step in range(3, STEPS, 4):
        children = client.search_runs(["0"], f"attributes.run_name = '{name}.{step}'")
        wrong += len(children) != 1 or children[0].info.status != "FINISHED" or children[0].data.metrics != {"m": 1.0}
    return wrong


@pytest.mark.parametrize("mode", ["ok", "fail 0.3", "lose 0.3", "html 1", "later 1", "slow 1", "hang 60"])
def test_a_server_in_trouble(proxy, tally, mode):
    took, healthy = [], work(proxy, f"healthy before {mode}", "ok", 0)
    names = [f"{mode} from {at}" for at in (2, STEPS - 1)]
    for name, at in zip(names, (2, STEPS - 1), strict=True):
        took.append(work(proxy, name, mode, at))
        proxy.mode = "ok"
        deadline = time.monotonic() + 120
        while tracking.undelivered_runs() and time.monotonic() < deadline:
            time.sleep(0.2)  # the threads of the run go on
    tracking.sync()
    lost = sum(count_wrong(proxy.client, name) for name in names)
    stuck = len(proxy.client.search_runs(["0"], "attributes.status = 'RUNNING'"))
    stuck += len(tracking.undelivered_runs()) + sum(each > healthy + PATIENCE for each in took)
    tally(f"server: {mode}", tried=len(names), lost=lost, stuck=stuck)


def test_runs_whose_first_answers_are_lost(proxy, tally):
    """A run is made once, or refused in a sentence and nothing stays RUNNING."""
    tried = 8
    lost = 0
    for number in range(tried):
        proxy.mode = "lose 0.4"
        try:
            with tracking.start_run(f"start {number}") as run:
                proxy.mode = "ok"
                run.metrics({"m": 1.0})
            lost += run.id not in [
                each.info.run_id
                for each in proxy.client.search_runs(["0"], f"attributes.run_name = 'start {number}'")
                if each.data.metrics == {"m": 1.0}
            ]
        except UserError:
            proxy.mode = "ok"
    tracking.sync()
    stuck = len(proxy.client.search_runs(["0"], "attributes.status = 'RUNNING'"))
    tally("starts with lost answers", tried=tried, lost=lost, stuck=stuck)
