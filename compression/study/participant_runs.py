"""A participant's runs in MLflow: the row of the time sheet they count for, and how long they took."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from compression.tracking import ViewType, server
from compression.tracking.run import TIME_TAG

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from compression.study.definition import Study

PARENT_TAG = "mlflow.parentRunId"
STAGE_TAG = "participant.stage"  # the stage of the study in which the run was started
MAX_RESULTS = 50_000  # the most that MLflow returns at once
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
        """The methods it applied, as in `structured+finetune`; without one, the kind of run (`train`, `evaluate`)."""
        return self.tags.get("method") or self.tags.get("stage", "")

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
    def interval(self) -> Interval | None:
        """Start and end of its command, from the duration it recorded; None if its end is unknown."""
        if self.end is None:
            return None
        hours = self.tags.get(TIME_TAG)
        return (self.end - timedelta(hours=float(hours)) if hours else self.start), self.end

    def row(self, study: Study) -> str:
        """Return the row of the time sheet that it counts for; empty if there is none."""
        return study.row_of_run(self.tags.get(STAGE_TAG, ""), self.families)


def load_runs(participant_id: str, view: int = ViewType.ACTIVE_ONLY) -> list[ParticipantRun]:
    """Return all runs that are tagged with the participant, oldest first. Raises UserError if MLflow does not answer.

    `view` is a `ViewType`: active runs, deleted ones, or all.
    """
    with server.checked_client(f"look for the runs of {participant_id}") as client:
        experiments = client.search_experiments(view_type=ViewType.ALL, max_results=MAX_RESULTS)
        ids = [experiment.experiment_id for experiment in experiments]
        query = f"tags.participant = '{participant_id}'"
        runs = client.search_runs(ids, query, view, MAX_RESULTS, ["attributes.start_time ASC"])
    return [
        ParticipantRun(
            id=run.info.run_id,
            name=run.info.run_name,
            experiment=run.info.experiment_id,
            status=run.info.status,
            start=_to_datetime(run.info.start_time) or datetime.now(UTC),
            end=_to_datetime(run.info.end_time),
            tags=dict(run.data.tags),
            metrics=dict(run.data.metrics),
        )
        for run in runs
    ]


def _to_datetime(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


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
        total += max(end - max(start, covered_until), timedelta())
        covered_until = max(covered_until, end)
    return total / timedelta(hours=1)


def last_activity(runs: Sequence[ParticipantRun]) -> datetime | None:
    """Return the latest time at which one of `runs` ended or, if it has not ended, started; None without runs."""
    return max((run.end or run.start for run in runs), default=None)
