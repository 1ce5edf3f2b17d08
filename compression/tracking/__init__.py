"""MLflow: starting and ending runs, delivering what they log, and reading runs back.

Only this package and `compression.backend` import mlflow. What a run logs is written to a journal on disk and
delivered from there, so an outage of the server during a run loses nothing. Queries go to the server directly and
raise UserError if it does not answer.
"""

from compression.tracking.delivery import sync, undelivered_runs
from compression.tracking.journal import home
from compression.tracking.lifecycle import fail_joined_run, start_run
from compression.tracking.local_run import CompressionWarning, LocalRun
from compression.tracking.null_run import NullRun
from compression.tracking.records import (
    RunRecord,
    ViewType,
    download,
    find_baseline,
    finished_runs,
    get_run,
    mark_failed,
    metric_history,
    never_started_runs,
    register_model,
    write_mlmodel,
)
from compression.tracking.run import Run, notify, run_folder
from compression.tracking.server import check_server, is_configured, redact_uri, tracking_uri

__all__ = [
    "CompressionWarning",
    "LocalRun",
    "NullRun",
    "Run",
    "RunRecord",
    "ViewType",
    "check_server",
    "download",
    "fail_joined_run",
    "find_baseline",
    "finished_runs",
    "get_run",
    "home",
    "is_configured",
    "mark_failed",
    "metric_history",
    "never_started_runs",
    "notify",
    "redact_uri",
    "register_model",
    "run_folder",
    "start_run",
    "sync",
    "tracking_uri",
    "undelivered_runs",
    "write_mlmodel",
]
