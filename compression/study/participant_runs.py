"""A participant's runs in MLflow: the row of the time sheet they count for, and how long they took.

Everybody who has an account at a tracking server may write anything there: tags are claims. A participant's runs are
those in experiments that nobody else writes, and what is read of them is taken for a stranger's.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from compression.study import database, participants
from compression.tracking import ViewType, server
from compression.tracking.run import TIME_TAG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.study.definition import Study

PARENT_TAG = "mlflow.parentRunId"
STAGE_TAG = "participant.stage"  # the stage of the study in which the run was started
DEFAULT_EXPERIMENT = "Default"  # at a server with logins, only administrators write it
MAX_RESULTS = 50_000  # the most that MLflow returns at once
MAX_HOURS = 10_000.0  # of one run, over a year: more is no measurement
MAX_METRIC = 1e18  # nor is more of any metric; MLflow returns infinity as 1.8e308
MAX_NAME = 200  # characters of a run's name or method
Interval = tuple[datetime, datetime]


@dataclass(frozen=True)
class ParticipantRun:
    """A run of a participant. The time of a child run is part of its parent's."""

    id: str
    name: str
    experiment: str
    status: str
    start: datetime
    end: datetime | None
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def is_child(self) -> bool:
        """Whether it has a parent run."""
        return PARENT_TAG in self.tags

    @property
    def method(self) -> str:
        """The methods it applied, as in `structured+finetune`; without one, the kind of run (`train`, `evaluate`).

        Only the characters of names: drawing takes others for mathematics (`$`) and fails.
        """
        return re.sub(r"[^\w.+-]", "_", self.tags.get("method") or self.tags.get("stage", ""))[:MAX_NAME]

    @property
    def families(self) -> tuple[str, ...]:
        """The families of its methods; fine-tuning between other methods does not count as one."""
        families = tuple(filter(None, self.tags.get("family", "").split("+")))
        return tuple(name for name in families if name != "train") or families

    @property
    def is_compression(self) -> bool:
        """Whether it compressed a model, rather than training or evaluating one."""
        return self.tags.get("stage", "compress") == "compress" and bool(self.families)

    @property
    def hours(self) -> float | None:
        """How long its command took, as it recorded; None if it recorded nothing that can be a duration."""
        try:
            hours = float(self.tags.get(TIME_TAG, ""))
        except ValueError:
            return None
        return hours if 0 <= hours <= MAX_HOURS else None

    @property
    def interval(self) -> Interval | None:
        """Start and end of its command, from the duration it recorded or from its own times; None if unknown."""
        if self.end is None:
            return None
        start = self.start if self.hours is None else self.end - timedelta(hours=self.hours)
        return (start, self.end) if self.end - start <= timedelta(hours=MAX_HOURS) else None

    def row(self, study: Study) -> str:
        """Return the row of the time sheet that it counts for; empty if there is none."""
        return study.row_of_run(self.tags.get(STAGE_TAG, ""), self.families)


@dataclass(frozen=True)
class Experiments:
    """In which experiments the runs of one participant may lie, by name."""

    own: frozenset[str]
    of_others: frozenset[str]  # of all other participants

    def hold(self, name: str) -> bool:
        """Whether runs with the participant's tag in the experiment `name` are theirs.

        At a server, where anybody may make experiments, only in their own, and in the default one. A store without
        logins separates nobody, but what is made for another participant is that participant's.
        """
        if name in self.own:
            return True
        if server.tracking_uri().startswith(server.HTTP):
            return name == DEFAULT_EXPERIMENT
        return name not in self.of_others


def find_experiments(participant_id: str) -> Experiments:
    """Return whose experiments are whose: those that the web app fills, and those that belong to a login.

    Without a study on this machine, the participant's own has the name of their id.
    """
    if not database.exists():
        return Experiments(frozenset([participant_id]), frozenset())
    with database.open_session() as session:
        pattern = database.load_study(session).experiment
        owned = {p.id: {pattern.format(participant=p.id), p.login} for p in participants.list_participants(session)}
    own = owned.pop(participant_id, {pattern.format(participant=participant_id), participant_id})
    return Experiments(frozenset(own), frozenset().union(*owned.values()))


