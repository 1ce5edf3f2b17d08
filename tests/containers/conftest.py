"""The stack of docker/compose.yaml under a name, ports and passwords of its own."""

import json
import os
import subprocess
import time
from pathlib import Path

import mlflow
import pytest
from mlflow import MlflowClient

from tests.study.browser import free_port

ROOT = Path(__file__).parents[2]
PROJECT = "compression-lab-test"


class Stack:
    """`docker compose` on the lab's file."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "data").mkdir()
        secrets = folder / "secrets.env"
        subprocess.run(["bash", ROOT / "docker/secrets.sh", secrets], check=True)
        self.passwords = dict(line.split("=", 1) for line in secrets.read_text().splitlines() if line[:1].isupper())
        self.ports = {name: str(free_port()) for name in ("MLFLOW_PORT", "DASHBOARD_PORT", "STUDY_PORT")}
        self.environment = (
            os.environ
            | self.ports
            | {
                "COMPOSE_PROJECT_NAME": PROJECT,
                "COMPOSE_ENV_FILES": str(secrets),
                "COMPOSE_PROFILES": "",
                "DATA": str(folder / "data"),
            }
        )

    def __call__(self, *words, **told):
        return self.run("docker", "compose", "--file", str(ROOT / "docker/compose.yaml"), *words, **told)

    def run(self, *words, check=True, more=None, **told):
        env = self.environment | (more or {})
        done = subprocess.run(words, cwd=ROOT, env=env, text=True, capture_output=True, **told)
        assert not check or done.returncode == 0, f"{words}: {done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return done

    def up(self) -> float:
        """Everything up and healthy; the seconds that took."""
        began = time.monotonic()
        self("up", "--detach", "--wait", "--wait-timeout", "180")
        return time.monotonic() - began

    def containers(self, service) -> list[str]:
        return self("ps", "--quiet", service).stdout.split()

    def kill(self, container) -> None:
        """End it as a crash or an empty memory would."""
        subprocess.run(["docker", "kill", "--signal", "KILL", container], check=True, capture_output=True)

    @property
    def uri(self) -> str:
        return f"http://127.0.0.1:{self.ports['MLFLOW_PORT']}"

    def login(self) -> dict[str, str]:
        """The administrator's environment on this machine."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": "admin",
            "MLFLOW_TRACKING_PASSWORD": self.passwords["MLFLOW_ADMIN_PASSWORD"],
        }


@pytest.fixture(scope="session")
def image():
    """What is known of the image that `make image` made."""
    seen = subprocess.run(["docker", "image", "inspect", "model-compression-lab"], capture_output=True, text=True)
    assert seen.returncode == 0, "there is no image; `make image` builds it"
    return json.loads(seen.stdout)[0]


@pytest.fixture(scope="session")
def stack(image, tmp_path_factory):
    made = Stack(tmp_path_factory.mktemp("stack"))
    made("down", "--volumes", "--timeout", "2")  # what a test run that was interrupted left
    try:
        print(f"\nup and healthy after {made.up():.0f} s")
        yield made
    finally:
        log = made("--profile", "worker", "logs", "--no-color", "--timestamps", check=False).stdout
        (made.folder / "stack.log").write_text(log)
        made("--profile", "worker", "down", "--volumes", "--timeout", "5")


@pytest.fixture
def client(stack, monkeypatch):
    """The administrator's view of the stack's server."""
    for name, value in stack.login().items():
        monkeypatch.setenv(name, value)
    mlflow.set_tracking_uri(stack.uri)
    yield MlflowClient(stack.uri)
    mlflow.set_tracking_uri(None)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with the project file and entry points alone: the code is the image's."""
    for name in ("MLproject", "entrypoints"):
        (tmp_path / name).symlink_to(ROOT / name)
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_RUN_ID", "COMPRESSION_HOME"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path
