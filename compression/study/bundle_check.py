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
from compression.files import require_regular
from compression.study.bundle import FORMAT, MANIFEST, SOURCE_PATTERNS
from compression.study.bundle_files import (
    InvalidFileError,
    require_small_directory,
    verify_csv,
    verify_html,
    verify_json,
    verify_onnx,
    verify_pdf,
    verify_weights,
)
from compression.study.participants import is_id
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
MAX_FILES, MAX_MANIFEST_BYTES, CHUNK_BYTES = 10_000, 4 << 20, 1 << 20
# A bundle may unpack to this multiple of its size plus this many bytes; more is a zip bomb.
MAX_EXPANSION, EXTRA_BYTES = 20, 64 << 20
# Weights hardly shrink: a model that unpacks to more than this multiple of itself and an MB was packed to be a bomb.
MAX_MODEL_EXPANSION, MODEL_EXTRA_BYTES = 4, 1 << 20
SOURCE_SUFFIXES = "|".join(pattern.removeprefix("*.") for pattern in SOURCE_PATTERNS)
SOURCE_FILE_PATTERN = re.compile(
    rf"code/(packages\.txt|commit\.txt|changes\.patch|compression/[\w./-]+\.({SOURCE_SUFFIXES}))", re.ASCII
)
RUN_FILE_PATTERN = re.compile(r"runs/[\w-]+/([\w.-]+)", re.ASCII)


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
        require_regular(path)
        require_small_directory(path)
        with zipfile.ZipFile(path) as archive:
            members = safe_members(archive, path.stat().st_size)
            manifest = read_manifest(archive, members)
            problems = [*manifest_problems(manifest["files"], members), *content_problems(archive, manifest, members)]
    except FileNotFoundError as error:
        raise StudyError("no_file", file=path, reason=error.strerror) from error
    except InvalidFileError as error:
        raise StudyError("bundle_bomb", reason=str(error).removeprefix("holds ")) from error
    except StudyError:
        raise
    except Exception as error:  # zipfile does not say all that it may raise for bytes that an enemy chose
        raise StudyError("no_bundle", file=path, reason=first_line(error)) from error
    return CheckResult(str(manifest["participant"]), len(members), problems)


def safe_members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name; `size` is the archive's, in bytes.

    Raises StudyError if there are too many or too large ones, or names that are unsafe or occur twice.
    """
    members = archive.infolist()
    if len(members) > MAX_FILES:
        raise StudyError("bundle_bomb", reason=f"{len(members)} files")
    # The sizes that the archive declares; zipfile never reads a member beyond its own.
    if (total := sum(member.file_size for member in members)) > MAX_EXPANSION * size + EXTRA_BYTES:
        raise StudyError("bundle_bomb", reason=f"{size} bytes that unpack to {total}")
    for member in members:
        if not is_safe_member(member):
            raise StudyError("bundle_path", name=member.filename[:100])
    # Programs do not agree which of two members of one name they read, and some file systems know no capitals.
    if len({member.filename.casefold() for member in members}) < len(members):
        raise StudyError("bundle_path", name="the same name twice")
    return {member.filename: member for member in members}


def is_safe_member(member: zipfile.ZipInfo) -> bool:
    """Whether it is a regular file, packed as the lab does, with a plain relative path that stays inside the bundle."""
    name, path = member.filename, PurePosixPath(member.filename)
    file_type = stat.S_IFMT(member.external_attr >> 16)  # 0 if the archive was not made on Unix
    is_encrypted = bool(member.flag_bits & 1)
    # LZMA takes as much memory as the archive asks for.
    is_packed_well = member.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
    is_regular = file_type in (0, stat.S_IFREG) and not member.is_dir() and not is_encrypted and is_packed_well
    # Backslashes and colons are separators and drives on Windows.
    is_plain = len(name) <= 300 and name.isascii() and name.isprintable() and not set(name) & set("\\:")
    # `str(path) == name` refuses what a path drops: ./a, a//b, a/.
    return is_regular and is_plain and not path.is_absolute() and str(path) == name and ".." not in path.parts


def read_manifest(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """Return the manifest. Raises StudyError if there is none, or it is malformed or of another format."""
    if MANIFEST not in members or members[MANIFEST].file_size > MAX_MANIFEST_BYTES:
        raise StudyError("no_manifest")
    try:
        manifest: dict[str, Any] = json.loads(archive.read(MANIFEST))
        if manifest["format"] != FORMAT or not is_id(manifest["participant"]) or len(manifest["files"]) > MAX_FILES:
            raise StudyError("no_manifest")
        for facts in manifest["files"].values():
            facts["sha256"], facts["bytes"]  # KeyError or TypeError where there is none
    # RecursionError: JSON of thousands of brackets within one another
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise StudyError("no_manifest") from error
    return manifest


def manifest_problems(listed: dict[str, Any], members: dict[str, zipfile.ZipInfo]) -> Iterator[str]:
    """Yield a sentence for each file that is missing, not listed in the manifest, or none that a bundle has."""
    yield from (f"{name} is listed and missing." for name in sorted(listed.keys() - members.keys()))
    yield from (f"{name} is not in the manifest." for name in sorted(members.keys() - listed.keys() - {MANIFEST}))
    yield from (f"{name} is missing." for name in REQUIRED_FILES if name not in listed)
    yield from (f"{name} is no file of a bundle." for name in sorted(members) if not is_bundle_file(name))
    folders = {name.rpartition("/")[0] for name in listed if name.startswith("runs/")}
    for folder in sorted(folders):
        yield from (f"{folder}/{file} is missing." for file in RUN_FILES if f"{folder}/{file}" not in listed)
    if not any(all(f"{folder}/{file}" in listed for file in MODEL_FILES) for folder in folders):
        yield f"No run has its models ({', '.join(MODEL_FILES)})."


def is_bundle_file(name: str) -> bool:
    """Whether a bundle has a file of this name: nothing else is verified, and somebody might open it."""
    of_run = RUN_FILE_PATTERN.fullmatch(name)
    return (
        name in (MANIFEST, *REQUIRED_FILES)
        or bool(of_run and of_run[1] in (*RUN_FILES, *MODEL_FILES))
        or bool(SOURCE_FILE_PATTERN.fullmatch(name))
    )


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
    largest = MAX_MODEL_EXPANSION * member.compress_size + MODEL_EXTRA_BYTES
    if member.filename.endswith(MODEL_FILES) and member.file_size > largest:
        raise InvalidFileError("is not packed as the lab packs models")
    try:
        with archive.open(member) as source, scratch.open("wb") as target:
            while chunk := source.read(CHUNK_BYTES):
                checksum.update(chunk)
                target.write(chunk)
    except OSError:  # the disk that it is unpacked to
        raise
    except Exception as error:
        raise InvalidFileError(f"cannot be read ({first_line(error)})") from error
    if checksum.hexdigest() != facts["sha256"] or scratch.stat().st_size != facts["bytes"]:
        raise InvalidFileError("is not what was handed in: its checksum differs")
    # The sources under code/ hold the template of report.html; nothing there is opened.
    for suffix, verifier in VERIFIERS.items():
        if member.filename.endswith(suffix) and not member.filename.startswith("code/"):
            verifier(scratch)


VERIFIERS: dict[str, Callable[[Path], None]] = {
    ".pth": verify_weights,
    ".onnx": verify_onnx,
    ".json": verify_json,
    ".csv": verify_csv,
    ".pdf": verify_pdf,
    ".html": verify_html,
}
