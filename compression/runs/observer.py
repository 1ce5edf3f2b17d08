"""Who is told of runs: something outside of the lab's core, which the command line names."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from compression.tracking import Run


class Observer:
    """Told of every run of a command. It may tag the run; this one does nothing."""

    def started(self, run: Run, participant: str) -> None:
        """The run of `participant` (empty: nobody's) has begun; nothing has been loaded yet."""

    def ended(self, run: Run, participant: str, method: str) -> None:
        """The run has done its work with `method`, a chain's names joined by +, and is about to end."""
