"""The one direction of flow: nothing points back, and heavy libraries have one door each."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import compression

ROOT = Path(compression.__file__).parent
FILES = {
    ".".join(p.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): p for p in ROOT.rglob("*.py")
}


def imports(path: Path) -> set[str]:
    """Modules imported at the top of the file, not in functions and not for types only."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def everywhere(path: Path) -> set[str]:
    return {
        name
        for node in ast.walk(ast.parse(path.read_text()))
        for name in (
            [a.name for a in node.names]
            if isinstance(node, ast.Import)
            else [f"{node.module}.{a.name}" for a in node.names]
            if isinstance(node, ast.ImportFrom) and node.module
            else []
        )
    }


# From the ground up: a room imports rooms before it, never one behind it. Files beside the rooms count as rooms.
ROOMS = (
    *(
        "errors",
        "files",
        "extras",
        "params",
        "registry",
        "nn",
        "models",
        "artifacts",
        "tasks",
        "deploy",
        "training",
        "tracking",
        "reporting",
    ),
    *("methods", "runs", "backend", "tuning", "api", "study", "cli"),
)
FIGURES = "compression.reporting.figures"  # all that methods know of reporting


def room(module: str) -> str:
    return module.split(".")[1]


def test_every_room_has_its_place():
    assert {room(name) for name in FILES if name.count(".")} == set(ROOMS)


@pytest.mark.parametrize("name", [name for name in FILES if name.count(".")])
def test_no_import_points_back(name):
    used = {room(m) for m in everywhere(FILES[name]) if m.startswith("compression.") and not m.endswith("__version__")}
    behind = used - set(ROOMS[: ROOMS.index(room(name)) + 1])
    assert not behind, f"{name} imports {', '.join(sorted(behind))}"


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("mlflow", ("tracking", "backend")),
        ("optuna", ("tuning",)),
        ("click", ("cli", "backend", "study.cli")),
        ("docker", ("backend.engine",)),
    ],
)
def test_a_library_has_its_doors(library, doors):
    for name, path in FILES.items():
        users = [m for m in everywhere(path) if m.split(".")[0] == library]
        inside = [door for door in doors if f"{name}.".startswith(f"compression.{door}.")]
        assert not users or inside, f"{name} imports {library}"


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("compression.methods")])
def test_methods_know_only_what_lies_below_them(name):
    used = {m for m in everywhere(FILES[name]) if m.startswith("compression.")}
    assert not [m for m in used if room(m) == "tracking" or (room(m) == "reporting" and not m.startswith(FIGURES))]


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith(("compression.methods", "compression.tuning"))])
def test_methods_and_tuning_leave_drawing_to_reporting(name):
    assert "matplotlib" not in {module.split(".")[0] for module in everywhere(FILES[name])}


@pytest.mark.parametrize(
    "module", ["compression.cli", "compression.tasks", "compression.models", "compression.methods"]
)
def test_help_needs_no_heavy_library(module):
    heavy = "('torch', 'mlflow', 'transformers', 'datasets', 'optuna')"
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []
