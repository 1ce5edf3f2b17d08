"""Delivering a journal in order, from a thread: nobody waits for a network, and nothing is lost without one.

A record may arrive twice (a crash between sending it and noting that), so receivers must not mind.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from compression.errors import UserError
from compression.tracking.journal import Journal, Record

Send = Callable[[list[Record]], None]

BATCH = 100  # records sent at once: MLflow takes at most 100 params and 100 tags in one request
LINGER = 0.3  # seconds: what is said in quick succession travels together
FIRST_PAUSE, LONGEST_PAUSE = 1.0, 30.0  # seconds between attempts while the receiver is gone


class Refused(Exception):
    """The receiver will never take this record: trying again is of no use."""


class Undelivered(Exception):
    """The receiver could not be reached, or is in trouble: the same record may well arrive later."""


def deliver(journal: Journal, send: Send) -> None:
    """Send everything in the journal, in order.

    `send` raises `Refused` for records that can never be delivered (the batch is then sent one by one, to set
    aside only those), and `Undelivered` when it is of no use to go on now: that passes through.
    """
    while deliver_some(journal, send, BATCH):
        pass


def deliver_some(journal: Journal, send: Send, limit: int) -> bool:
    """Send the next `limit` records; return whether there were any."""
    batch = journal.pending(limit)
    try:
        if batch:
            send([record for record, _ in batch])
            journal.advance(batch[-1][1])
    except Refused:
        for record, end in batch:
            _deliver_one(journal, record, send)
            journal.advance(end)
    return bool(batch)


def _deliver_one(journal: Journal, record: Record, send: Send) -> None:
    try:
        send([record])
    except Refused as refusal:
        journal.refuse(record, str(refusal))


class Outbox:
    """Delivers a journal from a daemon thread, and keeps trying while the receiver is gone.

    `finished` is called from the thread when the outbox is closed and everything has arrived; `lost` when the
    receiver stops answering, once until it answers again, with the reason.
    """

    def __init__(self, journal: Journal, send: Send, finished: Callable[[], None], lost: Callable[[str], None]) -> None:
        self.journal = journal
        self.trouble = ""  # why the last attempt failed
        self._all_arrived = False
        self._send, self._finished, self._lost = send, finished, lost
        self._news, self._closing = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._work, name="outbox", daemon=True)
        self._thread.start()

    def put(self, *records: Record) -> None:
        """Keep the records on disk and deliver them soon; never waits for the receiver."""
        self.journal.append(records)
        self._news.set()

    def close(self, patience: float) -> bool:
        """Wait until everything has arrived; return whether it has.

        While the receiver takes records this waits as long as it needs to. While it does not, `patience`
        seconds; the thread then goes on trying for as long as the process lives.
        """
        self._closing.set()
        self._news.set()
        give_up = time.monotonic() + patience
        while self._thread.is_alive() and time.monotonic() < give_up:
            self._thread.join(0.1)
            if not self.trouble:
                give_up = time.monotonic() + patience
        return self._all_arrived and not self._thread.is_alive()

    def _work(self) -> None:
        pause = FIRST_PAUSE
        while True:
            closing = self._closing.is_set()  # asked before delivering: nothing is put after close()
            self._news.clear()
            try:
                # A receiver that was gone gets one record first: `close` soon sees that it is back.
                while deliver_some(self.journal, self._send, 1 if self.trouble else BATCH):
                    self.trouble = ""
            except (Undelivered, UserError) as error:  # UserError: the disk does not take `delivered`
                self._failed(str(error))
                pause = self._rest(pause)
                continue
            self.trouble, pause = "", FIRST_PAUSE
            if closing:
                self._all_arrived = True
                return self._finished()
            self._news.wait()
            self._closing.wait(LINGER)

    def _failed(self, reason: str) -> None:
        if not self.trouble:
            self._lost(reason)
        self.trouble = reason

    def _rest(self, pause: float) -> float:
        """Wait before the next attempt, cut short by `close`; return the pause after the next one."""
        if self._closing.is_set():
            time.sleep(pause)
        elif self._closing.wait(pause):
            return FIRST_PAUSE
        return min(2 * pause, LONGEST_PAUSE)
