"""Starting a run: a form made from the fields of the method, and its progress while it runs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response

from compression import methods, params
from compression.errors import UserError
from compression.params import Field
from compression.runs import command
from compression.runs.settings import Settings
from compression.study import launches
from compression.study.texts import Refused, say
from compression.study.web.forms import Form, Sent
from compression.study.web.pages import Visit, access, named, page, to, visit

router = APIRouter()
# Of the settings; the rest is the server's own.
OFFERED = ("task", "model", "baseline", "limit", "seed", "threads", "run_name")
RECIPE = "recipe"


@router.get("/launch")
def choose(request: Request) -> Response:
    """The methods, by family."""
    named(request)
    families = {name: methods.of_family(name) for name in methods.FAMILIES}
    return page(request, "methods.html", families=families, about=methods.FAMILIES)


@router.get("/launch/{method}")
def show(request: Request, method: str) -> Response:
    with visit(request) as found:
        task = found.study.assignments[found.person.assignment]
        return form_page(found, method, Form(task=[task.task], model=[task.model]), {}, 200)


def form_page(found: Visit, method: str, given: Form, problems: dict[str, str], status: int) -> Response:
    """The form with what was given so far."""
    about = "" if method == RECIPE else (methods.method(method).__doc__ or "").strip().partition("\n\n")[0]
    own = fields_of(method)
    groups = {
        "method": [field for field in own if not field.group],
        "training": [field for field in own if field.group],
        "settings": offered(),
    }
    values = {"method": method, "about": about, "groups": groups, "given": given, "problems": problems}
    return page(found.request, "launch.html", status, **values, recipe=RECIPE)


def fields_of(method: str) -> list[Field]:
    """The fields of a method; a recipe has none, but a text of its own."""
    return [] if method == RECIPE else list(params.fields(methods.method(method)).values())


def offered() -> list[Field]:
    known = params.fields(Settings)
    return [known[name] for name in OFFERED]


@router.post("/launch/{method}")
def start(request: Request, method: str, form: Sent) -> Response:
    """Start the run; what cannot be taken comes back with what is wrong beside each field."""
    with visit(request) as found:
        problems: dict[str, str] = {}
        own = take(fields_of(method), form, problems)
        common = take(offered(), form, problems)
        id, experiment = found.person.id, found.study.experiment.format(participant=found.person.id)
        try:
            if not access(request).local:
                require_no_files(form)
            words = [] if problems else line(method, form, own, common | {"participant": id, "experiment": experiment})
        except UserError as error:
            problems[""] = str(error)
        if problems:
            return form_page(found, method, form, problems, 422)
    return to(f"/launches/{launches.start(id, words).id}")


def take(fields: list[Field], form: Form, problems: dict[str, str]) -> dict[str, Any]:
    """The values given for `fields`; what is wrong with any joins `problems`."""
    taken = {}
    for field in fields:
        if not (text := form.one(field.name).strip()):
            continue  # left empty: its default
        try:
            taken[field.name] = field.parse(text)
        except UserError as error:
            problems[field.name] = str(error)
    return taken


def require_no_files(form: Form) -> None:
    """Refuse what would read the server's own files in the participant's name."""
    for name, values in form.items():
        if any(value.strip().startswith(("/", ".", "~", "@", "\\")) or ".." in value for value in values):
            raise Refused("no_server_files", name=name)


def line(method: str, form: Form, own: dict[str, Any], common: dict[str, Any]) -> list[str]:
    """The words after `compression`, once the method and the settings have accepted their values."""
    settings = Settings(**common)
    if method == RECIPE:
        steps = list(methods.parse(form.one(RECIPE)))
        methods.check_order(steps)
        return command.words(settings, "compress", steps)
    step = methods.method(method)(**own)
    return command.words(settings, "train" if step.family == "train" else "compress", [step])


@router.get("/launches")
def history(request: Request) -> Response:
    return page(request, "launches.html", launched=launches.of_person(named(request)))


@router.get("/launches/{id}")
def watch(request: Request, id: str) -> Response:
    return page(request, "progress.html", launch=launches.find(named(request), id))


@router.get("/launches/{id}/progress")
def progress(request: Request, id: str) -> Response:
    """For the page's script: the state, in words too, and the end of the log."""
    launch = launches.find(named(request), id)
    return JSONResponse({"state": launch.state, "said": say(f"state_{launch.state}"), "log": launch.log})


@router.post("/launches/{id}/stop")
def stop(request: Request, id: str, form: Sent) -> Response:
    launches.find(named(request), id).stop()
    return to(f"/launches/{id}")
