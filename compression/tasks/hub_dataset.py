"""`hub/OWNER/NAME`: any set of text with labels on the Hugging Face hub, a mirror, or in a folder laid out like it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.tasks import text_files
from compression.tasks.hub_files import find_hub_files

if TYPE_CHECKING:
    from compression.tasks import TaskRequest
    from compression.tasks.task import Task


def hub_dataset(request: TaskRequest) -> Task:
    """Load `hub/OWNER/NAME`, or `hub/OWNER/NAME/CONFIG` of a set with several configurations.

    Its columns, classes and splits are found as for the task `text`. Raises UserError for a name of another form, if
    the hub does not give it, and for data that cannot be learned from.
    """
    return text_files.make_task(request, find_hub_files(request, request.name.removeprefix("hub/")))
