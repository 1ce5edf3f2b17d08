"""Verification of a bundle that somebody else made.

Nothing in it is executed, and no file is unpacked before names and sizes of all files are known to be harmless.
"""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from compression.errors import first_line
from compression.study.bundle import FORMAT, MANIFEST
from compression.study.texts import StudyError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

REQUIRED_FILES = (
    "participant.json",
    "timesheet.csv",
    "clock.csv",
    "questionnaires.csv",
    "journal.md",
    "preferences.csv",
    "runs.csv",
    "code/packages.txt",
)
RUN_FILES = ("comparison.json", "layers.csv", "recipe.json", "report.html", "report.pdf")
MODEL_FILES = ("before.pth", "after.pth", "model.onnx")  # at least one run has them
MAX_FILES, MAX_MANIFEST_BYTES, CHUNK_BYTES = 10_000, 16 << 20, 1 << 20
# A bundle may unpack to this multiple of its size plus this many bytes; more is a zip bomb.
MAX_EXPANSION, EXTRA_BYTES = 20, 64 << 20
SCRIPT_PATTERN = re.compile(rb"<script|javascript:|<[^>]*\son\w+\s*=|<iframe|<object|<embed", re.IGNORECASE)


class InvalidFileError(Exception):
    """One file of a bundle is invalid; the message is the end of a sentence that begins with its name."""


@dataclass(frozen=True)
class CheckResult:
    """The result of a check: `problems` has a sentence for each; it is empty if the bundle is complete and valid."""

    participant: str
    files: int
    problems: list[str]


def check_bundle(path: Path) -> CheckResult:
    """Verify the bundle at `path`: its manifest, checksums, and the format of its files.

    Raises StudyError if it cannot be read, has no manifest, or could do harm when it is unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = safe_members(archive, path.stat().st_size)
            manifest = read_manifest(archive, members)
            problems = [*manifest_problems(manifest["files"], members), *content_problems(archive, manifest, members)]
    except FileNotFoundError as error:
        raise StudyError("no_file", file=path, reason=error.strerror) from error
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise StudyError("no_bundle", file=path, reason=first_line(error)) from error
    return CheckResult(str(manifest["participant"]), len(members), problems)


def safe_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name; `size` is the archive's, in bytes.

    Raises StudyError if there are too many or too large ones, or names that are unsafe or occur twice.
    """
    members = archive.infolist()
    if len(members) > MAX_FILES:
        raise StudyError("bundle_bomb", reason=f"{len(members)} files")
    if (total := sum(member.file_size for member in members)) > MAX_EXPANSION * size + EXTRA_BYTES:
        raise StudyError("bundle_bomb", reason=f"{size} bytes that unpack to {total}")
    for member in members:
        if not is_safe_member(member):
            raise StudyError("bundle_path", name=member.filename[:100])
    if len({member.filename for member in members}) < len(members):
        raise StudyError("bundle_path", name="the same name twice")
    return {member.filename: member for member in members}


def is_safe_member(member: zipfile.ZipInfo) -> bool:
    """Whether it is a regular, unencrypted file with a relative path that stays inside the bundle."""
    name, path = member.filename, PurePosixPath(member.filename)
    file_type = stat.S_IFMT(member.external_attr >> 16)  # 0 if the archive was not made on Unix
    is_encrypted = bool(member.flag_bits & 1)
    is_regular = file_type in (0, stat.S_IFREG) and not member.is_dir() and not is_encrypted
    is_plain = len(name) <= 300 and not any(character in name for character in "\\\0:")
    return is_regular and is_plain and not path.is_absolute() and str(path) == name and ".." not in path.parts


