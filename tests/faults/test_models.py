"""Models that strangers send, by the hundred: a sentence for each, at once, and no memory beyond their files."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import time

import pytest

from compression import models
from compression.errors import UserError
from compression.models import huggingface, storage
from tests.models import hostile

pytestmark = pytest.mark.faults

SECONDS, BYTES = 20, 2**29  # that a refusal may take: far more than it does, on a machine that does other work as well
FINE, TRACEBACK = 0, 1  # how a child process that loaded models exits


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    huggingface.build_from_config({"model_type": "bert", **hostile.TINY})  # imported once, before processes fork
    arguments = {"outputs": 10, "input_shape": [1, 8, 8], "width": 1.0}
    model = models.rebuild({"builder": "digits_cnn_small", "arguments": arguments})
    return storage.save(model, tmp_path_factory.mktemp("models") / "good", {"model": "digits_cnn_small"})


def outcome(folders) -> dict[str, int]:
    """Load models in a process of its own; whether that gave a traceback, took too long or too much memory."""
    pid = os.fork()
    if not pid:
        signal.alarm(SECONDS + len(folders))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code = FINE
        for folder in folders:
            try:
                with contextlib.suppress(UserError):
                    storage.load(folder)
                    storage.read_metadata(folder)
            except BaseException as error:  # noqa: BLE001 - counted
                print(folder, type(error).__name__, error, flush=True)
                code = TRACEBACK
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        os._exit(code + 2 * (grown > BYTES))
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"stuck": code < 0 or code % 2, "leaked": code > 1}


def test_every_kind_of_hostile_model(good, tmp_path, tally):
    found = []
    for number, name in enumerate(hostile.ALL):
        folder = shutil.copytree(good, tmp_path / str(number))
        hostile.spoil(folder, name)
        found.append(outcome([folder]))
    total = {key: sum(each[key] for each in found) for key in ("stuck", "leaked")}
    tally("models of strangers", tried=len(found), **total)


def test_hundreds_of_descriptions_with_something_replaced_by_junk(good, tmp_path, tally):
    generator, found, tried = random.Random(0), [], 600
    content = json.loads((good / "model.json").read_text())
    content["changes"]["modules"] = {"fc": {"class": "Linear", "arguments": {"in_features": 16, "out_features": 10}}}
    content["changes"] |= {"masked": ["fc"], "attributes": {"stages": {"x": 1}}, "shapes": {"fc.weight": [10, 16]}}
    for start in range(0, tried, 50):
        folders = [shutil.copytree(good, tmp_path / str(number)) for number in range(start, start + 50)]
        for folder in folders:
            changed = json.loads(json.dumps(content))
            for _ in range(generator.randint(1, 3)):
                hostile.mutate(changed, generator)
            (folder / "model.json").write_text(json.dumps(changed))
        found.append(outcome(folders))
    total = {key: sum(each[key] for each in found) for key in ("stuck", "leaked")}
    tally("descriptions of models with junk", tried=tried, **total)


def test_weights_with_flipped_bytes_and_cut_ends(good, tmp_path, tally):
    generator, found = random.Random(1), []
    whole = (good / "model.safetensors").read_bytes()
    for start in range(0, 200, 50):
        folders = [shutil.copytree(good, tmp_path / str(number)) for number in range(start, start + 50)]
        for folder in folders:
            spoilt = bytearray(whole)
            for _ in range(5):
                spoilt[generator.randrange(1500)] = generator.randrange(256)  # the header has 1,400 bytes
            (folder / "model.safetensors").write_bytes(spoilt[: generator.choice([len(spoilt), 1000, 3000])])
        found.append(outcome(folders))
    total = {key: sum(each[key] for each in found) for key in ("stuck", "leaked")}
    tally("files of weights with junk", tried=200, **total)


def test_time_is_short_where_a_config_is_huge(good, tmp_path, tally):
    slow = 0
    for number, name in enumerate(["a huge BERT", "10^9 layers", "10^9 labels"]):
        folder = shutil.copytree(good, tmp_path / str(number))
        hostile.spoil(folder, name)
        began = time.monotonic()
        slow += any(outcome([folder]).values()) or time.monotonic() - began > SECONDS
    tally("configs of a thousand million layers", tried=3, stuck=slow)
