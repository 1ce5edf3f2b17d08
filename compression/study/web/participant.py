"""A participant's own pages: where they are, the clock, the time sheet, notes, runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from compression.reporting import report
from compression.study import clock, launches, notes, runs, stages, timesheet
from compression.study.runs import PersonRun
from compression.study.tables import now
from compression.study.texts import Refused, pick, say
from compression.study.web.forms import Sent
from compression.study.web.links import mlflow_page
from compression.study.web.pages import Visit, named, page, tell, to, visit

router = APIRouter()
CHANGES = {"pause": clock.pause, "resume": clock.resume, "stop": clock.stop}


@router.get("/")
def home(request: Request) -> Response:
    with visit(request) as found:
        person, study = found.person, found.study
        finished, current = stages.done(found.opened, person), stages.current(found.opened, person)
        launched = launches.of_person(person.id)[:1]
        shown = {"study": study, "task": study.assignments[person.assignment], "finished": finished, "now": current}
        return page(request, "home.html", 200, **shown, **timer(found), launched=launched)


def timer(found: Visit) -> dict[str, Any]:
    """What the clock's part of a page shows: its state, the rows that are open, the reminder."""
    read = clock.read(found.opened, found.person)
    current, study = stages.current(found.opened, found.person), found.study
    order = [stage.name for stage in study.stages]
    last = order.index(current.name) if current else len(order)
    open_rows = [row for stage in study.stages[: last + 1] for row in stage.rows]
    idle = clock.idle_hours(found.opened, found.person)
    hours = read.hours(read.row, now()) if read.row else 0.0
    return {
        "clock": read,
        "rows": {row: pick(study.rows[row].title) for row in open_rows},
        "idle": idle,
        "hours": hours,
    }


@router.post("/clock")
def change_clock(request: Request, form: Sent) -> Response:
    """start (with a row), pause, resume or stop; what is so already stays so."""
    kind = form.one("change")
    with visit(request) as found:
        if kind == "start":
            clock.start(found.opened, found.person, form.one("row"))
        elif kind in CHANGES:
            CHANGES[kind](found.opened, found.person)
        else:
            raise Refused("no_page")
    return to("/")


@router.post("/done")
def finish_stage(request: Request, form: Sent) -> Response:
    with visit(request) as found:
        stage = stages.finish_work(found.opened, found.person, form.one("stage"))
        following = stages.current(found.opened, found.person)
        title = pick(following.title) if following else "–"
        tell(request, say("stage_done", stage=pick(stage.title), following=title))
    return to("/")


@router.get("/time")
def time_sheet(request: Request) -> Response:
    of_person = runs.of_person(named(request))
    with visit(request) as found:
        lines = timesheet.sheet(found.opened, found.person, of_person)
        log = clock.events(found.opened, found.person)
        return page(request, "time.html", lines=lines, log=log, other=timesheet.OTHER)


@router.post("/time")
def correct(request: Request, form: Sent) -> Response:
    with visit(request) as found:
        row, hours = form.one("row"), number(form.one("hours"))
        left = clock.correct(found.opened, found.person, row, hours, form.one("reason"))
    tell(request, say("corrected", row=row, hours=f"{left:.2f}"))
    return to("/time")


def number(text: str) -> float:
    """A number of hours as people write it, 1.5 or 1,5; what is none becomes not-a-number, which nothing takes."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return float("nan")


@router.get("/notes")
def show_notes(request: Request) -> Response:
    with visit(request) as found:
        kept = notes.preferences(found.opened, found.person)
        preferred = [(p, notes.shown(found.opened, p)) for p in kept]
        journal = list(reversed(notes.journal(found.opened, found.person)))
        return page(request, "notes.html", journal=journal, preferred=preferred, techniques=found.study.techniques)


@router.post("/notes")
def add_note(request: Request, form: Sent) -> Response:
    with visit(request) as found:
        notes.add(found.opened, found.person, form.one("text"), form.one("run"))
    tell(request, say("note_kept"))
    return to("/notes")


@router.post("/preferences")
def prefer(request: Request, form: Sent) -> Response:
    with visit(request) as found:
        said = (form.one("situation"), form.one("technique"), form.one("why"))
        notes.prefer(found.opened, found.person, *said)
    tell(request, say("preference_kept"))
    return to("/notes")


@router.get("/runs")
def show_runs(request: Request) -> Response:
    own = [run for run in runs.of_person(named(request)) if not run.child]
    shown = [(run, headline(run)) for run in reversed(own)]
    return page(request, "runs.html", runs=shown)


@router.get("/runs/{id}")
def show_run(request: Request, id: str) -> Response:
    """One of the visitor's own runs, before and after."""
    own = {run.id: run for run in runs.of_person(named(request))}
    if id not in own:
        raise Refused("no_run")
    run = own[id]
    rows = report.comparison_rows({"metrics": run.metrics, "metric": headline(run)["metric"]}) if run.metrics else []
    return page(request, "run.html", run=run, rows=rows, link=mlflow_page(run))


def headline(run: PersonRun) -> dict[str, Any]:
    """The figures that a list of runs shows: the quality metric before and after, the ratios."""
    metric = next((name.removesuffix("_kept") for name in run.metrics if name.endswith("_kept")), "")
    named = {name: run.metrics.get(name) for name in ("compression_ratio", "speedup")}
    return {"metric": metric, "before": run.metrics.get(f"{metric}_before"), "after": run.metrics.get(metric), **named}
