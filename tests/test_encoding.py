"""Text is written and read in UTF-8, whatever the locale: every place says so."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import compression

ROOT = Path(compression.__file__).parents[1]
FOLDERS = ("compression", "entrypoints", "docker", "benchmarks")
FILES = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))]
OTHER_OPENERS = {"os", "Image", "archive", "zipfile", "tarfile"}  # their `open` is another
# Function -> the place of the mode among its arguments, where it has one.
OPENERS = {"open": 1, "fdopen": 1, "NamedTemporaryFile": 0, "TemporaryFile": 0}
STARTERS = {"run", "Popen", "check_output"}


def unsaid(call: ast.Call) -> bool:
    """Whether a call reads or writes text without naming the encoding."""
    named = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in named or None in named:
        return False
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = getattr(getattr(call.func, "value", None), "id", "")
    if name in ("read_text", "write_text"):
        return len(call.args) < (1 if name == "read_text" else 2)
    if name in STARTERS:
        return any(flag in named for flag in ("text", "universal_newlines"))
    if name not in OPENERS or owner in OTHER_OPENERS - {"os"} or (owner, name) == ("os", "open"):
        return False
    place = 0 if name == "open" and isinstance(call.func, ast.Attribute) else OPENERS[name]
    mode = named.get("mode") or (call.args[place] if len(call.args) > place else None)
    return "b" not in (mode.value if isinstance(mode, ast.Constant) else "b" if "File" in name else "r")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_names_its_encoding(path):
    calls = [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]
    assert [f"{path}:{call.lineno}" for call in calls if unsaid(call)] == []


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("path.read_text()", True),
        ("path.read_text('utf-8')", False),
        ("path.write_text(text)", True),
        ("path.open('w', newline='')", True),
        ("path.open('rb')", False),
        ("open(path)", True),
        ("open(path, mode='ab')", False),
        ("os.open(path, os.O_RDWR)", False),
        ("Image.open(path)", False),
        ("NamedTemporaryFile()", False),
        ("NamedTemporaryFile('w')", True),
        ("subprocess.run(words, text=True)", True),
        ("subprocess.run(words, text=True, encoding='utf-8')", False),
    ],
)
def test_it_would_be_found(code, found):
    assert unsaid(ast.parse(code).body[0].value) == found


LOG = """
import sys
from pathlib import Path
from compression import tracking
with tracking.start_run("caf\\u00e9") as run:
    run.params({"p": "\\u00e9\\u4e2d"})
    run.metrics({"m@": 1.0})
    run.note("\\u4e2d\\u6587")
    run.table("t", [{"\\u00e9": "\\u4e2d"}])
    print(run.id)
"""


def test_a_run_in_another_locale_says_what_it_was_told(tmp_path):
    """An ASCII locale, in which Python would write ASCII, and fail."""
    variables = {"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db", "COMPRESSION_HOME": str(tmp_path / "home")}
    locale = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", LOG], env=os.environ | variables | locale, cwd=tmp_path, capture_output=True, check=True
    )
    from mlflow import MlflowClient

    seen = MlflowClient(variables["MLFLOW_TRACKING_URI"]).get_run(done.stdout.decode().strip())
    assert seen.info.run_name == "café"
    assert seen.data.params == {"p": "é中"}
    assert seen.data.tags["mlflow.note.content"] == "中文"
    table = Path(seen.info.artifact_uri.removeprefix("file://"), "t.csv").read_text(encoding="utf-8")
    assert table == "é\n中\n"