def read_manifest(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Return the manifest. Raises StudyError if there is none, or it is malformed or of another format."""
    if MANIFEST not in members or members[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise StudyError("no_manifest")
    try:
        manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
        if manifest["format"] != FORMAT or not manifest["participant"]:
            raise StudyError("no_manifest")
        for facts in manifest["files"].values():
            facts["sha256"], facts["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise StudyError("no_manifest") from error
    return manifest


def manifest_problems(listed: dict[str, Any], members: dict[str, zipfile.ZipInfo]) -> Iterator[str]:
    """Yield a sentence for each file that is missing, and for each that the manifest does not list."""
    yield from (f"{name} is listed and missing." for name in sorted(listed.keys() - members.keys()))
    yield from (f"{name} is not in the manifest." for name in sorted(members.keys() - listed.keys() - {MANIFEST}))
    yield from (f"{name} is missing." for name in REQUIRED_FILES if name not in listed)
    folders = {name.rpartition("/")[0] for name in listed if name.startswith("runs/")}
    for folder in sorted(folders):
        yield from (f"{folder}/{file} is missing." for file in RUN_FILES if f"{folder}/{file}" not in listed)
    if not any(all(f"{folder}/{file}" in listed for file in MODEL_FILES) for folder in folders):
        yield f"No run has its models ({', '.join(MODEL_FILES)})."


def content_problems(
    archive: zipfile.ZipFile, manifest: dict[str, Any], members: dict[str, zipfile.ZipInfo]
) -> Iterator[str]:
    """Yield a sentence for each listed file whose content is invalid."""
    with tempfile.TemporaryDirectory() as scratch:
        for name in sorted(manifest["files"].keys() & members.keys()):
            try:
                verify_member(archive, members[name], manifest["files"][name], Path(scratch) / "file")
            except InvalidFileError as error:
                yield f"{name} {error}."


def verify_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo, facts: dict[str, Any], scratch: Path) -> None:
    """Unpack a member to `scratch` and verify it.

    Raises InvalidFileError unless it has the size and checksum of `facts`, its entry of the manifest, and the format
    that its name promises.
    """
    checksum = hashlib.sha256()
    try:
        with archive.open(member) as source, scratch.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                checksum.update(chunk)
                target.write(chunk)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise InvalidFileError(f"cannot be read ({first_line(error)})") from error
    if checksum.hexdigest() != facts["sha256"] or scratch.stat().st_size != facts["bytes"]:
        raise InvalidFileError("is not what was handed in: its checksum differs")
    for suffix, verifier in VERIFIERS.items():
        if member.filename.endswith(suffix) and not member.filename.startswith("code/"):
            verifier(scratch)


def verify_weights(path: Path) -> None:
    """Raise InvalidFileError unless the file is a state dict that torch reads without executing code.

    Its tensors are loaded to the meta device, which takes no memory for them.
    """
    import pickle

    import torch

    if not zipfile.is_zipfile(path):
        raise InvalidFileError("holds no weights")
    with zipfile.ZipFile(path) as inner:  # torch.save does not compress, so a compressed member may be a zip bomb
        if any(member.compress_type != zipfile.ZIP_STORED for member in inner.infolist()):
            raise InvalidFileError("is not as torch writes it")
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise InvalidFileError(f"cannot be loaded with weights_only=True ({first_line(error)})") from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InvalidFileError("is no state dict of tensors")


def verify_onnx(path: Path) -> None:
    """Raise InvalidFileError unless the file is an ONNX graph with all of its weights; it is parsed, not run."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise InvalidFileError("is no ONNX file") from error
    if not model.graph.node or any(uses_external_data(tensor) for tensor in model.graph.initializer):
        raise InvalidFileError("is no ONNX file that holds its own weights")


def verify_json(path: Path) -> None:
    """Raise InvalidFileError unless the file is JSON."""
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidFileError("is no JSON") from error


def verify_html(path: Path) -> None:
    """Raise InvalidFileError if the file has a script: the lab's own reports have none."""
    if SCRIPT_PATTERN.search(path.read_bytes()):
        raise InvalidFileError("holds a script, and no report of the lab does")


VERIFIERS: dict[str, Callable[[Path], None]] = {
    ".pth": verify_weights,
    ".onnx": verify_onnx,
    ".json": verify_json,
    "/report.html": verify_html,
}
