"""The end of a run: measurements summarized, sanity checks, everything logged with the metadata to repeat it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from compression import methods
from compression.deploy.measure import Measurement, add_timings, measure_model
from compression.runs import command, results

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.methods.base import Method
    from compression.runs.job import Job


def measure_single(job: Job, steps: Sequence[Method], model: nn.Module, seconds: float) -> dict[str, Any]:
    """Measure a model that is compared with none, and conclude; empty in processes that do not log."""
    if not job.machine.main:
        return {}
    found = measure_model(model.cpu(), job.task, job.run.folder / "onnx" / "0.onnx", job.machine.threads)
    return conclude(job, steps, model, add_timings([found], job.task, job.machine.threads), seconds)


def conclude(
    job: Job, steps: Sequence[Method], model: nn.Module, measured: list[Measurement], seconds: float
) -> dict[str, Any]:
    """Check and log the outcome of `steps`, which took `seconds`; the content of comparison.json.

    `measured` holds the original and the model after each step, or a single model.
    """
    metrics = results.summarize(job.task, measured, seconds)
    for sentence in results.sanity_checks(job.task, model, measured):
        job.run.warn(sentence, job.stage != "step")  # on the terminal, what holds at the end of the chain
    return results.keep(job.run, job.task, model.cpu(), measured, metrics, metadata(job, steps))


def commands(job: Job, stage: str, steps: Sequence[Method]) -> dict[str, str]:
    """The commands that repeat a run; of one that was called from Python, what was called."""
    if not job.settings.task:
        return {
            "command": f"compression.{stage}({job.model_name}, {methods.text(steps)!r}, task)",
            "project_command": "",
        }
    return {
        "command": command.line(job.settings, stage, steps),
        "project_command": command.project_line(job.settings, stage, steps),
    }


def metadata(job: Job, steps: Sequence[Method]) -> dict[str, Any]:
    """What is kept beside the metrics: who, what, and the commands that repeat it."""
    stage = "compress" if job.stage == "step" else job.stage
    return {
        "title": " ".join([methods.text(steps, brief=True) or stage, "on", job.task.name]),
        "run": job.run.id,
        "task": job.task.name,
        "labels": job.task.labels,
        "normalization": job.task.normalization.described() if job.task.normalization else {},
        "model": job.model_name,
        "steps": methods.text(steps),
        "step_labels": methods.labels(steps),
        "participant": job.settings.person,
        **commands(job, stage, steps),
        "machine": job.machine.facts(),
    }
