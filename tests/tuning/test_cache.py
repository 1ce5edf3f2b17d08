"""The cache of shared steps: it returns the weights that were computed, and only for the same steps and start."""

import copy
import dataclasses
import importlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from compression import methods, models
from compression.models import storage
from compression.tasks.task import predict
from compression.tuning import cache as cache_module
from compression.tuning.cache import StepCache, digest, evict, files_digest, step_key, weights_digest


@pytest.fixture
def cache_and_model(tmp_path, task):
    torch.manual_seed(0)
    model = models.build("digits_cnn", task).eval()
    return StepCache(tmp_path / "steps", "start"), model


def test_a_saved_model_is_found_with_its_seconds(cache_and_model, task):
    cache, model = cache_and_model
    steps = methods.parse("magnitude:sparsity=0.5")
    assert cache.find(steps) is None
    cache.save(steps, model, 2.5)
    found, seconds = cache.find(steps)
    assert seconds == 2.5
    assert torch.equal(predict(found, task.test)[0], predict(model, task.test)[0])
    assert weights_digest(found) == weights_digest(model)


def test_another_field_order_start_or_number_of_steps_finds_nothing(cache_and_model):
    cache, model = cache_and_model
    cache.save(methods.parse("magnitude:sparsity=0.5+finetune:epochs=1"), model, 1.0)
    for other in ("magnitude:sparsity=0.6+finetune:epochs=1", "magnitude:sparsity=0.5", "finetune:epochs=1"):
        assert cache.find(methods.parse(other)) is None
    assert dataclasses.replace(cache, start="another").find(methods.parse("magnitude:sparsity=0.5")) is None


def test_a_default_value_given_explicitly_is_the_same_step(cache_and_model):
    cache, model = cache_and_model
    cache.save(methods.parse("magnitude"), model, 1.0)
    [step] = methods.parse("magnitude")
    assert cache.find(methods.parse(f"magnitude:sparsity={step.sparsity}")) is not None


def test_the_content_of_a_teacher_in_a_folder_is_part_of_the_key(cache_and_model, tmp_path, task):
    cache, model = cache_and_model
    folder = storage.save(model, tmp_path / "teacher", {})
    steps = methods.parse(f"response:teacher={folder}")
    cache.save(steps, model, 1.0)
    assert cache.find(steps) is not None
    other = copy.deepcopy(model)
    other.fc.bias.data += 1
    storage.save(other, folder, {})
    assert cache.find(steps) is None


def test_a_step_with_a_uri_whose_content_may_change_is_not_cached(cache_and_model):
    cache, model = cache_and_model
    steps = methods.parse("response:teacher=models:/best@knee")
    assert step_key(steps[0]) is None
    cache.save(steps, model, 1.0)
    assert cache.find(steps) is None


def test_the_digest_of_weights_changes_with_one_number(task):
    model = models.build("digits_cnn", task)
    before = weights_digest(model)
    model.fc.bias.data[0] += 1e-6
    assert weights_digest(model) != before


def test_weights_of_every_type_have_a_digest():
    layer = torch.nn.Linear(2, 2)
    layer.register_buffer("count", torch.tensor(3))
    found = {weights_digest(copy.deepcopy(layer).to(dtype)) for dtype in (torch.bfloat16, torch.float16, torch.float32)}
    assert len(found) == 3


def test_the_source_of_the_package_is_part_of_the_key(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    before = files_digest(str(tmp_path))
    (tmp_path / "a.py").write_text("x = 2")
    assert files_digest(str(tmp_path)) != before
    assert cache_module.source_digest()
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})


def test_the_least_recently_used_entries_are_evicted(cache_and_model, monkeypatch):
    cache, model = cache_and_model
    for index, text in enumerate(("magnitude:sparsity=0.1", "magnitude:sparsity=0.2", "magnitude:sparsity=0.3")):
        cache.save(methods.parse(text), model, 1.0)
        entry = cache._entry_folder(methods.parse(text))
        os.utime(entry, (time.time() - 100 + index,) * 2)
    one = sum(f.stat().st_size for f in entry.rglob("*") if f.is_file())
    monkeypatch.setattr(cache_module, "MAX_BYTES", 2.5 * one)
    evict(cache.folder)
    assert cache.find(methods.parse("magnitude:sparsity=0.1")) is None
    assert cache.find(methods.parse("magnitude:sparsity=0.3")) is not None


def test_two_workers_may_save_the_same_model(cache_and_model):
    cache, model = cache_and_model
    steps = methods.parse("magnitude")
    cache.save(steps, model, 1.0)
    cache.save(steps, model, 2.0)
    assert cache.find(steps)[1] == 1.0
    assert len(list(cache.folder.iterdir())) == 1


