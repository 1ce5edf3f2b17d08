"""Verification of single files that somebody else made: each is what its name says, and holds nothing that runs.

Third-party parsers do not say what they raise for bytes that an enemy chose; here that is always an InvalidFileError.
"""

from __future__ import annotations

import csv
import json
import re
import warnings
import zipfile
from typing import TYPE_CHECKING, Any

from compression.errors import first_line
from compression.files import escape_formula

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_JSON_BYTES = 4 << 20  # `[[],[],…` takes 30 times as much memory; a comparison of 1,000 layers has 0.3 MB
MAX_HTML_BYTES, MAX_TAGS = 64 << 20, 500_000  # figures take bytes, layers tags: 1,000 of them 20,000
MAX_PICKLE_BYTES = 4 << 20  # of the structure of a state dict, without its tensors; BERT-large's has 0.1 MB
MAX_PARTS = 2_000_000  # messages within an ONNX file
MAX_DIRECTORY_BYTES = 4 << 20  # of a zip's names: zipfile makes 1 kB of each before anybody can count them

# What the pages of `reporting/pages` are made of, with their attributes; `class` may stand everywhere.
PLAIN_TAGS = (
    *(
        "head",
        "title",
        "style",
        "body",
        "main",
        "h1",
        "h2",
        "h3",
        "b",
        "em",
        "code",
        "span",
        "div",
        "ul",
        "ol",
        "li",
        "br",
    ),
    *("table", "thead", "tbody", "tr", "pre", "figure", "figcaption", "details", "summary"),
)
TAGS: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(PLAIN_TAGS, ()),
    "html": ("lang",),
    "meta": ("charset", "name", "content"),
    "p": ("role",),
    "td": ("colspan",),
    "th": ("colspan", "scope"),
    "img": ("src", "alt"),
}
# Attributes stand in double quotes and hold no < or >, so that there is but one way to read a page: whatever any
# browser takes for a tag has been looked at here. Every part of the pattern begins with a character of its own, so that
# it never goes back.
TAG_PATTERN = re.compile(r'/?([a-z][a-z0-9]*)((?: [a-z]+="[^"<>]*")*) ?/?>')
ATTRIBUTE_PATTERN = re.compile(r'([a-z]+)="([^"]*)"')
PIECE_PATTERN = re.compile(r"<([^<]*)")
DOCTYPE = "!doctype html>"
PICTURE_PATTERN = re.compile(r"data:image/png;base64,[A-Za-z0-9+/=]*")
LOADING_STYLE_PATTERN = re.compile(r"@import|url\s*\(|src\s*\(|image-set|expression|\\", re.IGNORECASE)
CONTROL_PATTERN = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")

# What a PDF may do, and streams of objects, which may hide it. Any letter of a name may be written as its number.
ACTIVE_PDF_NAMES = ["JavaScript", "Launch", "EmbeddedFile", "RichMedia", "SubmitForm", "ImportData", "XFA", "ObjStm"]
ACTIVE_PDF_PATTERN = re.compile(
    "|".join("/" + "".join(f"(?:{c}|#{ord(c):02x}|#{ord(c):02X})" for c in name) for name in ACTIVE_PDF_NAMES).encode()
)


class InvalidFileError(Exception):
    """One file of a bundle is invalid; the message is the end of a sentence that begins with its name."""


def require_small_directory(path: Path) -> None:
    """Raise InvalidFileError if the list of a zip's members is longer than any that the lab or torch writes.

    A zip of 46 MB may list a million, which zipfile reads into a gigabyte.
    """
    with path.open("rb") as file:
        try:
            end = zipfile._EndRecData(file)  # type: ignore[attr-defined]  # what zipfile itself goes by
        except Exception as error:
            raise InvalidFileError(f"is no zip ({first_line(error)})") from error
    if end and end[zipfile._ECD_SIZE] > MAX_DIRECTORY_BYTES:  # type: ignore[attr-defined]
        raise InvalidFileError(f"holds {end[zipfile._ECD_ENTRIES_TOTAL]} files")  # type: ignore[attr-defined]


def verify_weights(path: Path) -> None:
    """Raise InvalidFileError unless the file is a state dict that torch reads without executing code.

    Its tensors are loaded to the meta device, which takes no memory for them.
    """
    import torch

    # torch.load also reads the older format, a bare pickle, even if a zip comes after it.
    with path.open("rb") as file:
        if file.read(4) != b"PK\3\4":
            raise InvalidFileError("holds no weights")
    require_small_directory(path)
    try:
        with zipfile.ZipFile(path) as inner:
            members = inner.infolist()
        if any(m.file_size > MAX_PICKLE_BYTES for m in members if m.filename.endswith(".pkl")):
            raise InvalidFileError("is not as torch writes it")
        # torch.save does not compress, so a compressed member may be a zip bomb.
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise InvalidFileError("is not as torch writes it")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they would print what the file says
            state = torch.load(path, map_location="meta", weights_only=True)
    except InvalidFileError:
        raise
    except Exception as error:
        raise InvalidFileError(f"cannot be loaded with weights_only=True ({first_line(error)})") from error
    if not isinstance(state, dict) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise InvalidFileError("is no state dict of tensors")


