"""Pages of the hand-in: the bundle is made on the server, and downloaded."""

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from compression.study import bundle, launches, participant_runs, stages
from compression.study.texts import StudyError, translate
from compression.study.web.forms import SubmittedForm
from compression.study.web.pages import consenting_id, flash, get_access, open_visit, redirect, render_page

router = APIRouter(prefix="/hand-in")


@router.get("")
def show_hand_in(request: Request) -> Response:
    """Show the finished runs to choose from, and the bundle if there is one."""
    with open_visit(request) as visit:
        stages.require_open(visit.session, visit.participant, visit.study.stages[-1])
        participant_id = visit.participant.id
    finished = participant_runs.finished_compressions(participant_runs.load_runs(participant_id))
    path = launches.launch_folder(participant_id) / "bundle.zip"
    return render_page(request, "hand_in.html", runs=finished, made=path.stat() if path.exists() else None)


@router.post("")
def make_bundle(request: Request, form: SubmittedForm) -> Response:
    """Make the bundle with the models of the chosen runs; one at a time, for it takes minutes and gigabytes."""
    with open_visit(request) as visit:
        participant_id, gate = visit.participant.id, get_access(request).gate(visit.study, visit.participant)
    try:
        with launches.locked(participant_id, "hand-in.lock", wait=False) as folder:
            path = bundle.make_bundle(participant_id, folder / "bundle.zip", form.get("run", []), gate)
            megabytes = f"{path.stat().st_size / 1e6:.1f}"
    except BlockingIOError as error:
        raise StudyError("hand_in_running") from error
    flash(request, translate("bundled", file=f"bundle-{participant_id}.zip", size=megabytes))
    return redirect("/hand-in")


@router.get("/bundle.zip")
def download_bundle(request: Request) -> Response:
    """Download the bundle that was made last."""
    participant_id = consenting_id(request)
    path = launches.launch_folder(participant_id) / "bundle.zip"
    if not path.exists():
        raise StudyError("no_page")
    return FileResponse(path, media_type="application/zip", filename=f"bundle-{participant_id}.zip")
