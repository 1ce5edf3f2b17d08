"""What MLflow knows of a participant's runs: which row of the time sheet they count for, and how long they took."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from compression.study.definition import Study
from compression.tracking import ViewType, server
from compression.tracking.run import TIME_TAG

PARENT = "mlflow.parentRunId"
STAGE = "participant.stage"  # the stage of the study that the run was started in
PAGE = 50_000  # the most MLflow gives at once
Interval = tuple[datetime, datetime]


@dataclass(frozen=True)
class PersonRun:
    """A run as the study sees it; `child` runs lie within their parent's time."""

    id: str
    name: str
    experiment: str
    status: str
    start: datetime
    end: datetime | None
    tags: dict[str, str]
    metrics: dict[str, float]

    @property
    def child(self) -> bool:
        return PARENT in self.tags

    @property
    def method(self) -> str:
        """What the run did, as in `structured+finetune`; the kind of run where it applied no method."""
        return self.tags.get("method") or self.tags.get("stage", "")

    @property
    def families(self) -> tuple[str, ...]:
        """The families of its methods; training between them is part of the others."""
        named = tuple(filter(None, self.tags.get("family", "").split("+")))
        return tuple(name for name in named if name != "train") or named

    @property
    def compressed(self) -> bool:
        """Whether it compressed a model, rather than training or measuring one."""
        return self.tags.get("stage", "compress") == "compress" and bool(self.families)

    @property
    def interval(self) -> Interval | None:
        """When its command worked: the hours it recorded, up to its end. None while nobody knows its end."""
        if self.end is None:
            return None
        recorded = self.tags.get(TIME_TAG)
        return (self.end - timedelta(hours=float(recorded)) if recorded else self.start), self.end

    def row(self, study: Study) -> str:
        return study.row_of_run(self.tags.get(STAGE, ""), self.families)


def of_person(id: str, view: int = ViewType.ACTIVE_ONLY) -> list[PersonRun]:
    """Every run tagged with the participant `id`, oldest first; a UserError if MLflow does not answer."""
    with server.checked_client(f"look for the runs of {id}") as client:
        places = [e.experiment_id for e in client.search_experiments(view_type=ViewType.ALL, max_results=PAGE)]
        asked = f"tags.participant = '{id}'"
        found = client.search_runs(places, asked, view, PAGE, ["attributes.start_time ASC"])
    return [_read(run) for run in found]


def _read(run) -> PersonRun:  # type: ignore[no-untyped-def]  # only compression.tracking knows MLflow's types
    return PersonRun(
        run.info.run_id,
        run.info.run_name,
        run.info.experiment_id,
        run.info.status,
        _moment(run.info.start_time) or datetime.now(UTC),
        _moment(run.info.end_time),
        dict(run.data.tags),
        dict(run.data.metrics),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def finished(of_person: Sequence[PersonRun]) -> list[PersonRun]:
    """The runs that compressed a model and came to their end, oldest first."""
    return [run for run in of_person if not run.child and run.status == "FINISHED" and run.compressed]


def hours(runs: Iterable[PersonRun]) -> float:
    """How long the runs took by the clock on the wall: where several worked at once, the time counts once."""
    return union(interval for run in runs if not run.child and (interval := run.interval))


def union(intervals: Iterable[Interval]) -> float:
    """The hours that `intervals` cover together."""
    total, reached = timedelta(), datetime.min.replace(tzinfo=UTC)
    for start, end in sorted(intervals):
        total += max(end - max(start, reached), timedelta())
        reached = max(reached, end)
    return total / timedelta(hours=1)


def last_sign(runs: Sequence[PersonRun]) -> datetime | None:
    """The latest moment at which a run began or ended."""
    return max((run.end or run.start for run in runs), default=None)
