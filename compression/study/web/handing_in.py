"""The hand-in: the bundle is made here and downloaded to be looked into."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import FileResponse, Response

from compression.study import bundle, launches, runs, stages
from compression.study.texts import Refused, say
from compression.study.web.forms import Sent
from compression.study.web.pages import named, page, tell, to, visit

router = APIRouter(prefix="/hand-in")


@router.get("")
def show(request: Request) -> Response:
    with visit(request) as found:
        stages.require_open(found.opened, found.person, found.study.stages[-1])
        id = found.person.id
    finished = runs.finished(runs.of_person(id))
    made = launches.folder_of(id) / "bundle.zip"
    return page(request, "hand_in.html", runs=finished, made=made.stat() if made.exists() else None)


@router.post("")
def make(request: Request, form: Sent) -> Response:
    id = named(request)
    folder = launches.folder_of(id)
    folder.mkdir(parents=True, exist_ok=True)
    made = bundle.make(id, folder / "bundle.zip", form.get("run", []))
    tell(request, say("bundled", file=f"bundle-{id}.zip", size=f"{made.stat().st_size / 1e6:.1f}"))
    return to("/hand-in")


@router.get("/bundle.zip")
def download(request: Request) -> Response:
    id = named(request)
    made = launches.folder_of(id) / "bundle.zip"
    if not made.exists():
        raise Refused("no_page")
    return FileResponse(made, media_type="application/zip", filename=f"bundle-{id}.zip")
