"""The bundle that a participant hands in: one zip with everything they did. `bundle_check` verifies it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import zipfile
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import compression
from compression import tracking
from compression.errors import UserError, first_line
from compression.files import file_sha256, to_csv
from compression.runs import export
from compression.study import (
    clock,
    database,
    notes,
    participant_runs,
    participants,
    pdf_report,
    questionnaires,
    reading,
    stages,
    timesheet,
)
from compression.study.tables import utc_now
from compression.study.texts import StudyError, localize
from compression.tracking.journal import write_error
from compression.tracking.run import TIME_TAG

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.study.participant_runs import ParticipantRun
    from compression.study.tables import ParticipantRecord

FORMAT = 1
OPEN_GATE = reading.OpenGate()
MANIFEST = "manifest.json"
REPORT_FILES = ("comparison.json", "report.html", "layers.csv")  # of every run; models only of the chosen ones
# Not deflated: models and images hardly shrink, and `bundle_check` refuses archives that expand too much.
UNCOMPRESSED_SUFFIXES = (".pth", ".onnx", ".png", ".pdf")
CLOCK_COLUMNS = ("number", "at", "kind", "row", "hours", "reason")
PREFERENCE_COLUMNS = ("at", "situation", "technique", "why")
RUN_COLUMNS = ("run", "name", "method", "status", "start", "end", "hours", "stage", "metrics")
SOURCE_PATTERNS = ("*.py", "*.yaml", "*.html", "*.css", "*.js", "*.mako")


def make_bundle(participant_id: str, output: Path, run_ids: Sequence[str] = (), gate: reading.Gate = OPEN_GATE) -> Path:
    """Write a participant's bundle, complete the hand-in stage, and return `output`.

    `run_ids` are the runs whose models are included, by default the newest finished one; `gate` is asked where the
    models before come from. Raises StudyError if the hand-in is not open yet, or a run is not the participant's, not
    finished, or lacks files; UserError if MLflow does not answer or the folder of `output` is not writable.
    """
    with database.open_session() as session:
        hand_in = database.load_study(session).stages[-1]
        stages.require_open(session, participants.find_consenting(session, participant_id), hand_in)
    # Outside of a session: downloads may take minutes, and SQLite lets one writer in at a time.
    runs = participant_runs.load_runs(participant_id)
    finished = participant_runs.finished_compressions(runs)
    chosen = choose_runs(finished, run_ids)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent) as scratch:
            folder = Path(scratch)
            write_records(participant_id, runs, folder)
            write_code(folder / "code")
            for run in finished:
                write_run(run, folder / "runs" / run.id, run in chosen, gate)
            write_archive(participant_id, folder, output)
    except OSError as error:
        raise write_error(output.parent, error) from error
    with database.open_session() as session:
        stages.complete(session, participants.find(session, participant_id), database.load_study(session).stages[-1])
    return output


def choose_runs(finished: list[ParticipantRun], run_ids: Sequence[str]) -> list[ParticipantRun]:
    """Return the runs whose models are included: `run_ids`, or the newest one. Raises StudyError if one is unknown."""
    if not finished:
        raise StudyError("no_runs")
    by_id = {run.id: run for run in finished}
    if unknown := [run_id for run_id in run_ids if run_id not in by_id]:
        raise StudyError("not_your_run", run=unknown[0], known=", ".join(by_id))
    return [by_id[run_id] for run_id in run_ids] or finished[-1:]  # they come oldest first


def write_records(participant_id: str, runs: Sequence[ParticipantRun], folder: Path) -> None:
    """Write what the database has of a participant: time sheet, clock, answers, journal, preferences; and all runs."""
    with database.open_session() as session:
        participant, study = participants.find(session, participant_id), database.load_study(session)
        assignment = study.assignments[participant.assignment].model_dump() | {"name": participant.assignment}
        facts = {
            "participant": participant.id,
            "pseudonym": participant.pseudonym,
            "background": participant.background,
            "assignment": assignment,
            "study": localize(study.title),
            "consented": str(participant.consented),
        }
        events = [_to_record(event) for event in clock.list_events(session, participant)]
        preferences = [_to_record(preference) for preference in notes.current_preferences(session, participant)]
        answers = questionnaires.answer_records(session, [participant])
        lines = timesheet.build_timesheet(session, participant, runs)
        contents = {
            "participant.json": json.dumps(facts, indent=1, ensure_ascii=False),
            "timesheet.csv": to_csv(timesheet.to_records(lines)),
            "clock.csv": to_csv(events, CLOCK_COLUMNS),
            "questionnaires.csv": to_csv(answers, questionnaires.COLUMNS),
            "journal.md": notes.format_journal(notes.list_notes(session, participant)),
            "preferences.csv": to_csv(preferences, PREFERENCE_COLUMNS),
            "runs.csv": to_csv(map(run_record, runs), RUN_COLUMNS),
        }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")


def _to_record(row: ParticipantRecord) -> dict[str, Any]:
    """Return the columns of a database row, without its own id and the participant's."""
    return {c.name: getattr(row, c.name) for c in row.__table__.columns if c.name not in ("id", "participant")}


