"""The hand-in: one zip with everything a participant did. `compression.study.check` verifies it."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import compression
from compression import tracking
from compression.errors import UserError
from compression.files import replace_file
from compression.runs import export
from compression.study import clock, notes, pdf, people, questionnaires, runs, sheets, stages, store, timesheet
from compression.study.runs import PersonRun
from compression.study.tables import OfParticipant, now
from compression.study.texts import Refused, pick
from compression.tracking.journal import write_error
from compression.tracking.run import TIME_TAG

FORMAT = 1
MANIFEST = "manifest.json"
SMALL = ("comparison.json", "report.html", "layers.csv")  # of every run; what is large, of the chosen ones
STORED = (".pth", ".onnx", ".png", ".pdf")  # packed as they are, so that nothing in a bundle unpacks to much more
CLOCK_COLUMNS = ("number", "at", "kind", "row", "hours", "reason")
PREFERENCE_COLUMNS = ("at", "situation", "technique", "why")
RUN_COLUMNS = ("run", "name", "method", "status", "start", "end", "hours", "stage", "metrics")
SOURCES = ("*.py", "*.yaml", "*.html", "*.css", "*.js", "*.mako")


def make(id: str, output: Path, chosen: Sequence[str] = ()) -> Path:
    """Write the bundle of the participant `id` and complete the hand-in.

    `chosen` are the runs whose weights go in; the newest finished one if empty. Refused before its stage is open, and
    for a run that is not the participant's or did not come to its end.
    """
    with store.session() as opened:
        stages.require_open(opened, people.consenting(opened, id), store.study(opened).stages[-1])
    of_person = runs.of_person(id)
    complete = runs.finished(of_person)
    heavy = choose(complete, chosen)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            folder = Path(scratch)
            write_words(id, of_person, folder)
            write_code(folder / "code")
            for run in complete:
                write_run(run, folder / "runs" / run.id, whole=run in heavy)
            pack(id, folder, output)
    except OSError as error:
        raise write_error(output.parent, error) from error
    with store.session() as opened:
        stages.complete(opened, people.find(opened, id), store.study(opened).stages[-1])
    return output


def choose(finished: list[PersonRun], chosen: Sequence[str]) -> list[PersonRun]:
    """The runs whose weights are handed in."""
    if not finished:
        raise Refused("no_runs")
    known = {run.id: run for run in finished}
    if missing := [id for id in chosen if id not in known]:
        raise Refused("not_your_run", run=missing[0], known=", ".join(known))
    return [known[id] for id in chosen] or finished[-1:]


def write_words(id: str, of_person: Sequence[PersonRun], folder: Path) -> None:
    """What the participant said and recorded: time sheet, clock, questionnaires, journal, preferences, runs."""
    with store.session() as opened:
        person, study = people.find(opened, id), store.study(opened)
        about = {
            "participant": person.id,
            "pseudonym": person.pseudonym,
            "background": person.background,
            "assignment": study.assignments[person.assignment].model_dump() | {"name": person.assignment},
            "study": pick(study.title),
            "consented": str(person.consented),
        }
        lines = timesheet.sheet(opened, person, of_person)
        texts = {
            "participant.json": json.dumps(about, indent=1, ensure_ascii=False),
            "timesheet.csv": sheets.text(timesheet.rows(lines)),
            "clock.csv": sheets.text(map(_plain, clock.events(opened, person)), CLOCK_COLUMNS),
            "questionnaires.csv": sheets.text(questionnaires.rows(opened, [person]), questionnaires.COLUMNS),
            "journal.md": notes.markdown(notes.journal(opened, person)),
            "preferences.csv": sheets.text(map(_plain, notes.preferences(opened, person)), PREFERENCE_COLUMNS),
            "runs.csv": sheets.text(map(run_row, of_person), RUN_COLUMNS),
        }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def _plain(kept: OfParticipant) -> dict[str, Any]:
    """A row of the database as it is, without whose it is."""
    return {c.name: getattr(kept, c.name) for c in kept.__table__.columns if c.name not in ("id", "participant")}


def run_row(run: PersonRun) -> dict[str, Any]:
    """A run in runs.csv."""
    values = (
        run.id,
        run.name,
        run.method,
        run.status,
        run.start,
        run.end,
        run.tags.get(TIME_TAG),
        run.tags.get(runs.STAGE),
    )
    return dict(zip(RUN_COLUMNS, (*values, json.dumps(run.metrics)), strict=True))


def write_run(run: PersonRun, folder: Path, whole: bool) -> None:
    """What one run left: its report as HTML and PDF, its layers, its recipe; `whole`, its models too."""
    folder.mkdir(parents=True)
    try:
        for name in (*SMALL, *(["model.onnx"] if whole else [])):
            tracking.download(f"runs:/{run.id}/{name}", folder)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            figures = tracking.download(f"runs:/{run.id}/figures", Path(scratch))
            pdf.write(folder, figures, folder / "report.pdf")
        if whole:
            export.write(f"runs:/{run.id}/model", "pth", folder / "after.pth")
            export.write(run.tags["baseline"], "pth", folder / "before.pth")
    except UserError as error:
        raise Refused("run_incomplete", run=run.id, reason=error) from error
    content = json.loads((folder / "comparison.json").read_text())
    recipe = {name: content.get(name, "") for name in ("steps", "command", "project_command")}
    recipe["baseline"] = run.tags.get("baseline", "")
    (folder / "recipe.json").write_text(json.dumps(recipe, indent=1))


def write_code(folder: Path) -> None:
    """The state of the code: the sources as they are, the commit and what was changed since, the packages."""
    source = Path(compression.__file__).parent
    shutil.copytree(source, folder / "compression", ignore=_not_source)
    packages = sorted(f"{found.name}=={found.version}" for found in metadata.distributions())
    (folder / "packages.txt").write_text("\n".join(packages) + "\n")
    with suppress(OSError, subprocess.CalledProcessError):  # installed, and not a checkout: the sources say it all
        for name, words in {"commit.txt": ["rev-parse", "HEAD"], "changes.patch": ["diff", "HEAD", "--", "."]}.items():
            said = subprocess.run(["git", "-C", str(source), *words], check=True, capture_output=True)
            (folder / name).write_bytes(said.stdout)


def _not_source(folder: str, names: list[str]) -> list[str]:
    kept = [name for name in names if Path(folder, name).is_dir() or any(Path(name).match(s) for s in SOURCES)]
    return [name for name in names if name not in kept or name == "__pycache__"]


def pack(id: str, folder: Path, output: Path) -> None:
    """One zip of everything in `folder`, with the manifest; `output` is replaced once it is whole."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    listed = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": digest(path)} for path in files
    }
    about = {"format": FORMAT, "participant": id, "made": now().isoformat(timespec="seconds"), "files": listed}
    with replace_file(output) as half, zipfile.ZipFile(half, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(MANIFEST, json.dumps(about, indent=1))
        for name in listed:
            kind = zipfile.ZIP_STORED if name.endswith(STORED) else zipfile.ZIP_DEFLATED
            archive.write(folder / name, name, kind)


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
