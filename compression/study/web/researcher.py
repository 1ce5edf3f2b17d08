"""The researcher's pages: who takes part, and what was found."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import Response

from compression.reporting.report import data_uri
from compression.study import analysis, clock, people, pictures, sheets, stages, timesheet
from compression.study.tables import Participant
from compression.study.texts import LANGUAGES, Refused, pick, say
from compression.study.web.forms import Sent
from compression.study.web.pages import Visit, page, research, tell, to

router = APIRouter()


@router.get("/people")
def everybody(request: Request) -> Response:
    with research(request) as found:
        rows = [_row(found, person) for person in people.everybody(found.opened)]
        return page(request, "people.html", rows=rows, study=found.study, languages=LANGUAGES)


def _row(found: Visit, person: Participant) -> dict[str, str | float]:
    now, read = stages.current(found.opened, person), clock.read(found.opened, person)
    stage = pick(now.title) if now else say("all_done")
    lines = timesheet.sheet(found.opened, person, [])
    return {
        "id": person.id,
        "pseudonym": person.pseudonym,
        "background": pick(found.study.backgrounds[person.background]),
        "assignment": pick(found.study.assignments[person.assignment].title),
        "stage": stage if person.consented else say("no_consent"),
        "clock": f"{read.row}{'' if read.running else ' ‖'}" if read.row else "",
        "hours": sum(line.clock_hours for line in lines),
    }


@router.post("/people")
def invite(request: Request, form: Sent) -> Response:
    with research(request) as found:
        given = [form.one(name).strip() for name in ("id", "background", "language", "assignment", "login")]
        person = people.invite(found.opened, *given)
        task = found.study.assignments[person.assignment]
        tell(request, say("invited", id=person.id, assignment=pick(task.title), task=task.task, model=task.model))
    return to("/people")


@router.get("/analysis")
def show_analysis(request: Request) -> Response:
    with research(request) as found:
        tables = analysis.tables(found.opened)
    drawn = {name: data_uri(figure) for name, figure in pictures.draw(tables).items()}
    return page(request, "analysis.html", tables=tables, pictures=drawn)


@router.get("/analysis/{name}.csv")
def table(request: Request, name: str) -> Response:
    with research(request) as found:
        tables = analysis.tables(found.opened)
    if name not in tables:
        raise Refused("no_page")
    disposition = {"Content-Disposition": f'attachment; filename="{name}.csv"'}
    return Response(sheets.text(tables[name]), media_type="text/csv; charset=utf-8", headers=disposition)
