"""Progress of a training: a bar with the time left on a terminal or in a notebook, a line per epoch elsewhere."""

from __future__ import annotations

import sys
import time

from tqdm import tqdm


class Progress:
    """A bar over all steps of a training, with the loss and the last validation metric beside it."""

    def __init__(self, title: str, epochs: int, steps_per_epoch: int, done: int = 0, quiet: bool = False):
        self.title, self.epochs, self.started = title, epochs, time.perf_counter()
        self.first = done  # epochs of the run that was resumed took none of this run's time
        # Written to a file, a bar is a line for every refresh.
        self.lines = not quiet and not sys.stderr.isatty() and "ipykernel" not in sys.modules
        self.bar = tqdm(
            total=epochs * steps_per_epoch,
            initial=done * steps_per_epoch,
            desc=title,
            unit="step",
            dynamic_ncols=True,
            disable=quiet or self.lines,
        )

    def step(self) -> None:
        """Advance by one optimizer step."""
        self.bar.update()

    def epoch(self, epoch: int, figures: dict[str, float]) -> None:
        """Show the figures of a finished epoch (counted from 1)."""
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items())
        self.bar.set_postfix_str(shown)
        if self.lines:
            spent = time.perf_counter() - self.started
            left = spent / (epoch - self.first) * (self.epochs - epoch)
            line = f"{self.title}  epoch {epoch}/{self.epochs}  {shown}  {spent:.0f} s spent, {left:.0f} s left"
            print(line, file=sys.stderr, flush=True)

    def close(self) -> None:
        """Take the bar off the terminal."""
        self.bar.close()
