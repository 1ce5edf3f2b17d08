"""The cache of shared steps: it returns the weights that were computed, and only for the same steps and start."""

import copy
import dataclasses
import os
import time

import pytest
import torch

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