def verify_onnx(path: Path) -> None:
    """Raise InvalidFileError unless the file is an ONNX graph with all of its weights; it is parsed, not run."""
    import onnx
    from onnx.external_data_helper import uses_external_data

    try:
        # A tensor may name a file outside of the bundle; such names are not followed.
        model = onnx.load(str(path), load_external_data=False)
        parts = list(_messages(model))
    except InvalidFileError:
        raise
    except Exception as error:
        raise InvalidFileError("is no ONNX file") from error
    # Also in a constant, in the body of a loop, in a function.
    if not model.graph.node or any(isinstance(p, onnx.TensorProto) and uses_external_data(p) for p in parts):
        raise InvalidFileError("is no ONNX file that holds its own weights")


def _messages(root: Any) -> Iterator[Any]:
    """Yield a protobuf message and all messages within it. Raises InvalidFileError for too many."""
    waiting, count = [root], 0
    while waiting:
        message = waiting.pop()
        yield message
        count += 1
        if count > MAX_PARTS:
            raise InvalidFileError(f"has more than {MAX_PARTS} parts")
        for field, value in message.ListFields():
            if field.message_type is not None:
                waiting += [value] if hasattr(value, "ListFields") else value


def verify_json(path: Path) -> None:
    """Raise InvalidFileError unless the file is JSON, of MAX_JSON_BYTES at most."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InvalidFileError(f"is larger than {MAX_JSON_BYTES >> 20} MB")
    try:
        json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidFileError("is no JSON") from error


def verify_csv(path: Path) -> None:
    """Raise InvalidFileError unless the file is CSV in UTF-8 and no cell is a formula for a spreadsheet."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            formulas = (cell for row in csv.reader(file) for cell in row if _is_formula(cell))
            if (cell := next(formulas, None)) is not None:
                raise InvalidFileError(f"holds a formula, {cell[:40]}")
    except (ValueError, csv.Error) as error:
        raise InvalidFileError("is no CSV in UTF-8") from error


def _is_formula(cell: str) -> bool:
    if escape_formula(cell) == cell:
        return False
    try:
        float(cell)  # a negative number
    except ValueError:
        return True
    return False


def verify_pdf(path: Path) -> None:
    """Raise InvalidFileError if the file may hold something that a reader does: the lab's reports are to be read."""
    if found := ACTIVE_PDF_PATTERN.search(path.read_bytes()):
        raise InvalidFileError(f"holds {found[0].decode()}, and no report of the lab does")


def verify_html(path: Path) -> None:
    """Raise InvalidFileError if the page has anything but what the lab's own reports are made of.

    An allow-list: tags, attributes and pictures by what they are; no script, link, form, comment or foreign element.
    """
    if path.stat().st_size > MAX_HTML_BYTES:
        raise InvalidFileError(f"is larger than {MAX_HTML_BYTES >> 20} MB")
    try:
        text = path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise InvalidFileError("is no page in UTF-8") from error
    if foreign := _foreign_part(text):
        raise InvalidFileError(f"holds a script, or something else that no report of the lab has ({foreign})")


def _foreign_part(text: str) -> str:
    """Return the beginning of the first thing in a page that is not the lab's; empty if there is none."""
    if control := CONTROL_PATTERN.search(text):  # they switch encodings, and so the meaning of what comes after
        return repr(control[0])
    for number, piece in enumerate(PIECE_PATTERN.finditer(text.removeprefix("\ufeff"))):
        is_doctype = number == 0 and piece[1].lower().startswith(DOCTYPE)
        if number >= MAX_TAGS or not (is_doctype or _is_ours(piece[1])):
            return piece[0][:40]
    return ""


def _is_ours(piece: str) -> bool:
    """Whether a page may hold this tag, whose < is left out, and the text up to the next one."""
    tag = TAG_PATTERN.match(piece)
    if not tag or tag[1] not in TAGS:
        return False
    attributes = ATTRIBUTE_PATTERN.findall(tag[2])
    if any(name not in ("class", *TAGS[tag[1]]) for name, _ in attributes):
        return False
    if any(name == "src" and not PICTURE_PATTERN.fullmatch(value) for name, value in attributes):
        return False
    return tag[1] != "style" or not LOADING_STYLE_PATTERN.search(piece)
