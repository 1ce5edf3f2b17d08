"""The grammar of chains, as text and as a file."""

import os
import subprocess
import sys

import pytest

from compression import methods
from compression.errors import UserError
from compression.methods.recipe import numbered, written


def test_a_file_says_the_same_as_the_text(tmp_path):
    path = tmp_path / "deep.yaml"
    path.write_text(
        "- magnitude: {sparsity: 0.9, scope: local}\n- finetune: {epochs: 2, augment: false}\n- cluster:\n- static\n"
    )
    text = "magnitude:sparsity=0.9,scope=local+finetune:epochs=2,augment=False+cluster+static"
    as_texts = [(name, {field: str(value) for field, value in given.items()}) for name, given in written(f"@{path}")]
    assert as_texts == written(text)
    assert methods.parse(f"@{path}") == methods.parse(text)


def test_a_file_uses_lists_and_mappings_of_yaml(tmp_path):
    path = tmp_path / "lists.yaml"
    path.write_text(
        "- magnitude: {layers: {conv1: 0.3, stages.0: 0.5}}\n"
        "- multi_teacher: {teachers: [resnet20, 'runs:/1/model'], weighting: weighted, weights: [2, 1]}\n"
        "- feature: {pairs: [[stages.2, stages.1], [stem, stem]]}\n"
        "- mixed: {widths: [2, 4, 8], skip: [fc]}\n"
    )
    text = (
        "magnitude:layers=conv1:0.3/stages.0:0.5+multi_teacher:teachers=resnet20//runs:/1/model,weighting=weighted,"
        "weights=2/1+feature:pairs=stages.2:stages.1/stem+mixed:widths=2/4/8,skip=fc"
    )
    assert methods.parse(f"@{path}") == methods.parse(text)
    assert methods.parse(methods.text(methods.parse(text))) == methods.parse(text)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "holds no steps"),
        ("static", "holds no steps; a recipe file is a list"),
        ("- [static]", r"holds \['static'\], which is no step"),
        ("- static: 3", "which is no step"),
        ("- {static: {bits: 8}, dynamic: {}}", "which is no step"),
        ("- static: {bits: 8", "cannot be read"),
        ("- static: {bit: 8}", "has no field 'bit'"),
        ("- statik", "no method 'statik'"),
        *[(f"- finetune: {empty}", "holds .*, which is no step") for empty in ("0", "0.0", "false", "''", "[]")],
    ],
)
def test_what_is_no_recipe_is_refused_in_a_sentence(tmp_path, content, said):
    path = tmp_path / "my.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=said):
        methods.parse(f"@{path}")


def test_a_recipe_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml cannot be read"):
        methods.parse(f"@{tmp_path}/nowhere.yaml")


def test_a_yaml_file_executes_nothing(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(f"- !!python/object/apply:pathlib.Path.touch [{tmp_path}/touched]")
    with pytest.raises(UserError, match="cannot be read"):
        methods.parse(f"@{path}")
    assert not (tmp_path / "touched").exists()


def test_a_method_that_comes_twice_is_numbered():
    assert numbered(["finetune", "structured", "finetune"]) == ["finetune", "structured", "finetune_2"]
    assert methods.labels(methods.parse("finetune+structured+finetune")) == ["finetune", "structured", "finetune_2"]


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        ("static+finetune", "finetune works on weights in floats, and static leaves none: put finetune first"),
        ("half+dynamic", "dynamic works on weights in floats, and half leaves none"),
    ],
)
def test_an_order_that_cannot_work_is_refused(recipe, said):
    with pytest.raises(UserError, match=said):
        methods.check_order(methods.parse(recipe))


BOMB = "- static: {bits: &a0 [x, x]}\n" + "".join(
    f"- static: {{bits: &a{i} [*a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 64)
)


@pytest.mark.parametrize(
    "content",
    [
        BOMB,
        "- &a [*a]",
        "[" * 5000,
        "- static: {bits: 0x" + "f" * 90_000 + "}",
        "- static: {bits: " + "1:" * 40_000 + "1}",
        "- static: {bits: !!timestamp x}",
        "- static: {bits: !!bool x}",
        "- static: {bits: !!int ''}",
        "- static: {bits: 2001-99-99}",
        "- static: {[bits]: 8}",
        "- static\n" * 20_000,
        "\0",
    ],
)
def test_a_file_that_is_a_trap_is_refused_in_a_sentence(tmp_path, content):
    path = tmp_path / "my.yaml"
    path.write_text(content)
    with pytest.raises(UserError, match=r"my.yaml cannot be read: .") as refused:
        methods.parse(f"@{path}")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("place", ["/dev/zero", "/dev", "x" * 5000, "\0"])
def test_what_is_no_file_is_refused(place):
    with pytest.raises(UserError, match="cannot be read"):
        methods.parse(f"@{place}")


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "my.yaml")
    with pytest.raises(UserError, match="is a pipe or a device and no file"):
        methods.parse(f"@{tmp_path}/my.yaml")


def test_a_recipe_has_a_hundred_steps_at_most(tmp_path):
    assert len(methods.parse("+".join(["static"] * 100))) == 100
    (tmp_path / "my.yaml").write_text("- static\n" * 101)
    for recipe in ("+".join(["static"] * 101), f"@{tmp_path}/my.yaml"):
        with pytest.raises(UserError, match="has 101 steps; a recipe takes 100 at most"):
            methods.parse(recipe)


def test_a_file_is_read_in_utf_8_whatever_the_locale(tmp_path):
    (tmp_path / "my.yaml").write_text("- magnitude: {layers: {größe: 0.3}}", encoding="utf-8")
    code = "from compression import methods; print(ascii(methods.parse('@my.yaml')[0].layers))"
    env = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": os.getcwd()}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert done.stdout == "{'gr\\xf6\\xdfe': 0.3}\n", done.stderr
