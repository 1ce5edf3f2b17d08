"""Where a run is to be seen in the MLflow UI."""

from __future__ import annotations

import os

from compression.study.runs import PersonRun
from compression.tracking import server


def mlflow_page(run: PersonRun) -> str:
    """The run's page: under COMPRESSION_MLFLOW_UI, or at the tracking server; empty where neither is an address."""
    base = os.environ.get("COMPRESSION_MLFLOW_UI") or server.redact_uri(server.tracking_uri())
    if not base.startswith(("http://", "https://")):
        return ""
    return f"{base.rstrip('/')}/#/experiments/{run.experiment}/runs/{run.id}"
