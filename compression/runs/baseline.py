"""The trained model that a run starts from: resolved from its name, found in MLflow, or trained as a child run."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from compression import methods, models, tracking
from compression.runs import conclusion, loading, resume
from compression.training.context import Context

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from compression.methods.base import Method
    from compression.runs.job import Job


def make_context(job: Job, original: nn.Module, steps: Sequence[Method] = ()) -> Context:
    """The context in which `steps` are applied in a job; `original` is the model before the first of them."""
    return Context(
        task=job.task,
        original=original,
        accelerator=job.machine.accelerator,
        record=job.run,
        seed=job.settings.seed,
        folder=job.run.folder,
        load=lambda spec: loading.open_model(resolve(job, spec), job.task),
        build=lambda spec: loading.open_model(spec, job.task),
        child=job.stage_run,
        resume=resume.checkpoint_folder(job.settings),
        conditions=resume.run_conditions(job, steps),
    )


def resolve(job: Job, spec: str) -> str:
    """Resolve `spec` to a model URI or folder: a name of the lab to its trained model, trained now if there is none."""
    if spec not in models.MODELS:
        return spec
    return find(job, spec) or train_child(job, spec)


def find(job: Job, name: str) -> str:
    """The URI of the newest model `name` that a `train` run on this task and data left; empty if there is none."""
    # Asked once for all processes: a run that ends meanwhile would give some of them another model.
    id = job.machine.shared(lambda: tracking.find_baseline(job.task.name, name, job.task.digest))
    return f"runs:/{id}/model" if id else ""


def with_baseline(job: Job) -> Job:
    """The job with the URI of its baseline in its settings, so that its command repeats it exactly."""
    uri = resolve(job, job.settings.baseline or job.model_name)
    job.run.tag("baseline", uri)
    return replace(job, settings=replace(job.settings, baseline=uri))


def validate_first_step(job: Job, step: Method) -> None:
    """Let the first step refuse what it cannot do before its baseline is trained, which may take hours.

    Raises UserError as `step.check` does. Where a trained baseline is there already, the step itself will refuse.
    """
    given = job.settings.baseline
    name = given or job.model_name
    if (given and given not in models.MODELS) or find(job, name):
        return
    with torch.random.fork_rng(devices=[]):  # the training's random numbers must not depend on this check
        untrained = loading.open_model(name, job.task)
        context = make_context(job, untrained)
        # A teacher that is yet to train is built untrained here: a check must not train one.
        step.check(untrained, replace(context, load=context.build))


def train_child(job: Job, name: str) -> str:
    """Train the model `name` as a child run with the task's training defaults; its URI."""
    step = methods.method("finetune")()
    settings = replace(job.settings, model=name, baseline="", run_name="", resume="")
    child = replace(job, settings=settings, stage="train")
    with job.child(f"train {name} {job.task.name}", child.tags("train", [step])) as run:
        train(replace(child, run=run), step)
    return f"runs:/{job.machine.shared(lambda: run.id)}/model"


def train(job: Job, step: Method) -> dict[str, Any]:
    """Train the job's model from its start, and measure it; the content of comparison.json."""
    [step] = job.resolved([step])
    resume.require_same_command(job, [step])
    began = time.perf_counter()
    model = loading.open_model(job.model_name, job.task)
    model = step.apply(model, make_context(job, model, [step]))
    seconds = time.perf_counter() - began
    job.run.tag("model", job.model_name)
    job.run.tag("data_digest", job.task.digest)
    return conclusion.measure_single(job, [step], model, seconds)
