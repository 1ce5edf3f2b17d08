"""A participant's own pages: overview, clock, time sheet, notes, runs."""

import os
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response

from compression.reporting import report
from compression.study import clock, launches, notes, participant_runs, stages, timesheet
from compression.study.participant_runs import ParticipantRun
from compression.study.tables import utc_now
from compression.study.texts import StudyError, localize, translate
from compression.study.web.forms import SubmittedForm
from compression.study.web.pages import Visit, consenting_id, flash, open_visit, redirect, render_page
from compression.tracking import server

router = APIRouter()
CLOCK_CHANGES = {"pause": clock.pause, "resume": clock.resume, "stop": clock.stop}


@router.get("/")
def show_home(request: Request) -> Response:
    """Show the current stage, what to do in it, and the clock."""
    with open_visit(request) as visit:
        participant, study = visit.participant, visit.study
        values: dict[str, Any] = {
            "study": study,
            "task": study.assignments[participant.assignment],
            "finished": stages.completed(visit.session, participant),
            "now": stages.current(visit.session, participant),
            "launched": launches.list_launches(participant.id)[:1],
        }
        return render_page(request, "home.html", **values, **clock_values(visit))


def clock_values(visit: Visit) -> dict[str, Any]:
    """Return what the clock's part of a page shows: its state and hours, the rows to choose from, an idle warning."""
    state, study = clock.load(visit.session, visit.participant), visit.study
    current = stages.current(visit.session, visit.participant)
    last = study.stages.index(current) if current else len(study.stages)
    return {
        "clock": state,
        "rows": {row: localize(study.rows[row].title) for stage in study.stages[: last + 1] for row in stage.rows},
        "idle": clock.hours_if_idle(visit.session, visit.participant),
        "hours": state.hours(state.row, utc_now()) if state.row else 0.0,
    }


@router.post("/clock")
def change_clock(request: Request, form: SubmittedForm) -> Response:
    """Start (with a row), pause, resume or stop the clock; a second click changes nothing."""
    change = form.first("change")
    with open_visit(request) as visit:
        if change == "start":
            clock.start(visit.session, visit.participant, form.first("row"))
        elif change in CLOCK_CHANGES:
            CLOCK_CHANGES[change](visit.session, visit.participant)
        else:
            raise StudyError("no_page")
    return redirect("/")


@router.post("/done")
def finish_stage(request: Request, form: SubmittedForm) -> Response:
    """Complete a stage of work."""
    with open_visit(request) as visit:
        stage = stages.finish_work(visit.session, visit.participant, form.first("stage"))
        following = stages.current(visit.session, visit.participant)
        title = localize(following.title) if following else "–"
        flash(request, translate("stage_done", stage=localize(stage.title), following=title))
    return redirect("/")


@router.get("/time")
def show_timesheet(request: Request) -> Response:
    """Show the time sheet, the clock's events, and the form for corrections."""
    # Before the session: the tracking server may take seconds to answer.
    runs = participant_runs.load_runs(consenting_id(request))
    with open_visit(request) as visit:
        lines = timesheet.build_timesheet(visit.session, visit.participant, runs)
        events = clock.list_events(visit.session, visit.participant)
        return render_page(request, "time.html", lines=lines, log=events, other=timesheet.OTHER_ROW)


@router.post("/time")
def correct_hours(request: Request, form: SubmittedForm) -> Response:
    """Correct the hours of a row."""
    with open_visit(request) as visit:
        row, hours = form.first("row"), parse_hours(form.first("hours"))
        corrected = clock.add_correction(visit.session, visit.participant, row, hours, form.first("reason"))
    flash(request, translate("corrected", row=row, hours=f"{corrected:.2f}"))
    return redirect("/time")


def parse_hours(text: str) -> float:
    """Parse a number with a decimal point or comma; NaN, which `add_correction` rejects, if it is none."""
    try:
        return float(text.strip().replace(",", "."))
    except ValueError:
        return float("nan")


@router.get("/notes")
def show_notes(request: Request) -> Response:
    """Show journal and preferences, with forms to add to them."""
    with open_visit(request) as visit:
        preferences = notes.current_preferences(visit.session, visit.participant)
        values: dict[str, Any] = {
            "journal": list(reversed(notes.list_notes(visit.session, visit.participant))),
            "preferred": [(p, notes.technique_title(visit.session, p)) for p in preferences],
            "techniques": visit.study.techniques,
        }
        return render_page(request, "notes.html", **values)


@router.post("/notes")
def add_note(request: Request, form: SubmittedForm) -> Response:
    """Add a note to the journal."""
    with open_visit(request) as visit:
        notes.add_note(visit.session, visit.participant, form.first("text"), form.first("run"))
    flash(request, translate("note_kept"))
    return redirect("/notes")


@router.post("/preferences")
def add_preference(request: Request, form: SubmittedForm) -> Response:
    """Add a preference for a situation."""
    with open_visit(request) as visit:
        values = (form.first("situation"), form.first("technique"), form.first("why"))
        notes.add_preference(visit.session, visit.participant, *values)
    flash(request, translate("preference_kept"))
    return redirect("/notes")


@router.get("/runs")
def show_runs(request: Request) -> Response:
    """Show the participant's runs without child runs, newest first."""
    runs = [run for run in participant_runs.load_runs(consenting_id(request)) if not run.is_child]
    return render_page(request, "runs.html", runs=[(run, headline_metrics(run)) for run in reversed(runs)])


@router.get("/runs/{run_id}")
def show_run(request: Request, run_id: str) -> Response:
    """Show one of the participant's own runs."""
    runs = {run.id: run for run in participant_runs.load_runs(consenting_id(request))}
    if run_id not in runs:
        raise StudyError("no_run")
    run = runs[run_id]
    metric = headline_metrics(run)["metric"]
    rows = report.comparison_rows({"metrics": run.metrics, "metric": metric}) if run.metrics else []
    return render_page(request, "run.html", run=run, rows=rows, link=mlflow_url(run))


def headline_metrics(run: ParticipantRun) -> dict[str, Any]:
    """Return the metrics for a list of runs: the quality metric's name, its values before and after, the ratios."""
    metric = next((name.removesuffix("_kept") for name in run.metrics if name.endswith("_kept")), "")
    return {
        "metric": metric,
        "before": run.metrics.get(f"{metric}_before"),
        "after": run.metrics.get(metric),
        "compression_ratio": run.metrics.get("compression_ratio"),
        "speedup": run.metrics.get("speedup"),
    }


def mlflow_url(run: ParticipantRun) -> str:
    """Return the run's page in the MLflow UI: at COMPRESSION_MLFLOW_UI, or the tracking server; empty without one."""
    base = os.environ.get("COMPRESSION_MLFLOW_UI") or server.redact_uri(server.tracking_uri())
    if not base.startswith(("http://", "https://")):
        return ""
    return f"{base.rstrip('/')}/#/experiments/{run.experiment}/runs/{run.id}"
