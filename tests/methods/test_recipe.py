"""The grammar of chains, as text and as a file."""

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
