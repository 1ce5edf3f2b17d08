"""Files: writing them so that nobody ever reads half of one, reading those of strangers, CSV, and checksums."""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

MAX_YAML_BYTES = 100_000  # PyYAML reads this much in seconds; what people write by hand has a few thousand
MAX_DIGITS = 100

# A spreadsheet evaluates a text that begins with one of these as a formula (CSV injection), in Chinese and Japanese
# settings the wide ones too.
FORMULA_SIGNS = tuple("=+-@＝＋－＠")
LINE_STARTS = ("\t", "\r", "\n")  # where a text begins with one of these, the rest may come to stand in its own cell


@contextlib.contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to, and rename that file to `path` if the block does not raise.

    Until then, and if the block raises, `path` remains the old file. The temporary path is `<name>.half` in the same
    folder, so only one process at a time may write a file. Raises OSError if the file system does.
    """
    half = path.with_name(f"{path.name}.half")
    try:
        yield half
        half.replace(path)
    finally:
        half.unlink(missing_ok=True)


@contextlib.contextmanager
def fill_folder(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to write files to, and move them into `folder` if the block does not raise.

    `folder` is made if there is none; files of other names in it stay. So nobody finds half of what belongs together
    where the disk is full. Raises OSError if the file system does.
    """
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".half-") as scratch:
        yield Path(scratch)
        (probe := Path(scratch, ".mode")).touch()
        mode = stat.S_IMODE(probe.stat().st_mode)
        probe.unlink()
        folder.mkdir(exist_ok=True)
        for file in Path(scratch).iterdir():
            file.chmod(mode)  # safetensors lets nobody else read its files
            file.replace(folder / file.name)


def require_regular(path: Path) -> None:
    """Raise OSError unless `path` is a file: to read a pipe may wait for ever, and a device has no end."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        raise OSError(f"{path} is a {'folder' if stat.S_ISDIR(mode) else 'pipe or a device'} and no file")


def require_regular_files(folder: Path) -> None:
    """Raise OSError if something in `folder` is neither a file nor a folder; see `require_regular`."""
    for path in folder.iterdir():
        if path.exists() and not path.is_dir():
            require_regular(path)


def read_text(path: Path, max_bytes: int) -> str:
    """Return the text of a file, in UTF-8 whatever the locale.

    Raises OSError if it cannot be read, is no file or has more than `max_bytes`, and ValueError for another encoding.
    """
    require_regular(path)
    with path.open("rb") as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        raise OSError(f"{path} has more than {max_bytes / 1e6:g} MB")
    return content.decode("utf-8-sig")


def parse_yaml(text: str) -> Any:
    """Return the plain data that a YAML text of at most MAX_YAML_BYTES holds.

    Raises ValueError for any other text, and for aliases: by nine of them, a kilobyte stands for gigabytes.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
            if self.check_event(yaml.AliasEvent):
                alias = self.peek_event()  # type: ignore[no-untyped-call]
                raise ValueError(f"line {alias.start_mark.line + 1} has an alias: write out what it stands for")
            return super().compose_node(parent, index)

        def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
            if len(node.value) > MAX_DIGITS:  # Python refuses to write down numbers of more than 4,300
                raise ValueError(f"line {node.start_mark.line + 1} has a number of {len(node.value)} digits")
            return super().construct_yaml_int(node)

    Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)
    if len(text) > MAX_YAML_BYTES:
        raise ValueError(f"it has more than {MAX_YAML_BYTES:,} characters")
    try:
        return yaml.load(text, Loader)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if error.problem_mark else ""
        raise ValueError(f"{line}{error.problem}") from error
    except Exception as error:  # PyYAML's constructors raise whatever Python does: for `!!bool x`, [[[[…
        raise ValueError(str(error) or type(error).__name__) from error


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal. Raises OSError if it cannot be read or is no file."""
    require_regular(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str] = ()) -> str:
    """Return `rows` as CSV with a header: `columns`, or else all keys in the order of their first appearance.

    A spreadsheet shows its cells as text, and evaluates none.
    """
    rows = list(rows)
    names = list(columns) or list(dict.fromkeys(key for row in rows for key in row))
    output = io.StringIO()
    writer = csv.writer(output, lineterminator="\n")
    writer.writerow(map(escape_formula, names))
    writer.writerows([escape_formula(row.get(name)) for name in names] for row in rows)
    return output.getvalue()


def escape_formula(value: Any) -> Any:
    """Return `value`, with an apostrophe before a text that a spreadsheet would evaluate; numbers are unchanged."""
    if value is None or isinstance(value, (int, float)):
        return value
    text = str(value)
    # What does not show is skipped: blanks, control characters, a byte order mark.
    shown = text.lstrip("".join(c for c in text if c.isspace() or not c.isprintable()))
    return f"'{text}" if text.startswith(LINE_STARTS) or shown.startswith(FORMULA_SIGNS) else text
