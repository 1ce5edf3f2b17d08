"""A worker of a study: runs trials until there are enough, together with other workers, any of which may die."""

from __future__ import annotations

import contextlib
import random
import re
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import optuna
from optuna.exceptions import StorageInternalError
from optuna.samplers import BaseSampler, GridSampler
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback, fail_stale_trials
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from compression import tracking
from compression.errors import UserError, first_line, root_cause
from compression.extras import explain_missing
from compression.tuning.config import STORAGE_VARIABLE, TuningConfig, storage_url
from compression.tuning.trial import REFUSED_ATTR, WORKER_ATTR, Objective

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from optuna import Study
    from optuna.pruners import BasePruner

    from compression.tuning.space import Space

POLL_SECONDS = 1.0  # between looks at what other workers are doing
MISSED_HEARTBEATS = 3  # after which a worker counts as dead
MAX_RETRIES = 3  # of a trial whose worker died
DEFINITION_ATTEMPTS = 10  # to read a study's definition, POLL_SECONDS apart
# What a database says to a worker that makes Optuna's tables at the same time as another.
MADE_MEANWHILE = re.compile("already exists|UNIQUE|duplicate key|locked", re.IGNORECASE)


def silence_optuna() -> None:
    """Stop Optuna's own log and warnings: every trial logs to a run."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # heartbeats count as experimental


def retry_callback() -> RetryHeartbeatStaleTrialCallback:
    """Return the callback that queues the trial of a dead worker again."""
    return RetryHeartbeatStaleTrialCallback(max_retry=MAX_RETRIES)


@contextlib.contextmanager
def _storage_explained() -> Iterator[None]:
    """Turn what Optuna's storage raises in the block, or the function, into a UserError."""
    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        raise _storage_error(error) from error


@_storage_explained()
def open_study(
    config: TuningConfig,
    name: str,
    space: Space,
    objectives: Mapping[str, bool],
    definition: dict[str, Any],
    own_keys: Sequence[str] = (),
) -> Study:
    """Create the study `name`, or open it to continue it. `user_attrs["about"]` holds its definition.

    Raises UserError if the study exists with another definition; the seed and `own_keys` may differ between workers.
    Also if the storage cannot be used.
    """
    settings: dict[str, Any] = {"storage": _storage(config), "study_name": name, "pruner": make_pruner(config)}
    sampler = make_sampler(config, space, definition["seed"])
    try:
        study = optuna.create_study(directions=study_directions(objectives), sampler=sampler, **settings)
    except optuna.exceptions.DuplicatedStudyError:
        study = optuna.load_study(**settings)
        shared = {key: value for key, value in definition.items() if key not in ("seed", *own_keys)}
        stored = _stored_definition(study) or _take_over(study, objectives, definition)
        _check_definition(study, stored, shared)
        # With seeds of their own, two workers tried 23 of 30 points of a grid, and some of them twice.
        study.sampler = make_sampler(config, space, stored["seed"])  # the seed orders a grid: the same for all workers
        study.sampler.reseed_rng()  # but random draws must differ between workers
        return study
    _define(study, objectives, definition)
    return study


def _define(study: Study, objectives: Mapping[str, bool], definition: dict[str, Any]) -> None:
    """Write down what the study is. The definition comes last: where it is, everything is."""
    study.set_metric_names(list(objectives))
    study.set_user_attr("about", definition)


def _take_over(study: Study, objectives: Mapping[str, bool], definition: dict[str, Any]) -> dict[str, Any]:
    """Define a study whose worker was killed right after creating it; return the definition that it has then.

    Raises UserError if it is no such study.
    """
    if study.get_trials(deepcopy=False) or study.directions != study_directions(objectives):
        raise UserError(
            f"The study {study.study_name} was not begun by tune, or with other objectives; take another name: "
            "study=NAME."
        )
    _define(study, objectives, definition)
    time.sleep(POLL_SECONDS)  # of several workers that find it so, the last one defines it for all
    return _stored_definition(study)


def _storage(config: TuningConfig) -> RDBStorage:
    """Open the storage. Raises UserError if it cannot be used."""
    try:
        with explain_missing():
            return _connect(config)
    except (SQLAlchemyError, ImportError, ValueError, LookupError, RuntimeError) as error:
        raise _storage_error(error) from error


def _connect(config: TuningConfig) -> RDBStorage:
    """Connect to the storage; again, where another worker made the tables of a new one meanwhile."""
    for _ in range(DEFINITION_ATTEMPTS):
        try:
            return _new_connection(config)
        except SQLAlchemyError as error:
            if not MADE_MEANWHILE.search(str(error)):
                raise
            time.sleep(POLL_SECONDS * random.random())
    return _new_connection(config)


def _new_connection(config: TuningConfig) -> RDBStorage:
    return RDBStorage(
        storage_url(),
        heartbeat_interval=config.heartbeat,
        grace_period=MISSED_HEARTBEATS * config.heartbeat,
        heartbeat_stale_trial_callback=retry_callback(),
    )


def _storage_error(error: Exception) -> UserError:
    url, reason = tracking.redact_uri(storage_url()), first_line(root_cause(error))
    return UserError(f"Optuna's storage {url} cannot be used: {reason}; see {STORAGE_VARIABLE}.")


def _check_definition(study: Study, stored: Mapping[str, Any], shared: Mapping[str, Any]) -> None:
    """Raise UserError if the study's `stored` definition differs from `shared`."""
    for key, value in shared.items():
        if stored.get(key) != value:
            raise UserError(
                f"The study {study.study_name} was begun with {key}={stored.get(key)}; take another name: study=NAME."
            )


