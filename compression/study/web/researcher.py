"""The researcher's pages: participants and analysis."""

from fastapi import APIRouter, Request
from fastapi.responses import Response

from compression.files import to_csv
from compression.reporting.report import data_uri
from compression.study import analysis, clock, figures, participants, stages, timesheet
from compression.study.tables import Participant
from compression.study.texts import LANGUAGES, StudyError, localize, translate
from compression.study.web.forms import SubmittedForm
from compression.study.web.pages import Visit, flash, open_researcher_visit, redirect, render_page

router = APIRouter()


@router.get("/people")
def show_participants(request: Request) -> Response:
    """Show all participants, and the form to invite one."""
    with open_researcher_visit(request) as visit:
        rows = [_participant_row(visit, participant) for participant in participants.list_participants(visit.session)]
        return render_page(request, "people.html", rows=rows, study=visit.study, languages=LANGUAGES)


def _participant_row(visit: Visit, participant: Participant) -> dict[str, str | float]:
    stage, state = stages.current(visit.session, participant), clock.load(visit.session, participant)
    stage_title = localize(stage.title) if stage else translate("all_done")
    lines = timesheet.build_timesheet(visit.session, participant, [])
    return {
        "id": participant.id,
        "pseudonym": participant.pseudonym,
        "background": localize(visit.study.backgrounds[participant.background]),
        "assignment": localize(visit.study.assignments[participant.assignment].title),
        "stage": stage_title if participant.consented else translate("no_consent"),
        "clock": f"{state.row}{'' if state.is_running else ' ‖'}" if state.row else "",
        "hours": sum(line.clock_hours for line in lines),
    }


@router.post("/people")
def invite(request: Request, form: SubmittedForm) -> Response:
    """Invite a participant."""
    with open_researcher_visit(request) as visit:
        values = [form.first(name).strip() for name in ("id", "background", "language", "assignment", "login")]
        participant = participants.invite(visit.session, *values)
        task = visit.study.assignments[participant.assignment]
        title = localize(task.title)
        flash(request, translate("invited", id=participant.id, assignment=title, task=task.task, model=task.model))
    return redirect("/people")


@router.get("/analysis")
def show_analysis(request: Request) -> Response:
    """Show the tables and figures of the analysis."""
    with open_researcher_visit(request) as visit:
        tables = analysis.build_tables(visit.session)
    pictures = {name: data_uri(figure) for name, figure in figures.draw_figures(tables).items()}
    return render_page(request, "analysis.html", tables=tables, pictures=pictures)


@router.get("/analysis/{name}.csv")
def download_table(request: Request, name: str) -> Response:
    """Download a table of the analysis as CSV."""
    with open_researcher_visit(request) as visit:
        tables = analysis.build_tables(visit.session)
    if name not in tables:
        raise StudyError("no_page")
    disposition = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(to_csv(tables[name]), media_type="text/csv; charset=utf-8", headers=disposition)
