"""A worker of a study: it takes trials until there are enough, whoever else works along, and whoever dies."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import StorageInternalError
from optuna.pruners import BasePruner
from optuna.samplers import BaseSampler, GridSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from compression import tracking
from compression.errors import UserError, first_line
from compression.tuning.plan import STORAGE_VARIABLE, TuningConfig, storage_url
from compression.tuning.space import Space
from compression.tuning.trial import REFUSED_ATTR, WORKER_ATTR, Objective

POLL_SECONDS = 1.0  # seconds between looks at what other workers are doing
SIGNS = 3  # signs of life that may fail to come before a worker is taken for dead
RETRIES = 3


def silence_optuna() -> None:
    """Optuna says nothing of its own: every trial is a run."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats are, since 2020


def retry_callback() -> RetryHeartbeatStaleTrialCallback:
    """What puts another trial in the place of one whose worker died."""
    return RetryHeartbeatStaleTrialCallback(max_retry=RETRIES)


def open_study(
    plan: TuningConfig,
    name: str,
    space: Space,
    objectives: Mapping[str, bool],
    about: dict[str, Any],
    own: Sequence[str] = (),
) -> Study:
    """The study `name`, new or gone on with; `user_attrs["about"]` says how it was begun.

    UserError where it was begun otherwise than `about` says, in anything but the seed and the `own` of each worker.
    """
    directions = [StudyDirection.MAXIMIZE if more else StudyDirection.MINIMIZE for more in objectives.values()]
    settings: dict[str, Any] = {"storage": _storage(plan), "study_name": name, "make_pruner": make_pruner(plan)}
    try:
        study = optuna.create_study(directions=directions, sampler=make_sampler(plan, space, about["seed"]), **settings)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(**settings)
        begun = _check_same(study, {name: value for name, value in about.items() if name not in ("seed", *own)})
        study.sampler = make_sampler(plan, space, begun["seed"])  # the seed numbers the points of a grid: one for all
        study.sampler.reseed_rng()  # and what is drawn, each worker draws otherwise
        return study
    study.set_metric_names(list(objectives))
    study.set_user_attr("about", about)
    return study


def _storage(plan: TuningConfig) -> RDBStorage:
    try:
        return RDBStorage(
            storage_url(),
            heartbeat_interval=plan.heartbeat,
            grace_period=SIGNS * plan.heartbeat,
            heartbeat_stale_trial_callback=retry_callback(),
        )
    except (SQLAlchemyError, ImportError, ValueError) as error:
        raise UserError(
            f"Optuna's storage {tracking.redact_uri(storage_url())} cannot be used: {first_line(error)}; see {STORAGE_VARIABLE}."
        ) from error


def _check_same(study: Study, about: dict[str, Any]) -> dict[str, Any]:
    """How the study was begun; UserError where that was otherwise than `about` says."""
    begun = next(filter(None, (_begun(study) for _ in range(10))), {})
    for name, value in about.items():
        if begun.get(name) != value:
            raise UserError(
                f"The study {study.study_name} was begun with {name}={begun.get(name)}; take another name: study=NAME."
            )
    return begun


def _begun(study: Study) -> dict[str, Any]:
    """How the study was begun; its maker may be about to write it down."""
    if "about" not in study.user_attrs:
        time.sleep(POLL_SECONDS)
    return study.user_attrs.get("about", {})


def make_sampler(plan: TuningConfig, space: Space, seed: int) -> BaseSampler:
    made = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "nsga3": lambda: optuna.samplers.NSGAIIISampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "grid": lambda: GridSampler(space.grid(), seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }
    return made[plan.sampler]()


def make_pruner(plan: TuningConfig) -> BasePruner:
    made = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return made[plan.pruner]()


@dataclass(frozen=True)
class Worker:
    """Takes trials of `study` until it has `plan.trials`, over all workers, or this one's time is up."""

    study: Study
    plan: TuningConfig
    attempt: Objective
    seen: dict[int, float] = field(default_factory=dict)  # when a trial was first seen running for nobody

    def work(self) -> None:
        began = time.monotonic()
        while not self.exhausted():
            fail_stale_trials(self.study)
            self.retry_never_begun()
            counts = self.counts()
            if counts["is_finished"] + counts["running"] < self.plan.trials or counts["waiting"]:
                if self.plan.timeout and time.monotonic() - began > self.plan.timeout:
                    return
                self.take_one()
            elif counts["running"]:
                time.sleep(POLL_SECONDS)  # another worker's: should it die, its trial comes back
            else:
                return

    def take_one(self) -> None:
        """Do a trial; UserError where the storage goes away meanwhile."""
        try:
            self.study.optimize(self.attempt, n_trials=1, catch=(UserError,))
        except StorageInternalError as error:
            raise UserError(
                f"Optuna's storage {tracking.redact_uri(storage_url())} went away; start this worker again when it is back, "
                "and it goes on with the study."
            ) from error
        except ValueError:
            if not self.taken_for_dead():
                raise
            tracking.notify("Another worker took this one for dead, and does its trial again.")

    def taken_for_dead(self) -> bool:
        """Whether the last trial that this worker began was ended by another."""
        own = [t for t in self.study.get_trials() if t.user_attrs.get(WORKER_ATTR) == self.attempt.job.run.id]
        return bool(own) and own[-1].state == TrialState.FAIL

    def retry_never_begun(self) -> None:
        """Have the trials tried again whose worker died before its first sign of life.

        Optuna would take them for alive for ever. The clock is this worker's own: others' may be set otherwise.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if WORKER_ATTR in trial.user_attrs:
                continue
            first = self.seen.setdefault(trial.number, time.monotonic())
            if time.monotonic() - first > SIGNS * self.plan.heartbeat:
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                retry_callback()(self.study, trial)

    def exhausted(self) -> bool:
        make_sampler = self.study.sampler
        return isinstance(make_sampler, GridSampler) and make_sampler.is_exhausted(self.study)

    def counts(self) -> dict[str, int]:
        """How many trials are finished (refused ones too), running, and waiting to be tried again."""
        trials = self.study.get_trials(deepcopy=False)
        return {
            "is_finished": sum(is_finished(t) for t in trials),
            "running": sum(t.state == TrialState.RUNNING for t in trials),
            "waiting": sum(t.state == TrialState.WAITING for t in trials),
        }


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial came to its end, a refusal included; one whose worker died did not: another is in its place."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or REFUSED_ATTR in trial.user_attrs
