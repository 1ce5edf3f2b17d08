"""Starting a run from a form made of the method's fields, and its progress."""

from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response

from compression import methods, params
from compression.errors import UserError
from compression.methods.base import Method
from compression.params import Field
from compression.runs import command
from compression.runs.settings import Settings
from compression.study import launches, reading
from compression.study.reading import Gate
from compression.study.texts import StudyError, translate
from compression.study.web.forms import Form, SubmittedForm, read_form
from compression.study.web.pages import Visit, consenting_id, get_access, open_visit, redirect, render_page

router = APIRouter()
# The settings that participants choose; the others (device, output, …) are up to the server.
RUN_SETTINGS = ("task", "model", "baseline", "limit", "seed", "threads", "run_name")
RECIPE = "recipe"  # in place of a method's name: the form for several methods, written as one text
MAX_VALUE, MAX_RECIPE, MAX_STEPS = 500, 4000, 20  # characters of a field and of a recipe; steps of a recipe
PATH_BEGINNINGS = ("@", "/", ".", "~", "\\")  # `@FILE` is a recipe in a file, and no method's name begins so


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
    limits = {"max_value": MAX_VALUE, "max_recipe": MAX_RECIPE}
    return render_page(visit.request, "launch.html", status, **values, **limits, recipe=RECIPE)


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
            gate = get_access(request).gate(visit.study, visit.participant)
            arguments = [] if problems else command_arguments(method, form, values, settings, gate)
        except UserError as error:
            problems[""] = str(error)  # not of one field
        if problems:
            return _render_form(visit, method, form, problems, 422)
    launch = launches.start(participant_id, arguments, **gate.environment)
    return redirect(f"/launches/{launch.id}")


def parse_fields(fields: list[Field], form: Form, problems: dict[str, str]) -> dict[str, Any]:
    """Return the values of the fields that are not left empty; adds what is wrong with the others to `problems`."""
    values = {}
    for field in fields:
        if text := form.first(field.name).strip():
            try:
                if len(text) > MAX_VALUE or not text.isprintable():
                    raise StudyError("bad_value", name=field.name, most=MAX_VALUE)
                values[field.name] = field.parse(text)
            except UserError as error:
                problems[field.name] = str(error)
    return values


def command_arguments(
    method: str, form: Form, values: dict[str, Any], settings_values: dict[str, Any], gate: Gate
) -> list[str]:
    """Return the arguments of `compression` for the run.

    Raises UserError if the values do not fit together, or name what `gate` does not let through.
    """
    settings = reading.check_addresses(Settings(**settings_values), gate)
    steps = parse_recipe(form.first(RECIPE), gate) if method == RECIPE else [methods.method(method)(**values)]
    steps = [reading.check_addresses(step, gate) for step in steps]
    is_training = method != RECIPE and steps[0].family == "train"
    return command.words(settings, "train" if is_training else "compress", steps)


def parse_recipe(text: str, gate: Gate) -> list[Method]:
    """Return the steps of a recipe. Raises UserError for one that is wrong, too long, or in a file not to be read."""
    text = text.strip()
    if len(text) > MAX_RECIPE or text.count("+") >= MAX_STEPS:
        raise StudyError("recipe_too_long", steps=MAX_STEPS, most=MAX_RECIPE)
    if not text.isprintable():
        raise StudyError("bad_value", name=RECIPE, most=MAX_RECIPE)
    if text.startswith(PATH_BEGINNINGS):
        gate(RECIPE, text)
    steps = list(methods.parse(text))
    methods.check_order(steps)
    return steps


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
