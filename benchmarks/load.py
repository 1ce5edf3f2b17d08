"""How the tracking server bears many participants logging at once: the times of `log_batch`, and errors.

Each of USERS logs in as a participant of their own and sends BATCHES batches of 20 metrics to a run of theirs, as fast
as the server takes them with PAUSE seconds in between (a training logs an epoch at a time). Bounded; loopback only.

    MLFLOW_TRACKING_URI=http://127.0.0.1:5000 MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=… \\
      python benchmarks/load.py
"""

import os
import secrets
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import click
import numpy as np
import requests

from compression.tracking import users

METRICS = 20


def join(name: str, password: str) -> None:
    """Make a participant, with an experiment of their name."""
    users.add(name, "participant", password)
    users.set_password(name, password)  # where an earlier load made them


def log(uri: str, name: str, password: str, batches: int, pause: float) -> tuple[list[float], list[str]]:
    """Log as `name`; seconds of every batch, and what went wrong."""
    session = requests.Session()
    session.auth = (name, password)

    def ask(method: str, path: str, **content) -> dict:
        answer = session.request(method, f"{uri}/api/2.0/mlflow/{path}", timeout=60, **content)
        answer.raise_for_status()
        return answer.json()

    found = ask("GET", "experiments/get-by-name", params={"experiment_name": name})
    made = {"experiment_id": found["experiment"]["experiment_id"], "start_time": int(time.time() * 1000)}
    run = ask("POST", "runs/create", json=made)["run"]["info"]["run_id"]
    times, errors = [], []
    for step in range(batches):
        now = int(time.time() * 1000)
        metrics = [{"key": f"m{i}", "value": step + i / 10, "timestamp": now, "step": step} for i in range(METRICS)]
        began = time.perf_counter()
        try:
            ask("POST", "runs/log-batch", json={"run_id": run, "metrics": metrics})
        except requests.RequestException as error:
            errors.append(str(error))
        times.append(time.perf_counter() - began)
        time.sleep(pause)
    ask("POST", "runs/update", json={"run_id": run, "status": "FINISHED", "end_time": int(time.time() * 1000)})
    history = ask("GET", "metrics/get-history", params={"run_id": run, "metric_key": "m0"})["metrics"]
    if len(history) != batches - len(errors):
        errors.append(f"{name}: {len(history)} of {batches} steps arrived")
    return times, errors


@click.command(help=__doc__)
@click.option("--users", "count", default=30, show_default=True)
@click.option("--batches", default=60, show_default=True)
@click.option("--pause", default=2.0, show_default=True, help="seconds between a participant's batches")
def main(count: int, batches: int, pause: float) -> None:
    uri = os.environ["MLFLOW_TRACKING_URI"].rstrip("/")
    if urlsplit(uri).hostname not in ("127.0.0.1", "localhost"):
        raise click.UsageError("This is a load test: it goes to a server on this machine alone.")
    passwords = {f"load{i:02}": secrets.token_urlsafe(16) for i in range(count)}
    for name, password in passwords.items():
        join(name, password)
    began = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        done = list(pool.map(lambda name: log(uri, name, passwords[name], batches, pause), passwords))
    took = time.perf_counter() - began
    times = np.array([t for each, _ in done for t in each]) * 1000
    errors = [error for _, each in done for error in each]
    p50, p95, p99 = np.percentile(times, [50, 95, 99])
    click.echo(f"{count} participants, {times.size} batches of {METRICS} metrics in {took:.0f} s, {len(errors)} errors")
    click.echo(f"log_batch, ms: median {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}, longest {times.max():.0f}")
    for error in errors[:5]:
        click.echo(error)


if __name__ == "__main__":
    main()
