"""`run.json` in a run's folder: which run of which server it is. All that delivers a run needs its folder alone."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from compression.tracking.lookup import RUN_KEY_TAG

if TYPE_CHECKING:
    from pathlib import Path

RUN_FILE = "run.json"


class NewRun(TypedDict):
    """The arguments to create a run with at the server."""

    experiment: str
    name: str | None
    tags: dict[str, str]
    start: int  # ms since the epoch


class RunMetadata(TypedDict):
    """The content of `run.json` in a run's folder."""

    uri: str  # the tracking server, without credentials
    id: str  # the run's id at the server; empty until it has been created there
    experiment: str
    began: float  # when the command started, s since the epoch
    make: NotRequired[NewRun]  # for a run that does not exist at the server yet


class DamagedError(Exception):
    """A run's folder does not say any more which run it is of."""


def read_metadata(folder: Path) -> RunMetadata:
    """Return the content of a folder's `run.json`. Raises DamagedError if it is missing or damaged."""
    try:
        found = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
        is_sound = _is_sound(found)
    except OSError as error:
        raise DamagedError(f"{RUN_FILE} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        is_sound = False
    if not is_sound:
        raise DamagedError(f"{RUN_FILE} is damaged")
    metadata: RunMetadata = found
    return metadata


def _is_sound(found: Any) -> bool:
    """Whether these are RunMetadata. Raises KeyError, TypeError or AttributeError if the structure is another."""
    texts, numbers = [found["uri"], found["id"], found["experiment"]], [found["began"]]
    make = found.get("make")
    if make is not None:
        tags = make["tags"]
        texts += [make["experiment"], make["name"] or "", tags[RUN_KEY_TAG], *tags.values()]
        numbers.append(make["start"])
    is_known = make is not None or found["id"]  # by its id, or to be created
    return bool(is_known) and all(isinstance(text, str) for text in texts) and all(map(math.isfinite, numbers))
