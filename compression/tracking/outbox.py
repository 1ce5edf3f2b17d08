"""Delivering a journal in order from a background thread: callers never wait for the network.

Delivery is at least once: after a crash between sending a batch and noting that, the batch is sent again. So a
receiver must accept duplicates.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from compression.errors import UserError

if TYPE_CHECKING:
    from compression.tracking.journal import Entry, Journal

Send = Callable[[list["Entry"]], None]


class Health:
    """What the outboxes of a run and of its children know of their common receiver: whether it answered last."""

    answers = True


BATCH_SIZE = 100  # entries sent at once: MLflow takes at most 100 params and 100 tags in one request
BATCH_WINDOW = 0.3  # seconds to wait for more entries, so that a burst becomes one request
MIN_BACKOFF, MAX_BACKOFF = 1.0, 30.0  # seconds between attempts while the receiver is unavailable


class RejectedError(Exception):
    """The receiver will never accept this entry: retrying is useless."""


class UnavailableError(Exception):
    """The receiver cannot be reached or fails for now: the same entry may be delivered later."""


def deliver(journal: Journal, send: Send) -> None:
    """Send everything in the journal, in order.

    If `send` raises RejectedError, the batch is sent again entry by entry and only the rejected ones are set aside.
    Passes on the UnavailableError that `send` raises.
    """
    while deliver_batch(journal, send, BATCH_SIZE):
        pass


def deliver_batch(journal: Journal, send: Send, limit: int) -> bool:
    """Send the next `limit` entries; return whether there were any."""
    batch = journal.pending(limit)
    try:
        if batch:
            send([entry for entry, _ in batch])
            journal.mark_delivered(batch[-1][1])
    except RejectedError:
        for entry, end in batch:
            _deliver_or_reject(journal, entry, send)
            journal.mark_delivered(end)
    return bool(batch)


def _deliver_or_reject(journal: Journal, entry: Entry, send: Send) -> None:
    try:
        send([entry])
    except RejectedError as error:
        journal.reject(entry, str(error))


class Outbox:
    """Delivers a journal from a daemon thread and retries, with exponential backoff, while the receiver is unavailable.

    The thread first calls `prepare` (which may raise UnavailableError), then sends. It calls `on_complete` when the
    outbox is closed and everything has been delivered, and `on_unavailable` with the reason when the receiver stops
    answering (once per outage). `seconds_to_send` says how long one call of `send` may take beyond the usual.
    """

    def __init__(
        self,
        journal: Journal,
        send: Send,
        on_complete: Callable[[], None],
        on_unavailable: Callable[[str], None],
        prepare: Callable[[], None] = lambda: None,
        seconds_to_send: Callable[[list[Entry]], float] = lambda _: 0.0,
        health: Health | None = None,
    ) -> None:
        self.journal = journal
        self.last_error = ""  # why the last attempt failed; empty after a success
        self.health = health or Health()
        self.prepared = threading.Event()
        self._all_delivered = False
        self._timeout = 0.0  # of `close`
        self._patient_until = 0.0  # when `close` gives up, unless something has been sent by then
        self._send, self._prepare, self._seconds_to_send = send, prepare, seconds_to_send
        self._on_complete, self._on_unavailable = on_complete, on_unavailable
        self._has_entries, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, *entries: Entry) -> None:
        """Write entries to disk and schedule their delivery. Raises UserError if the disk is full."""
        self.journal.append(entries)
        self._has_entries.set()

    def close(self, timeout: float, at_most: float = math.inf) -> bool:
        """Wait until everything has been delivered; return whether it has. Nothing may be put any more.

        Waits as long as it takes while the receiver accepts entries, `timeout` seconds while it does not, and
        `at_most` seconds in all. The thread goes on trying after that, as long as the process lives; to close once
        more is to wait once more.
        """
        latest, self._timeout = time.monotonic() + at_most, timeout
        self._be_patient()
        self._closing.set()
        self._has_entries.set()
        while self._thread.is_alive() and time.monotonic() < min(self._patient_until, latest):
            self._thread.join(0.05)
        return self._all_delivered and not self._thread.is_alive()

    def _work(self) -> None:
        backoff = MIN_BACKOFF
        while True:
            closing = self._closing.is_set()  # read before delivering: nothing is put after close()
            self._has_entries.clear()
            try:
                if not self.prepared.is_set():
                    self._prepare()
                    self.health.answers = True
                    self.prepared.set()
                # After a failure send a single entry first: `close` soon sees that the receiver is back.
                while deliver_batch(self.journal, self._send_patiently, 1 if self.last_error else BATCH_SIZE):
                    self.last_error = ""
            except (UnavailableError, UserError) as error:  # UserError: `delivered` does not fit on the disk
                self._note_failure(str(error))
                backoff = self._back_off(backoff)
                continue
            self.last_error, backoff = "", MIN_BACKOFF
            if closing:
                self._all_delivered = True
                return self._on_complete()
            self._has_entries.wait()
            self._closing.wait(BATCH_WINDOW)

    def _send_patiently(self, entries: list[Entry]) -> None:
        """Send, and let `close` wait the longer: for large files before, for whatever comes next after it."""
        if not self.last_error:
            self._be_patient(self._seconds_to_send(entries))
        self._send(entries)
        self.health.answers = True
        self._be_patient()

    def _be_patient(self, seconds: float = 0.0) -> None:
        self._patient_until = max(self._patient_until, time.monotonic() + self._timeout + seconds)

    def _note_failure(self, reason: str) -> None:
        self.health.answers = False
        if not self.last_error:
            self._on_unavailable(reason)
        self.last_error = reason

    def _back_off(self, seconds: float) -> float:
        """Wait before the next attempt, less if `close` is called meanwhile; return the wait after that one."""
        if self._closing.is_set():
            time.sleep(seconds)
        elif self._closing.wait(seconds):
            return MIN_BACKOFF
        return min(2 * seconds, MAX_BACKOFF)
