"""Compress, train, evaluate: a run from its settings to its report, measured before and after each step."""

from __future__ import annotations

import contextlib
import copy
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from compression import methods, tracking
from compression.deploy.measure import Measurement, add_timings, measure_model
from compression.runs import baseline, conclusion, coverage, loading, machine, resume
from compression.runs.job import Job, started

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from compression.methods.base import Method
    from compression.runs.settings import Settings
    from compression.training.context import Context


def compress(settings: Settings, steps: Sequence[Method]) -> dict[str, Any]:
    """Apply `steps` to the baseline and measure after each; the content of comparison.json."""
    methods.check_order(steps)
    with started(settings, "compress", steps) as job:
        steps = job.resolved(steps)
        resume.require_same_command(job, steps)
        # All that can be refused is refused before a baseline is trained, which may take hours.
        baseline.validate_first_step(job, steps[0])
        job = baseline.with_baseline(job)
        original = loading.open_model(job.settings.baseline, job.task).requires_grad_(False)
        content, _ = ChainRunner(job, steps, baseline.make_context(job, original, steps), []).run()
        return content


def train(settings: Settings, step: Method) -> dict[str, Any]:
    """Train the model of `settings` from its start: a measured baseline for later runs."""
    with started(settings, "train", [step]) as job:
        return baseline.train(job, step)


def evaluate(settings: Settings) -> dict[str, Any]:
    """Measure a trained model as it is."""
    with started(settings, "evaluate") as job:
        job = baseline.with_baseline(job)
        return conclusion.measure_single(job, [], loading.open_model(job.settings.baseline, job.task), 0.0)


def apply_step(step: Method, model: nn.Module, context: Context) -> tuple[nn.Module, float]:
    """Apply `step`; the model after it and the seconds it took.

    What share of the parameters it reached is recorded. Everything is seeded anew at each step, so that a step gives
    the same whatever came before it: a measurement, or the same model read back from a cache.
    """
    before = coverage.layer_states(model) if coverage.has_coverage(step) else None
    machine.seed(context.seed)
    began = time.perf_counter()
    made = step.apply(model, context).eval()
    seconds = time.perf_counter() - began
    if before is not None:
        coverage.log_coverage(methods.name_of(step), before, made, context.record)
    return made, seconds


@dataclass
class ChainRunner:
    """Runs the steps of a chain: a measurement of the model before the first and after each, a child run a step."""

    job: Job
    steps: Sequence[Method]
    context: Context
    measured: list[Measurement]  # of the original, then of the model after each step so far
    seconds: float = 0.0  # spent in the steps

    def run(self) -> tuple[dict[str, Any], nn.Module]:
        """Apply all steps to a copy of the context's original model, and measure before the first and after each.

        The content of comparison.json, and the compressed model.
        """
        original = self.context.original
        self.measure(original)
        # The original is frozen, for it may teach; so is its copy at first.
        model = copy.deepcopy(original).requires_grad_(True)
        # Measured on the CPU; from here on it may be the teacher.
        original.to(self.job.machine.device)
        for number in range(1, len(self.steps) + 1):
            model = self.run_step(number, model)
        return self.conclude(self.job, self.steps, model), model

    def run_step(self, number: int, model: nn.Module) -> nn.Module:
        """Apply step `number`, counted from 1, and measure the model after it."""
        step = self.steps[number - 1]
        with self.step_run(step, self.context.for_step(number, methods.name_of(step))) as (job, context):
            model, seconds = apply_step(step, model, context)
            self.seconds += seconds
            self.measure(model)
            if job is not self.job:
                self.conclude(job, self.steps[:number], model)
        # back from where it was measured
        return model.to(self.job.machine.device)

    @contextlib.contextmanager
    def step_run(self, step: Method, context: Context) -> Iterator[tuple[Job, Context]]:
        """Open a child run for the step, unless it is the only one; the job and the context to apply it with."""
        if len(self.steps) == 1:
            yield self.job, context
            return
        with context.stage(context.step_name) as (staged, record):
            run = cast("tracking.Run", record)
            for name, value in self.job.tags("step", [step]).items():
                run.tag(name, value)
            job = replace(self.job, run=run, stage="step")
            job.log_fields([step])
            yield job, replace(staged, child=job.stage_run)  # the step's own stages are its child runs

    def measure(self, model: nn.Module) -> None:
        """Measure the model, and time it in turn with the original."""
        job = self.job
        if not job.machine.main:
            return
        file = job.run.folder / "onnx" / f"{len(self.measured)}.onnx"
        self.measured.append(measure_model(model.cpu(), job.task, file, job.machine.threads))
        if len(self.measured) > 1:
            # The original is timed again beside each step's model: on a busy machine the latency of one and the same
            # shape wavered between 0.44 and 0.65 ms.
            pair = [self.measured[0], self.measured[-1]]
            self.measured[0], self.measured[-1] = add_timings(pair, job.task, job.machine.threads)

    def conclude(self, job: Job, steps: Sequence[Method], model: nn.Module) -> dict[str, Any]:
        """Log the outcome of `steps` to the run of `job`."""
        return conclusion.conclude(job, steps, model, self.measured, self.seconds) if job.machine.main else {}
