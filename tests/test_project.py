"""pyproject.toml says what the code needs, and the files that describe the project agree with each other."""

import ast
import functools
import os
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import compression
from compression import extras
from compression.errors import UserError
from compression.study import database
from compression.tracking.server import checked_client
from compression.tuning import worker
from compression.tuning.config import TuningConfig

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
# What is declared though no file of the lab imports it.
NOT_IMPORTED = {
    "itsdangerous": "Starlette imports it for the cookie of a session",
    "onnxscript": "torch.onnx.export imports it",
    "kubernetes": "mlflow run -b kubernetes imports it",
    "optuna-dashboard": "a program of its own",
    "mlflow[auth]": "the server imports what it brings",
    "psycopg2-binary": "SQLAlchemy imports it where an address says postgresql",
}


def names(lines):
    """Requirements by their normalized names, with their extras in brackets."""
    found = [Requirement(line) for line in lines]
    return {canonicalize_name(r.name) + (f"[{','.join(sorted(r.extras))}]" if r.extras else "") for r in found}


CORE = names(PROJECT["dependencies"])
OPTIONAL = {extra: names(lines) for extra, lines in PROJECT["optional-dependencies"].items()}


def imported():
    """Top-level modules of other projects that the lab imports, each with the files that do, as room/file.py."""
    found = {}
    for path in (ROOT / "compression").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                modules = [node.module]
            for module in modules:
                top = module.partition(".")[0]
                if top not in sys.stdlib_module_names | {"compression"}:
                    found.setdefault(top, set()).add(path.relative_to(ROOT / "compression").as_posix())
    return found


every_distribution = functools.cache(packages_distributions)  # it reads the records of everything that is installed


def distributions(module):
    """The normalized names of the distributions that hold a top-level module."""
    return names(every_distribution()[module])


def test_every_import_is_declared_and_outside_the_extras_in_the_core():
    for module, files in imported().items():
        extra = extras.extra_of(module)
        declared = OPTIONAL[extra] if extra else CORE
        assert distributions(module) & declared, f"{module} of {', '.join(sorted(files))} is not declared"


def test_nothing_is_declared_that_nobody_imports():
    used = {name for module in imported() for name in distributions(module)} | NOT_IMPORTED.keys()
    optional = {name for extra, declared in OPTIONAL.items() if extra != "dev" for name in declared}
    declared = CORE | {name for name in optional if not name.startswith(extras.DISTRIBUTION)}
    assert declared <= used
    assert NOT_IMPORTED.keys() <= declared


def test_the_modules_of_an_extra_are_those_that_pyproject_declares():
    for extra, modules in extras.MODULES.items():
        assert {name for module in modules for name in distributions(module) & OPTIONAL[extra]} == OPTIONAL[extra]


def test_all_brings_every_extra_but_the_one_for_clusters():
    [line] = PROJECT["optional-dependencies"]["all"]
    assert Requirement(line).extras == OPTIONAL.keys() - {"all", "dev", "kubernetes"}


@pytest.mark.parametrize(
    ("module", "room"), [("optuna", "tuning/"), ("fastapi", "study/"), ("pydantic", "study/"), ("fpdf", "study/")]
)
def test_an_extra_is_imported_in_its_room_alone(module, room):
    assert all(file.startswith(room) for file in imported()[module])


def test_the_version_is_said_once():
    assert PYPROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "compression.__version__"}
    assert "version" in PROJECT["dynamic"]
    assert "version" not in PROJECT
    assert f"## {compression.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_the_licence_is_there_and_goes_into_the_package():
    [file] = PROJECT["license-files"]
    assert PROJECT["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / file).read_text()
    assert f"!{file}" in (ROOT / ".dockerignore").read_text().split()  # the image's build reads it


def test_types_go_into_the_package():
    assert "py.typed" in PYPROJECT["tool"]["setuptools"]["package-data"]["compression"]
    assert (ROOT / "compression/py.typed").exists()


def fail(error):
    raise error


def test_a_missing_package_of_an_extra_becomes_a_sentence_that_names_the_extra():
    missing = ModuleNotFoundError("No module named 'optuna.storages'", name="optuna.storages")
    with (
        pytest.raises(UserError, match=r"optuna, .*: pip install 'model-compression-lab\[tune\]'"),
        extras.explain_missing(),
    ):
        fail(missing)


def test_a_missing_driver_is_found_behind_the_error_that_another_library_makes_of_it():
    wrapped = ImportError("Failed to import DB access module")
    wrapped.__cause__ = ModuleNotFoundError("No module named 'psycopg2'", name="psycopg2")
    with pytest.raises(UserError, match=r"\[postgres\]"), extras.explain_missing():
        fail(wrapped)


def open_tracking_store():
    with checked_client("open the store") as client:
        client.search_experiments()


@pytest.mark.parametrize(
    ("variable", "use"),
    [
        ("COMPRESSION_STUDY_URL", lambda: database.engine(database.url())),
        ("OPTUNA_STORAGE", lambda: worker._storage(TuningConfig())),
        ("MLFLOW_TRACKING_URI", open_tracking_store),
    ],
)
def test_a_database_whose_driver_is_not_installed_names_its_extra(variable, use, monkeypatch):
    monkeypatch.setenv(variable, "postgresql+psycopg2://someone:secret@127.0.0.1:1/nothing")
    monkeypatch.setitem(sys.modules, "psycopg2", None)
    with pytest.raises(UserError, match=r"needs the package psycopg2, .*\[postgres\]"):
        use()


@pytest.mark.parametrize("name", ["numpy", "optunia", "compression.nothing", None])
def test_another_import_that_fails_is_left_as_it_is(name):
    with pytest.raises(ModuleNotFoundError, match="not here"), extras.explain_missing():
        fail(ModuleNotFoundError("not here", name=name))


# Runs commands in turn where no package of an extra is found, and prints how each ended.
WITHOUT_EXTRAS = """
import sys
from importlib.machinery import PathFinder
from compression import cli, extras

find = PathFinder.find_spec
hidden = set(sys.argv[1].split(","))
PathFinder.find_spec = staticmethod(lambda name, *rest: None if name.partition(".")[0] in hidden else find(name, *rest))
for command in sys.argv[2:]:
    try:
        cli.main(command.split())
    except SystemExit as stop:
        print("exit code", stop.code, file=sys.stderr)
"""


def run_without_extras(folder, *commands):
    """What the commands print to standard error. Hidden is what mlflow does not bring of its own."""
    hidden = "fpdf,optuna,psycopg2,transformers"
    words = [sys.executable, "-c", WITHOUT_EXTRAS, hidden, *commands]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True).stderr


def test_a_command_whose_extra_is_missing_says_so_in_one_line_and_exits_with_1(tmp_path):
    said = run_without_extras(
        tmp_path, "tune magnitude --task digits", "evaluate --task glue/sst2 --model some", "study web --participant p1"
    )
    refusals = [
        f"Error: This needs the package {module}, which is not installed: pip install 'model-compression-lab[{extra}]'."
        for module, extra in (("optuna", "tune"), ("transformers", "text"), ("fpdf", "study"))
    ]
    assert said.splitlines() == [line for refusal in refusals for line in (refusal, "exit code 1")]


def test_the_core_compresses_measures_and_reports_without_any_extra(tmp_path):
    short = "--task digits --limit 64 --epochs 1 --threads 1"
    said = run_without_extras(
        tmp_path, "--help", f"distill response {short}", "report --task digits", "study example", "sync"
    )
    assert said.count("exit code 0") == 5, said
