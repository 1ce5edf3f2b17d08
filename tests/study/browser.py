"""The study's app in this process, a real browser before it, and real MLflow logins behind it."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest
import requests
import uvicorn
from playwright.sync_api import sync_playwright

from compression.study.web.app import create_app

ADMIN = ("admin", "a-password-for-tests")


def chromium() -> str:
    """Chromium's path; without one, the tests that need it fail and say what to install."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if path := shutil.which(name):
            return path
    pytest.fail("These tests need a browser: apt-get install chromium.", pytrace=False)


@contextlib.contextmanager
def browser():
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def served(access):
    """The address at which the study is served to `access` while the block lasts."""
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(create_app(access, ["127.0.0.1"]), port=port, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    wait(lambda: server.started, thread.is_alive)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join(20)


def wait(come, alive, seconds=90):
    until = time.monotonic() + seconds
    while not come():
        assert alive(), "it ended before it was there"
        assert time.monotonic() < until, "it did not come in time"
        time.sleep(0.1)


@contextlib.contextmanager
def logins(folder, users):
    """The address of an MLflow server with basic-auth that knows `users`, name -> password."""
    port = free_port()
    config = folder / "auth.ini"
    config.write_text(
        f"[mlflow]\ndefault_permission = NO_PERMISSIONS\ndatabase_uri = sqlite:///{folder}/auth.db\n"
        f"admin_username = {ADMIN[0]}\nadmin_password = {ADMIN[1]}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 60\n"  # without, every request hashes the password for 0.4 s
    )
    environment = os.environ | {"MLFLOW_AUTH_CONFIG_PATH": str(config), "MLFLOW_FLASK_SERVER_SECRET_KEY": "tests"}
    environment |= {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    words = ["server", "--app-name", "basic-auth", "--backend-store-uri", f"sqlite:///{folder}/server.db"]
    words += ["--artifacts-destination", str(folder / "artifacts"), "--port", str(port), "--workers", "1"]
    with (folder / "server.log").open("wb") as log:
        server = subprocess.Popen([sys.executable, "-m", "mlflow", *words], env=environment, stdout=log, stderr=log)
    try:
        wait(lambda: answers(f"http://127.0.0.1:{port}/health"), lambda: server.poll() is None)
        for name, password in users.items():
            said = {"username": name, "password": password}
            url = f"http://127.0.0.1:{port}/api/2.0/mlflow/users/create"
            requests.post(url, json=said, auth=ADMIN, timeout=30).raise_for_status()
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait(30)


def answers(url) -> bool:
    try:
        return requests.get(url, timeout=2).ok
    except requests.RequestException:
        return False