def run_record(run: ParticipantRun) -> dict[str, Any]:
    """Return a run as a row of runs.csv."""
    facts = (run.id, run.name, run.method, run.status, run.start, run.end)
    tags = (run.tags.get(TIME_TAG), run.tags.get(participant_runs.STAGE_TAG))
    return dict(zip(RUN_COLUMNS, (*facts, *tags, json.dumps(run.metrics)), strict=True))


def write_run(run: ParticipantRun, folder: Path, with_models: bool, gate: reading.Gate) -> None:
    """Write a run's report as HTML and PDF, its layers and recipe; `with_models`, also its models before and after.

    Raises StudyError if the run lacks one of these files, or one of them is not what a run of the lab leaves.
    """
    folder.mkdir(parents=True)
    baseline = run.tags.get("baseline", "")
    try:
        for name in (*REPORT_FILES, *(["model.onnx"] if with_models else [])):
            tracking.download(f"runs:/{run.id}/{name}", folder)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            figures = tracking.download(f"runs:/{run.id}/figures", Path(scratch))
            pdf_report.write_pdf(folder, figures, folder / "report.pdf")
        if with_models:
            export.write(f"runs:/{run.id}/model", "pth", folder / "after.pth")
            # A tag may be changed by whoever owns the run.
            export.write(gate("baseline", baseline), "pth", folder / "before.pth")
        content = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
        recipe = {name: content.get(name, "") for name in ("steps", "command", "project_command")}
    except UserError as error:
        raise StudyError("run_incomplete", run=run.id, reason=error) from error
    except Exception as error:  # the files are the run's owner's: no library says all that it may raise for them
        if isinstance(error, OSError) and error.errno is not None:  # our own disk; Pillow's have no number
            raise
        raise StudyError("run_incomplete", run=run.id, reason=f"{first_line(error)}.") from error
    (folder / "recipe.json").write_text(json.dumps(recipe | {"baseline": baseline}, indent=1), encoding="utf-8")


def write_code(folder: Path) -> None:
    """Write the state of the code: the sources, the versions of all packages, and the commit with later changes."""
    source = Path(compression.__file__).parent
    shutil.copytree(source, folder / "compression", ignore=_ignored_names)
    packages = sorted(f"{package.name}=={package.version}" for package in metadata.distributions())
    (folder / "packages.txt").write_text("\n".join(packages) + "\n", encoding="utf-8")
    commands = {"commit.txt": ["rev-parse", "HEAD"], "changes.patch": ["diff", "HEAD", "--", "."]}
    with suppress(OSError, subprocess.CalledProcessError):  # no git, or no checkout: the sources are enough
        for name, arguments in commands.items():
            done = subprocess.run(["git", "-C", str(source), *arguments], check=True, capture_output=True)
            (folder / name).write_bytes(done.stdout)


def _ignored_names(folder: str, names: list[str]) -> list[str]:
    """Return what copytree leaves out: all but folders and source files."""
    # copytree asks for what to leave out, so the rule is turned round: sources go in, no data, keys or logs.
    kept = [name for name in names if Path(folder, name).is_dir() or any(Path(name).match(p) for p in SOURCE_PATTERNS)]
    return [name for name in names if name not in kept or name == "__pycache__"]


def write_archive(participant_id: str, folder: Path, output: Path) -> None:
    """Zip all files of `folder` with a manifest of their sizes and checksums; `output` is replaced at the end.

    Several at once may write the same `output`: each has a file of its own until then, and the last one stays.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): path for path in paths}
    listed = {name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for name, path in files.items()}
    manifest = {
        "format": FORMAT,
        "participant": participant_id,
        "made": utc_now().isoformat(timespec="seconds"),
        "files": listed,
    }
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f"{output.name}.") as scratch:
        partial = Path(scratch) / output.name
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(MANIFEST, json.dumps(manifest, indent=1))
            for name, path in files.items():
                compression_type = zipfile.ZIP_STORED if name.endswith(UNCOMPRESSED_SUFFIXES) else zipfile.ZIP_DEFLATED
                archive.write(path, name, compression_type)
        partial.replace(output)
