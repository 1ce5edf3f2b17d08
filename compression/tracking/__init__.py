"""MLflow: starting and ending runs, delivering what they say, and reading back what is there.

Only this package (and `compression.backend`) imports mlflow. A run's words go through its outbox, so a server
that goes away in the middle of a run costs nothing; questions go to the server directly, and a UserError says
when it does not answer.
"""

from compression.tracking.delivery import sync, unsent
from compression.tracking.journal import home
from compression.tracking.lifecycle import child, refuse, start
from compression.tracking.run import Run, folder_of, say
from compression.tracking.server import check_server, public, tracking_uri
from compression.tracking.silent import Silent
from compression.tracking.stored import (
    Stored,
    close,
    describe_model,
    download,
    find_baseline,
    finished,
    history,
    never_begun,
    register,
    stored,
)

__all__ = [
    "Run",
    "Silent",
    "Stored",
    "check_server",
    "child",
    "close",
    "describe_model",
    "download",
    "find_baseline",
    "finished",
    "folder_of",
    "history",
    "home",
    "never_begun",
    "public",
    "refuse",
    "register",
    "say",
    "start",
    "stored",
    "sync",
    "tracking_uri",
    "unsent",
]
