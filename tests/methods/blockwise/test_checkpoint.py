"""A walk that was killed goes on at the border of a block, and ends with the same model."""

import copy
import dataclasses

import pytest
import torch

from compression import methods
from compression.errors import UserError
from compression.methods.blockwise import walk as walking
from compression.nn.layers import masked_layers
from tests.conftest import Kept
from tests.methods.tiny_language import language_task, tiny_decoder

STEPS = ("gptq:group_size=16", "awq:group_size=16", "smoothquant", "wanda", "sparsegpt:pattern=2:4")


class Killed(Exception):
    pass


def kill_after(monkeypatch, groups):
    """End every walk after as many groups of layers."""
    real = walking.Stage.rows
    seen = []

    def rows(stage):
        if stage.group not in seen:
            seen.append(stage.group)
        if len(seen) > groups:
            raise Killed
        return real(stage)

    monkeypatch.setattr(walking.Stage, "rows", rows)
    return seen


@pytest.mark.parametrize("text", STEPS)
def test_it_goes_on_behind_the_last_whole_block(text, tmp_path, make_context, monkeypatch):
    torch.manual_seed(0)
    original, task = tiny_decoder(), language_task()
    [step] = methods.parse(text)
    contexts = {}
    for name in ("whole", "killed", "resumed"):
        (tmp_path / name).mkdir()
        contexts[name] = make_context(task, original, folder=tmp_path / name, record=Kept())
    whole = step.apply(copy.deepcopy(original), contexts["whole"])
    with monkeypatch.context() as patch:
        kill_after(patch, 5)  # a block has four groups
        with pytest.raises(Killed):
            step.apply(copy.deepcopy(original), contexts["killed"])
    [kept] = (tmp_path / "killed").glob("*.pt")
    assert "layers.0" in kept.name
    context = dataclasses.replace(contexts["resumed"], resume=tmp_path / "killed")
    with monkeypatch.context() as patch:
        seen = kill_after(patch, 100)
        resumed = step.apply(copy.deepcopy(original), context)
    assert len(seen) == 4
    assert {name.name for name in (tmp_path / "resumed").glob("*.pt")} >= {kept.name}
    found, expected = resumed.state_dict(), whole.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert masked_layers(resumed).keys() == masked_layers(whole).keys()
    assert "model.layers.0" in context.record.warnings[-1]
    assert [row["block"] for row in context.record.tables["blocks"]] == ["model.layers.0", "model.layers.1"]


def test_another_step_or_seed_is_refused(tmp_path, make_context):
    original, task = tiny_decoder(), language_task()
    (tmp_path / "first").mkdir()
    [step] = methods.parse("gptq:group_size=16")
    context = make_context(task, original, folder=tmp_path / "first").under(step.active_values())
    step.apply(copy.deepcopy(original), context)
    for text, changes, said in (("gptq:bits=3", {}, "bits=4"), ("gptq:group_size=16", {"seed": 5}, "seed=0")):
        [other] = methods.parse(text)
        again = make_context(task, original, resume=tmp_path / "first", **changes).under(other.active_values())
        with pytest.raises(UserError, match=f"is of a training with .*{said}"):
            other.apply(copy.deepcopy(original), again)


def test_a_damaged_file_is_refused(tmp_path, make_context):
    original, task = tiny_decoder(), language_task()
    (tmp_path / "first").mkdir()
    [step] = methods.parse("gptq:group_size=16")
    step.apply(copy.deepcopy(original), make_context(task, original, folder=tmp_path / "first"))
    path = min((tmp_path / "first").glob("*.pt"))
    content = torch.load(path, weights_only=True)
    del content["state"]["mlp.up_proj.packed"]
    torch.save(content, path)
    with pytest.raises(UserError, match="is of another model or step, or damaged"):
        step.apply(copy.deepcopy(original), make_context(task, original, resume=tmp_path / "first"))
