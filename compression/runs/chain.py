"""The stages of a run, from its settings to its report: baseline, steps, measurement before and after."""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from torch import nn

from compression import methods, tracking
from compression.deploy.measure import Measurement, examine, timed
from compression.methods.base import Method
from compression.runs import baseline, machine
from compression.runs.job import Job, started
from compression.runs.settings import Settings
from compression.training.context import Context


def compress(settings: Settings, steps: Sequence[Method]) -> dict[str, Any]:
    """Apply `steps` to the baseline and measure after each; what the run keeps as comparison.json."""
    methods.check_order(steps)
    with started(settings, "compress", steps) as job:
        steps = job.resolved(steps)
        job.foresee(steps[0])
        job = job.with_baseline()
        original = baseline.opened(job.settings.baseline, job.task).requires_grad_(False)
        stairs = Stairs(job, steps, job.context(original), [])
        stairs.measure(original)
        model = copy.deepcopy(original).requires_grad_(True)
        original.to(job.machine.device)
        for _ in steps:
            model = stairs.climb(model)
        return stairs.conclude(job, steps, model)


def train(settings: Settings, step: Method) -> dict[str, Any]:
    """Train the model of `settings` from its start: a baseline, measured, for later runs to begin from."""
    with started(settings, "train", [step]) as job:
        return job.train(step)


def evaluate(settings: Settings) -> dict[str, Any]:
    """Measure a trained model as it is."""
    with started(settings, "evaluate") as job:
        job = job.with_baseline()
        return job.measure([], baseline.opened(job.settings.baseline, job.task), 0.0)


def take(step: Method, model: nn.Module, context: Context) -> tuple[nn.Module, float]:
    """The model after `step`, and the seconds it took.

    Everything random begins anew at each step, so that a step gives the same whatever came before it: a measurement,
    or the same model read back from a cache.
    """
    machine.seed(context.seed)
    began = time.perf_counter()
    return step.apply(model, context).eval(), time.perf_counter() - began


@dataclass
class Stairs:
    """A chain on its way: a measurement of the model before it and after each step, a child run a step."""

    job: Job
    steps: Sequence[Method]
    context: Context
    measured: list[Measurement]  # of the original, then of the model after each step so far
    seconds: float = 0.0  # spent in the steps

    def climb(self, model: nn.Module) -> nn.Module:
        """The model after the next step, measured."""
        number = len(self.measured)
        step = self.steps[number - 1]
        self.context.step_name, self.context.changed = f"{number}-{methods.name_of(step)}", number > 1
        with self.part(step) as job:
            model, seconds = take(step, model, self.context)
            self.seconds += seconds
            self.measure(model)
            if job is not self.job:
                self.conclude(job, self.steps[:number], model)
        return model.to(self.job.machine.device)

    @contextlib.contextmanager
    def part(self, step: Method) -> Iterator[Job]:
        """The job of a child run for the step; of the run itself, where the step is all there is."""
        if len(self.steps) == 1:
            yield self.job
            return
        with self.context.stage(self.context.step_name) as record:
            run = cast(tracking.Run, record)
            for name, value in self.job.tags("step", [step]).items():
                run.tag(name, value)
            job = replace(self.job, run=run, stage="step")
            job.resolved([step])
            above, self.context.child = self.context.child, job.part  # the step's own parts hang below the step
            try:
                yield job
            finally:
                self.context.child = above

    def measure(self, model: nn.Module) -> None:
        """Examine the model, and time it in turn with the original."""
        job = self.job
        if not job.machine.main:
            return
        file = job.run.folder / "onnx" / f"{len(self.measured)}.onnx"
        self.measured.append(examine(model.cpu(), job.task, file, job.machine.threads))
        if len(self.measured) > 1:
            self.measured[0], self.measured[-1] = timed(
                [self.measured[0], self.measured[-1]], job.task, job.machine.threads
            )

    def conclude(self, job: Job, steps: Sequence[Method], model: nn.Module) -> dict[str, Any]:
        return job.conclude(steps, model, self.measured, self.seconds) if job.machine.main else {}
