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
            else [node.module]
            if isinstance(node, ast.ImportFrom) and node.module
            else []
        )
    }


@pytest.mark.parametrize(
    ("library", "doors"),
    [
        ("mlflow", ("tracking", "backend")),
        ("optuna", ("tuning",)),
        ("click", ("cli", "backend", "study.cli")),
        ("docker", ("containers",)),
    ],
)
def test_a_library_has_its_doors(library, doors):
    for name, path in FILES.items():
        users = [m for m in everywhere(path) if m.split(".")[0] == library]
        inside = [door for door in doors if f"{name}.".startswith(f"compression.{door}.")]
        assert not users or inside, f"{name} imports {library}"


@pytest.mark.parametrize("name", [n for n in FILES if n.startswith("compression.methods")])
def test_methods_know_only_what_lies_below_them(name):
    above = {
        "pipeline",
        "tracking",
        "cli",
        "results",
        "report",
        "backend",
        "baseline",
        "measure",
        "tuning",
        "study",
    }
    used = {m.split(".")[1] for m in everywhere(FILES[name]) if m.startswith("compression.")}
    assert not used & above


@pytest.mark.parametrize(
    "module", ["compression.cli", "compression.tasks", "compression.models", "compression.methods"]
)
def test_help_needs_no_heavy_library(module):
    heavy = "('torch', 'mlflow', 'transformers', 'datasets', 'optuna')"
    code = f"import sys, {module}; print(*[m for m in {heavy} if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.split() == []
