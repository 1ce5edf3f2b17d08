"""Whether the Hugging Face hub, or the mirror that HF_ENDPOINT names, can be reached.

Without a network, the hub's own libraries retry for most of a minute. Code that asks here first can tell them to use
local copies only.
"""

from __future__ import annotations

import queue
import threading
from functools import cache
from pathlib import Path

import requests
from huggingface_hub import constants, try_to_load_from_cache

from compression.errors import first_line

TIMEOUT_SECONDS = 5.0  # a mirror on the other side of the world answers in one


def is_reachable() -> bool:
    """Whether the endpoint answers; False in offline mode (HF_HUB_OFFLINE). Asked once per process and endpoint."""
    return not constants.HF_HUB_OFFLINE and _responds(constants.ENDPOINT)


@cache
def _responds(endpoint: str) -> bool:
    """Whether any HTTP response comes within TIMEOUT_SECONDS."""
    # In a thread: a name server that drops packets blocks for longer than any timeout of requests.
    result: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=_send_request, args=(endpoint, result), daemon=True).start()
    try:
        return result.get(timeout=TIMEOUT_SECONDS)
    except queue.Empty:
        return False


def _send_request(endpoint: str, result: queue.Queue[bool]) -> None:
    """Put into `result` whether a request to `endpoint` got a response, of any status."""
    try:
        requests.head(endpoint, timeout=TIMEOUT_SECONDS)
    except requests.RequestException:
        result.put(False)
    else:
        result.put(True)


def cached_revision(name: str) -> str | None:
    """Return the commit of the model `name` that is in the hub's cache here; None if none is."""
    try:
        config = try_to_load_from_cache(name, "config.json")
    except ValueError:  # no name that the hub could have
        return None
    return Path(config).parent.name if isinstance(config, str) else None


def failure_reason(error: Exception) -> str:
    """Explain why the hub gave nothing and what to set, as half a sentence. `error` is what its library raised."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub, unset it"
    if is_reachable():
        return f"{constants.ENDPOINT} does not give it ({first_line(error)}), check the name"
    return f"{constants.ENDPOINT} cannot be reached, set HF_ENDPOINT to a mirror"
