"""What installed packages bring by entry points is listed without an import, and used like the lab's own."""

import subprocess
import sys
import textwrap
from importlib import metadata

import pytest

from compression import methods, models, registry, tasks
from compression.errors import UserError
from tests.tasks.test_code import EXAMPLE

METHOD = '''
from dataclasses import dataclass
from typing import ClassVar

from compression.methods.base import Method
from compression.params import param


@dataclass(frozen=True)
class Shrink(Method):
    """Multiply all weights."""

    family: ClassVar[str] = "prune"
    factor: float = param(0.5, "what to multiply by", interval="(0, 1]")

    def apply(self, model, context):
        for parameter in model.parameters():
            parameter.data *= self.factor
        return model
'''
MODEL = """
from torch import nn


def flat(outputs, input_shape, width=1.0):
    channels, height, side = input_shape
    return nn.Sequential(nn.Flatten(), nn.Linear(channels * height * side, outputs))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """`install(package, entry_points, **modules)` puts a package into a folder of sys.path, as pip would."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = set(sys.modules)

    def put(package, points, **modules):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(textwrap.dedent(points))
        (tmp_path / package).mkdir()
        (tmp_path / package / "__init__.py").touch()
        for name, code in modules.items():
            (tmp_path / package / f"{name}.py").write_text(code)
        registry._entry_points.cache_clear()

    yield put
    registry._entry_points.cache_clear()
    for name in set(sys.modules) - before:
        if name.startswith(("addon", "broken", "second")):
            del sys.modules[name]


POINTS = """
    [console_scripts]
    addon = addon:main

    [compression.methods]
    prune.shrink = addon.methods:Shrink

    [compression.models]
    image.flat = addon.nets:flat

    [compression.tasks]
    blinking = addon.data:make
"""


@pytest.fixture
def addon(install):
    install("addon", POINTS, methods=METHOD, nets=MODEL, data=EXAMPLE)


def test_what_is_read_is_what_importlib_metadata_reads(addon):
    for group in ("compression.methods", "compression.models", "compression.tasks"):
        expected = {(e.name, e.value) for e in metadata.entry_points(group=group)}
        assert {(e.name, e.value) for e in registry.entry_points() if e.group == group} == expected != set()


def test_a_method_of_a_package_is_parsed_written_and_applied_like_any_other(addon):
    [step] = methods.parse("shrink:factor=0.25")
    assert methods.text([step]) == "shrink:factor=0.25"
    assert methods.name_of(step) == "shrink"
    assert "shrink" in methods.of_family("prune")
    assert len(set(methods.labels([step, step]))) == 2


def test_a_model_and_a_task_of_a_package_are_built_and_rebuilt(addon):
    task = tasks.load("blinking", limit=4)
    assert task.name == "blinking"
    model = models.build("flat", task)
    assert "flat" in models.MODELS
    assert "flat" not in models.TEXT_MODELS
    assert models.rebuild(models.spec_of(model))(task.example(3)).shape == (3, 2)


def test_help_lists_them_and_imports_none_of_them(addon, tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "import atexit; atexit.register(lambda: print('IMPORTED', 'torch' in sys.modules, 'addon' in sys.modules))\n"
        "from compression.cli import main; main(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    for name in ("shrink", "flat", "blinking"):
        assert name in done.stdout
    assert "IMPORTED False False" in done.stdout


def test_two_things_of_one_name_are_told_when_the_name_is_used(install):
    install("addon", "[compression.methods]\nprune.magnitude = addon.methods:Shrink\n", methods=METHOD)
    assert methods.family("svd") == "decompose"
    with pytest.raises(UserError, match="'magnitude' comes from the lab and from the package addon; remove one"):
        methods.method("magnitude")


def test_a_method_without_or_with_another_family_is_told(install):
    install(
        "addon",
        "[compression.methods]\nshrink = addon.methods:Shrink\nquantize.less = addon.methods:Shrink\n",
        methods=METHOD,
    )
    with pytest.raises(UserError, match="'shrink' without its kind; its entry point should be named train.shrink or"):
        methods.method("shrink")
    with pytest.raises(UserError, match="has to be a Method with family = 'quantize'"):
        methods.method("less")


@pytest.mark.parametrize("value", ["broken.nothing:Shrink", "broken.methods:Nothing", "broken.fails:Shrink"])
def test_a_package_that_cannot_be_imported_is_named(install, value):
    install("broken", f"[compression.methods]\nprune.shrink = {value}\n", methods=METHOD, fails="1 / 0\n")
    with pytest.raises(UserError, match=rf"'shrink' of the package broken \({value}\) cannot be loaded: \w+Error: "):
        methods.method("shrink")
