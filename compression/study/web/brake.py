"""A brake on guessing passwords: after some wrong ones, each further one has to wait.

Waits are seconds, so that the honest are held up and never locked out; and a browser in which somebody has logged in
before is counted by itself, so that strangers who guess at their name do not hold them up at all. (OWASP: "Slow Down
Online Guessing Attacks with Device Cookies".)
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from compression.study.texts import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable

FORGET_SECONDS = 900.0
MAX_KEYS = 10_000  # of a table: whoever has many addresses must not fill the memory


class TooManyLoginsError(StudyError):
    """A login has to wait."""


@dataclass
class _Count:
    wrong: int = 0  # of those that nobody has forgiven yet, under way included
    last: float = -math.inf


class Brake:
    """Counts wrong logins by key: the first `free` pass, then each waits 2, 4, 8 … seconds, `longest` at most.

    An attempt counts as wrong from its beginning, so that a hundred at once are not all the first. `now` gives seconds.
    """

    def __init__(self, free: int, longest: float, now: Callable[[], float] = time.monotonic) -> None:
        self.free, self.longest, self._now = free, longest, now
        self._counts: dict[str, _Count] = {}
        self._mutex = threading.Lock()

    def begin(self, key: str) -> None:
        """Count an attempt. Raises TooManyLoginsError, without counting, for one that comes too early."""
        with self._mutex:
            now = self._now()
            self._forget(now)
            count = self._counts.setdefault(key, _Count())
            ready = count.last + self._wait(count.wrong)
            if now < ready:
                raise TooManyLoginsError("login_brake", seconds=math.ceil(ready - now))
            count.wrong, count.last = count.wrong + 1, now

    def _wait(self, wrong: int) -> float:
        return min(2.0 ** min(wrong - self.free + 1, 30), self.longest) if wrong >= self.free else 0.0

    def forgive(self, key: str, attempts: int | None = 1) -> None:
        """Take back so many attempts, None for all: they were not wrong."""
        with self._mutex:
            if count := self._counts.get(key):
                count.wrong = 0 if attempts is None else max(0, count.wrong - attempts)

    def _forget(self, now: float) -> None:
        if len(self._counts) >= MAX_KEYS:  # a flood of new keys must not push out those that are being guessed at
            self._counts = dict(sorted(self._counts.items(), key=lambda item: item[1].wrong)[MAX_KEYS // 2 :])
        for key in [key for key, count in self._counts.items() if count.last < now - FORGET_SECONDS]:
            del self._counts[key]
