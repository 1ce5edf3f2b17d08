"""Whether a bundle is whole. Nothing in it is run, and nothing is unpacked beyond what its size allows."""

from __future__ import annotations

import hashlib
import json
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from compression.errors import first_line
from compression.study.bundle import FORMAT, MANIFEST
from compression.study.texts import Refused

REQUIRED = (
    "participant.json",
    "timesheet.csv",
    "clock.csv",
    "questionnaires.csv",
    "journal.md",
    "preferences.csv",
    "runs.csv",
    "code/packages.txt",
)
OF_A_RUN = ("comparison.json", "layers.csv", "recipe.json", "report.html", "report.pdf")
OF_A_MODEL = ("before.pth", "after.pth", "model.onnx")
MAX_FILES, MAX_MANIFEST, CHUNK = 10_000, 16 << 20, 1 << 20
MAX_GROWTH, FREE_BYTES = 20, 64 << 20  # a bundle unpacks to at most so many times its size, and a little
SCRIPT = re.compile(rb"<script|javascript:|<[^>]*\son\w+\s*=|<iframe|<object|<embed", re.IGNORECASE)


class Wrong(Exception):
    """What is wrong with one file of a bundle, as the end of a sentence."""


@dataclass(frozen=True)
class Checked:
    participant: str
    files: int
    problems: list[str]  # a sentence each; none if the bundle is whole


def check(path: Path) -> Checked:
    """Verify the bundle at `path`; Refused where it is none that could be looked into."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = require_harmless(archive, path.stat().st_size)
            manifest = read_manifest(archive, members)
            problems = list(differences(manifest["files"], members))
            with tempfile.TemporaryDirectory() as scratch:
                for name in sorted(manifest["files"].keys() & members.keys()):
                    try:
                        verify(archive, members[name], manifest["files"][name], Path(scratch) / "file")
                    except Wrong as error:
                        problems.append(f"{name} {error}.")
    except FileNotFoundError as error:
        raise Refused("no_file", file=path, reason=error.strerror) from error
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        raise Refused("no_bundle", file=path, reason=first_line(error)) from error
    return Checked(str(manifest["participant"]), len(members), problems)


def require_harmless(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    """The members by name, once their names and sizes are such that a person could unpack them without harm."""
    members = archive.infolist()
    if len(members) > MAX_FILES:
        raise Refused("bundle_bomb", reason=f"{len(members)} files")
    if (total := sum(member.file_size for member in members)) > MAX_GROWTH * size + FREE_BYTES:
        raise Refused("bundle_bomb", reason=f"{size} bytes that unpack to {total}")
    for member in members:
        if not plain(member):
            raise Refused("bundle_path", name=member.filename[:100])
    if len({member.filename for member in members}) < len(members):
        raise Refused("bundle_path", name="the same name twice")
    return {member.filename: member for member in members}


def plain(member: zipfile.ZipInfo) -> bool:
    """Whether it is a file below the bundle: no absolute path, no way up, no link, not locked."""
    path, kind = PurePosixPath(member.filename), stat.S_IFMT(member.external_attr >> 16)
    odd = "\\" in member.filename or "\0" in member.filename or ":" in member.filename or len(member.filename) > 300
    regular = kind in (0, stat.S_IFREG) and not member.is_dir() and not member.flag_bits & 1
    return regular and not odd and not path.is_absolute() and str(path) == member.filename and ".." not in path.parts


def read_manifest(archive: zipfile.ZipFile, members: dict[str, zipfile.ZipInfo]) -> dict[str, Any]:
    """The manifest; Refused where there is none of this format."""
    if MANIFEST not in members or members[MANIFEST].file_size > MAX_MANIFEST:
        raise Refused("no_manifest")
    try:
        manifest = json.loads(archive.read(MANIFEST))
        if manifest["format"] != FORMAT or not manifest["participant"]:
            raise Refused("no_manifest")
        for facts in manifest["files"].values():
            facts["sha256"], facts["bytes"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, zlib.error) as error:
        raise Refused("no_manifest") from error
    return manifest


def differences(listed: dict[str, Any], members: dict[str, zipfile.ZipInfo]) -> Iterator[str]:
    """What is missing, and what is there that nobody listed."""
    yield from (f"{name} is listed and missing." for name in sorted(listed.keys() - members.keys()))
    yield from (f"{name} is in no list." for name in sorted(members.keys() - listed.keys() - {MANIFEST}))
    yield from (f"{name} is missing." for name in REQUIRED if name not in listed)
    folders = {name.rpartition("/")[0] for name in listed if name.startswith("runs/")}
    for folder in sorted(folders):
        yield from (f"{folder}/{part} is missing." for part in OF_A_RUN if f"{folder}/{part}" not in listed)
    if not any(all(f"{folder}/{part}" in listed for part in OF_A_MODEL) for folder in folders):
        yield f"No run has its models ({', '.join(OF_A_MODEL)})."


def verify(archive: zipfile.ZipFile, member: zipfile.ZipInfo, facts: dict[str, Any], scratch: Path) -> None:
    """Raise Wrong unless the member has the bytes that were listed, and they are what its name says."""
    seen = hashlib.sha256()
    try:
        with archive.open(member) as packed, scratch.open("wb") as unpacked:
            while part := packed.read(CHUNK):
                seen.update(part)
                unpacked.write(part)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise Wrong(f"cannot be read ({first_line(error)})") from error
    if seen.hexdigest() != facts["sha256"] or scratch.stat().st_size != facts["bytes"]:
        raise Wrong("is not what was handed in: its checksum differs")
    for ending, verifier in VERIFIERS.items():
        if member.filename.endswith(ending) and not member.filename.startswith("code/"):
            verifier(scratch)


def weights(path: Path) -> None:
    """A state dict that torch reads without running anything; its tensors are not even loaded."""
    import pickle

    import torch

    if not zipfile.is_zipfile(path):
        raise Wrong("holds no weights")
    with zipfile.ZipFile(path) as inner:  # torch packs nothing: a small file that unpacks to much is none of its own
        if any(member.compress_type != zipfile.ZIP_STORED for member in inner.infolist()):
            raise Wrong("is not as torch writes it")
    try:
        state = torch.load(path, map_location="meta", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, ValueError, KeyError, EOFError, AttributeError, TypeError) as error:
        raise Wrong(f"cannot be loaded with weights_only=True ({first_line(error)})") from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise Wrong("is no state dict of tensors")


def graph(path: Path) -> None:
    """An ONNX graph, whole in one file; read, not run."""
    import onnx
    from google.protobuf.message import DecodeError
    from onnx.external_data_helper import uses_external_data

    try:
        model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise Wrong("is no ONNX file") from error
    if not model.graph.node or any(uses_external_data(tensor) for tensor in model.graph.initializer):
        raise Wrong("is no ONNX file that holds its own weights")


def structure(path: Path) -> None:
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Wrong("is no JSON") from error


def page(path: Path) -> None:
    """The lab's own reports hold no script; one that does was not written by it."""
    if SCRIPT.search(path.read_bytes()):
        raise Wrong("holds a script, and no report of the lab does")


VERIFIERS: dict[str, Callable[[Path], None]] = {
    ".pth": weights,
    ".onnx": graph,
    ".json": structure,
    "/report.html": page,
}
