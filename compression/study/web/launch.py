"""Starting a run from a form made of the method's fields, and its progress."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from compression import methods, params
from compression.errors import UserError
from compression.params import Field
from compression.runs import command
from compression.runs.settings import Settings
from compression.study import launches
from compression.study.texts import StudyError, translate
from compression.study.web.forms import Form, SubmittedForm, read_form
from compression.study.web.pages import Visit, consenting_id, get_access, open_visit, redirect, render_page
from compression.tasks import is_code

router = APIRouter()
# The settings that participants choose; the others (device, output, …) are up to the server.
RUN_SETTINGS = ("task", "model", "baseline", "limit", "seed", "threads", "run_name")
RECIPE = "recipe"  # in place of a method's name: the form for several methods, written as one text


@router.get("/launch")
def show_methods(request: Request) -> Response:
    """Show all methods, by family."""
    consenting_id(request)
    families = {name: methods.of_family(name) for name in methods.FAMILIES}
    return render_page(request, "methods.html", families=families, about=methods.FAMILIES)


@router.get("/launch/{method}")
def show_method(request: Request, method: str) -> Response:
    """Show the form of a method, with the participant's task and model filled in."""
    with open_visit(request) as visit:
        assignment = visit.study.assignments[visit.participant.assignment]
        return _render_form(visit, method, Form(task=[assignment.task], model=[assignment.model]), {}, 200)


def _render_form(visit: Visit, method: str, given: Form, problems: dict[str, str], status: int) -> Response:
    """Render the form with the values `given` and the problems by field."""
    doc = "" if method == RECIPE else methods.method(method).__doc__ or ""
    fields = method_fields(method)
    groups = {
        "method": [field for field in fields if not field.group],
        "training": [field for field in fields if field.group],
        "settings": run_setting_fields(),
    }
    about = doc.strip().partition("\n\n")[0]
    values = {"method": method, "about": about, "groups": groups, "given": given, "problems": problems}
    return render_page(visit.request, "launch.html", status, **values, recipe=RECIPE)


def method_fields(method: str) -> list[Field]:
    """Return the fields of a method; none for a recipe."""
    return [] if method == RECIPE else list(params.fields(methods.method(method)).values())


def run_setting_fields() -> list[Field]:
    """Return the fields of RUN_SETTINGS."""
    fields = params.fields(Settings)
    return [fields[name] for name in RUN_SETTINGS]


@router.post("/launch/{method}")
def start_run(request: Request, method: str, form: SubmittedForm) -> Response:
    """Start the run, or show the form again (status 422) with what is wrong."""
    with open_visit(request) as visit:
        problems: dict[str, str] = {}
        values = parse_fields(method_fields(method), form, problems)
        settings = parse_fields(run_setting_fields(), form, problems)
        participant_id = visit.participant.id
        settings["participant"] = participant_id
        settings["experiment"] = visit.study.experiment.format(participant=participant_id)
        try:
            if not get_access(request).is_local:
                reject_paths(form)
            arguments = [] if problems else command_arguments(method, form, values, settings)
        except UserError as error:
            problems[""] = str(error)  # not of one field
        if problems:
            return _render_form(visit, method, form, problems, 422)
    return redirect(f"/launches/{launches.start(participant_id, arguments).id}")


def parse_fields(fields: list[Field], form: Form, problems: dict[str, str]) -> dict[str, Any]:
    """Return the values of the fields that are not left empty; adds what is wrong with the others to `problems`."""
    values = {}
    for field in fields:
        if text := form.first(field.name).strip():
            try:
                values[field.name] = field.parse(text)
            except UserError as error:
                problems[field.name] = str(error)
    return values


def reject_paths(form: Form) -> None:
    """Raise StudyError for a value that could be a path, or code: a run would use the server's files for somebody."""
    for name, values in form.items():
        if any(value.strip().startswith(("/", ".", "~", "@", "\\")) or ".." in value for value in values):
            raise StudyError("no_server_files", name=name)
    if is_code(form.first("task")):  # a function of any module would run there
        raise StudyError("no_server_files", name="task")


def command_arguments(method: str, form: Form, values: dict[str, Any], settings_values: dict[str, Any]) -> list[str]:
    """Return the arguments of `compression` for the run. Raises UserError if the values do not fit together."""
    settings = Settings(**settings_values)
    if method == RECIPE:
        steps = list(methods.parse(form.first(RECIPE)))
        methods.check_order(steps)
        return command.words(settings, "compress", steps)
    step = methods.method(method)(**values)
    return command.words(settings, "train" if step.family == "train" else "compress", [step])


@router.get("/launches")
def show_launches(request: Request) -> Response:
    """Show everything the participant has started here, newest first."""
    return render_page(request, "launches.html", launched=launches.list_launches(consenting_id(request)))


@router.get("/launches/{launch_id}")
def show_launch(request: Request, launch_id: str) -> Response:
    """Show the command, state and log of a launch."""
    return render_page(request, "progress.html", launch=launches.find(consenting_id(request), launch_id))


@router.get("/launches/{launch_id}/progress")
def get_progress(request: Request, launch_id: str) -> Response:
    """Return state, translated state and log as JSON, for the page's script."""
    launch = launches.find(consenting_id(request), launch_id)
    return JSONResponse({"state": launch.state, "said": translate(f"state_{launch.state}"), "log": launch.log})


@router.post("/launches/{launch_id}/stop", dependencies=[Depends(read_form)])
def stop_run(request: Request, launch_id: str) -> Response:
    """Stop a launch."""
    launches.find(consenting_id(request), launch_id).stop()
    return redirect(f"/launches/{launch_id}")