def _stored_definition(study: Study) -> dict[str, Any]:
    """Return the study's definition, or {}. Waits for it: the worker that creates a study writes it a bit later."""
    for _ in range(DEFINITION_ATTEMPTS):
        if definition := study.user_attrs.get("about"):
            return dict(definition)
        time.sleep(POLL_SECONDS)
    return dict(study.user_attrs.get("about", {}))


def study_directions(objectives: Mapping[str, bool]) -> list[StudyDirection]:
    """Return Optuna's direction of each objective; `objectives` maps each to whether more of it is better."""
    return [StudyDirection.MAXIMIZE if maximize else StudyDirection.MINIMIZE for maximize in objectives.values()]


def make_sampler(config: TuningConfig, space: Space, seed: int) -> BaseSampler:
    """Return the sampler that `config` names."""
    samplers: dict[str, Callable[[], BaseSampler]] = {
        "tpe": lambda: optuna.samplers.TPESampler(seed=seed, multivariate=True),
        "nsga2": lambda: optuna.samplers.NSGAIISampler(seed=seed),
        "nsga3": lambda: optuna.samplers.NSGAIIISampler(seed=seed),
        "random": lambda: optuna.samplers.RandomSampler(seed=seed),
        "grid": lambda: GridSampler(space.grid_values(), seed=seed),
        "gp": lambda: optuna.samplers.GPSampler(seed=seed),
    }
    return samplers[config.sampler]()


def make_pruner(config: TuningConfig) -> BasePruner:
    """Return the pruner that `config` names."""
    pruners: dict[str, Callable[[], BasePruner]] = {
        "none": optuna.pruners.NopPruner,
        "median": optuna.pruners.MedianPruner,
        "hyperband": optuna.pruners.HyperbandPruner,
    }
    return pruners[config.pruner]()


@dataclass(frozen=True)
class Worker:
    """Runs trials of `study` until all workers together have `config.trials`, or this one's time is up."""

    study: Study
    config: TuningConfig
    objective: Objective
    first_seen: dict[int, float] = field(default_factory=dict)  # trial -> when it was first seen without a worker, s

    def run(self) -> None:
        """Run trials until there are enough. Raises UserError if the storage fails."""
        try:
            self.run_trials()
        except (StorageInternalError, SQLAlchemyError) as error:
            raise UserError(
                f"Optuna's storage {tracking.redact_uri(storage_url())} went away; start this worker again when it is "
                "back, and it continues the study."
            ) from error

    def run_trials(self) -> None:
        """Run trials until there are enough, or the time is up."""
        began = time.monotonic()
        while not self.is_grid_exhausted():
            fail_stale_trials(self.study)
            self.retry_trials_without_heartbeat()
            # Workers count and begin without a lock: as many trials as there are other workers may be begun too many.
            counts = self.count_trials()
            if counts["finished"] + counts["running"] < self.config.trials or counts["waiting"]:
                if self.config.timeout and time.monotonic() - began > self.config.timeout:
                    return
                self.run_trial()
            elif counts["running"]:
                time.sleep(POLL_SECONDS)  # wait for other workers: if one dies, its trial is queued again
            else:
                return

    def run_trial(self) -> None:
        """Run one trial."""
        try:
            self.study.optimize(self.objective, n_trials=1, catch=(UserError,))
        except ValueError:  # Optuna's, for a trial that is finished already
            if not self.was_declared_dead():
                raise
            tracking.notify("Another worker took this one for dead, and repeats its trial.")

    def was_declared_dead(self) -> bool:
        """Whether another worker ended the last trial that this one began."""
        own = [t for t in self.study.get_trials() if t.user_attrs.get(WORKER_ATTR) == self.objective.job.run.id]
        # A trial that is repeated gets a number of its own, so the last one begun here is the one in question.
        return bool(own) and own[-1].state == TrialState.FAIL

    def retry_trials_without_heartbeat(self) -> None:
        """Queue trials again whose worker died before its first heartbeat.

        Optuna never finds these. Measured by this worker's own clock: those of other machines may differ.
        """
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if WORKER_ATTR in trial.user_attrs:
                continue
            first_seen = self.first_seen.setdefault(trial.number, time.monotonic())
            if time.monotonic() - first_seen > MISSED_HEARTBEATS * self.config.heartbeat:
                # Two workers may see it at once.
                self.study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)
                retry_callback()(self.study, trial)

    def is_grid_exhausted(self) -> bool:
        """Whether the study samples a grid of which every point has been tried."""
        sampler = self.study.sampler
        return isinstance(sampler, GridSampler) and sampler.is_exhausted(self.study)

    def count_trials(self) -> dict[str, int]:
        """Count the trials that are finished (refused ones too), running, and waiting to be repeated."""
        trials = self.study.get_trials(deepcopy=False)
        return {
            "finished": sum(is_finished(t) for t in trials),
            "running": sum(t.state == TrialState.RUNNING for t in trials),
            "waiting": sum(t.state == TrialState.WAITING for t in trials),
        }


def is_finished(trial: FrozenTrial) -> bool:
    """Whether a trial ended: completed, pruned, or refused. The failed trial of a dead worker does not count."""
    return trial.state in (TrialState.COMPLETE, TrialState.PRUNED) or REFUSED_ATTR in trial.user_attrs
