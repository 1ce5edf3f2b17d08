"""Whether the Hugging Face hub, or the mirror that HF_ENDPOINT names, can be asked for anything.

The hub's own libraries retry for most of a minute where there is no network. Who knocks first can tell
them to look at the copies on this disk only, and they answer at once.
"""

from __future__ import annotations

import queue
import threading
from functools import cache

import requests
from huggingface_hub import constants

from compression.errors import first_line

SECONDS = 5.0  # a mirror on the other side of the world answers in one


def reachable() -> bool:
    """Whether the endpoint answers now; False in offline mode (HF_HUB_OFFLINE)."""
    return not constants.HF_HUB_OFFLINE and _answers(constants.ENDPOINT)


@cache
def _answers(endpoint: str) -> bool:
    # In a thread: a name server that drops its packets blocks for longer than any timeout of requests.
    answer: queue.Queue[bool] = queue.Queue()
    threading.Thread(target=_knock, args=(endpoint, answer), daemon=True).start()
    try:
        return answer.get(timeout=SECONDS)
    except queue.Empty:
        return False


def _knock(endpoint: str, answer: queue.Queue[bool]) -> None:
    try:
        requests.head(endpoint, timeout=SECONDS)  # any answer will do, a refusal too
    except requests.RequestException:
        answer.put(False)
    else:
        answer.put(True)


def trouble(error: Exception) -> str:
    """Why the hub gave nothing and what to set, as half a sentence; `error` is what its library raised."""
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE forbids asking the hub, unset it"
    if reachable():
        return f"{constants.ENDPOINT} does not give it ({first_line(error)}), check the name"
    return f"{constants.ENDPOINT} cannot be reached, set HF_ENDPOINT to a mirror"