def load_runs(participant_id: str, view: int = ViewType.ACTIVE_ONLY) -> list[ParticipantRun]:
    """Return the participant's runs, oldest first: those with their tag in experiments that may hold them.

    `view` is a `ViewType`: active runs, deleted ones, or all. Raises UserError if MLflow or the study's database does
    not answer.
    """
    theirs = find_experiments(participant_id)
    with server.checked_client(f"look for the runs of {participant_id}") as client:
        # Deleted experiments too: their runs are kept until somebody purges them.
        experiments = client.search_experiments(view_type=ViewType.ALL, max_results=MAX_RESULTS)
        ids = [experiment.experiment_id for experiment in experiments if theirs.hold(experiment.name)]
        query = f"tags.participant = '{participant_id}'"
        runs = client.search_runs(ids, query, view, MAX_RESULTS, ["attributes.start_time ASC"]) if ids else []
    return [_parse_run(run) for run in runs]


def may_read(participant_id: str, run_id: str) -> bool:
    """Whether a participant may start from the model of the run `run_id`: their own, or trained for everybody.

    Those are in the default experiment, where only administrators of a server with logins write. Raises UserError if
    MLflow or the study's database does not answer.
    """
    if any(run.id == run_id for run in load_runs(participant_id)):
        return True
    with server.checked_client(f"look for the run {run_id}") as client:
        default = client.get_experiment_by_name(DEFAULT_EXPERIMENT)
        condition = f"attributes.run_id = '{run_id}' and tags.stage = 'train'"
        return bool(default and client.search_runs([default.experiment_id], condition, max_results=1))


def _parse_run(run: Any) -> ParticipantRun:
    """Read an entity of MLflow."""
    metrics = {name: value for name, value in run.data.metrics.items() if _is_measurement(value)}
    return ParticipantRun(
        id=run.info.run_id,
        name=(run.info.run_name or "")[:MAX_NAME],
        experiment=run.info.experiment_id,
        status=run.info.status,
        start=_to_datetime(run.info.start_time) or datetime.now(UTC),
        end=_to_datetime(run.info.end_time),
        tags=dict(run.data.tags),
        metrics=metrics,
    )


def _is_measurement(value: float) -> bool:
    return math.isfinite(value) and abs(value) <= MAX_METRIC


def _to_datetime(milliseconds: int | None) -> datetime | None:
    """Return the moment, after 1970; None without one, or for one that no calendar has."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds and milliseconds > 0 else None
    except (OverflowError, ValueError, OSError):
        return None


def finished_compressions(runs: Sequence[ParticipantRun]) -> list[ParticipantRun]:
    """Return those of `runs` that compressed a model and finished, without child runs."""
    return [run for run in runs if not run.is_child and run.status == "FINISHED" and run.is_compression]


def total_hours(runs: Iterable[ParticipantRun]) -> float:
    """Return the wall-clock hours of `runs`; time in which several ran at once counts once."""
    return covered_hours(interval for run in runs if not run.is_child and (interval := run.interval))


def covered_hours(intervals: Iterable[Interval]) -> float:
    """Return the length of the union of `intervals`, in hours."""
    total, covered_until = timedelta(), datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(intervals):
        # In the order of their starts, each adds what lies beyond the end so far.
        total += max(end - max(start, covered_until), timedelta())
        covered_until = max(covered_until, end)
    return total / timedelta(hours=1)


def last_activity(runs: Sequence[ParticipantRun]) -> datetime | None:
    """Return the latest time at which one of `runs` ended or, if it has not ended, started; None without runs."""
    return max((run.end or run.start for run in runs), default=None)