def flip(file):
    content = bytearray(file.read_bytes())
    content[-3] ^= 0x40
    file.write_bytes(content)


def without_seconds(file):
    file.write_text(json.dumps(json.loads(file.read_text()) | {"about": {}}))


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("model.safetensors", flip),
        ("model.safetensors", lambda file: file.write_bytes(b"")),
        ("model.safetensors", lambda file: file.write_bytes(file.read_bytes()[:2000])),
        ("model.safetensors", Path.unlink),
        ("model.json", lambda file: file.write_text("")),
        ("model.json", without_seconds),
        ("model.json", Path.unlink),
        ("checksums.json", lambda file: file.write_text("[]")),
        ("checksums.json", Path.unlink),
    ],
)
def test_a_damaged_entry_is_made_again(cache_and_model, name, damage):
    cache, model = cache_and_model
    steps = methods.parse("magnitude")
    cache.save(steps, model, 1.0)
    damage(cache._entry_folder(steps) / name)
    assert cache.find(steps) is None
    cache.save(steps, model, 2.0)
    found, seconds = cache.find(steps)
    assert (seconds, weights_digest(found)) == (2.0, weights_digest(model))


def test_an_entry_that_is_no_folder_is_made_again(cache_and_model):
    cache, model = cache_and_model
    steps = methods.parse("magnitude")
    cache.folder.mkdir()
    cache._entry_folder(steps).touch()
    assert cache.find(steps) is None
    cache.save(steps, model, 1.0)
    assert cache.find(steps) is not None


def test_a_cache_that_cannot_be_written_stops_nobody(cache_and_model, caplog):
    cache, model = cache_and_model
    cache.folder.touch()
    cache.save(methods.parse("magnitude"), model, 1.0)
    assert "Could not keep a step" in caplog.text


def test_the_run_behind_a_teachers_name_is_part_of_the_key(cache_and_model):
    cache, model = cache_and_model
    steps = methods.parse("response:teacher=digits_cnn,student=digits_cnn_small")
    trained = {"digits_cnn": "runs:/1/model"}
    cache = dataclasses.replace(cache, trained=lambda name: trained.get(name, ""))
    cache.save(steps, model, 1.0)
    assert cache.find(steps) is not None
    trained["digits_cnn"] = "runs:/2/model"
    assert cache.find(steps) is None
    trained |= {"digits_cnn": "runs:/1/model", "digits_cnn_small": "runs:/3/model"}  # a student begins untrained
    assert cache.find(steps) is not None


def test_a_model_of_the_hub_is_cached_by_its_revision(tmp_path, monkeypatch):
    [step] = methods.parse("response:teacher=somebody/bert")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert step_key(step) is None
    for commit in ("a" * 40, "b" * 40):
        folder = tmp_path / "models--somebody--bert"
        for part, name, text in (("refs", "main", commit), (f"snapshots/{commit}", "config.json", "{}")):
            (folder / part).mkdir(parents=True, exist_ok=True)
            (folder / part / name).write_text(text)
        assert commit in str(step_key(step))


def test_code_that_is_not_of_the_lab_is_part_of_the_key(tmp_path, monkeypatch):
    (tmp_path / "of_somebody.py").write_text("class Network: pass")
    monkeypatch.syspath_prepend(tmp_path)
    network = importlib.import_module("of_somebody").Network
    before = cache_module.code_digest([network])
    (tmp_path / "of_somebody.py").write_text("class Network: changed = True")
    assert cache_module.code_digest([network]) != before


KILLED = """
import os, sys
from pathlib import Path
from compression import methods, models
from compression.models import storage
from compression.tuning.cache import StepCache

def save(model, folder, metadata):
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"x" * 10_000_000)
    os.kill(os.getpid(), 9)

storage.save = save
StepCache(Path(sys.argv[1]), "start").save(methods.parse("magnitude"), None, 1.0)
"""


def test_what_a_killed_worker_left_half_is_deleted_and_what_a_living_one_writes_is_not(cache_and_model):
    cache, model = cache_and_model
    subprocess.run([sys.executable, "-c", KILLED, str(cache.folder)])
    [left] = cache.folder.iterdir()
    living = cache.folder / left.name.replace(left.name.split("~")[1], str(os.getpid()))
    of_yesterday, of_today = cache.folder / "tmp12345678", cache.folder / "tmp87654321"
    for folder in (living, of_yesterday, of_today):
        folder.mkdir()
    os.utime(of_yesterday, (time.time() - 1e5,) * 2)
    cache.save(methods.parse("magnitude"), model, 1.0)
    assert set(cache.folder.iterdir()) == {living, of_today, cache._entry_folder(methods.parse("magnitude"))}
