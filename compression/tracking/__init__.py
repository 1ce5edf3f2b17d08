"""MLflow: starting and ending runs, delivering what they log, and reading runs back.

Only this package and `compression.backend` import mlflow. What a run logs is written to a journal on disk and
delivered from there, so an outage of the server during a run loses nothing. Queries go to the server directly and
raise UserError if it does not answer.
"""

from compression.tracking.delivery import damaged_folder, dead_runs, sync, undelivered_runs
from compression.tracking.journal import home
from compression.tracking.launches import launch_lock
from compression.tracking.lifecycle import fail_joined_run, start_run
from compression.tracking.local_run import CompressionWarning, LocalRun
from compression.tracking.lost import end_run, home_tag, lost_runs
from compression.tracking.null_run import NullRun
from compression.tracking.records import (
    RunRecord,
    ViewType,
    download,
    find_baseline,
    finished_runs,
    get_run,
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
    "damaged_folder",
    "dead_runs",
    "download",
    "end_run",
    "fail_joined_run",
    "find_baseline",
    "finished_runs",
    "get_run",
    "home",
    "home_tag",
    "is_configured",
    "launch_lock",
    "lost_runs",
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
