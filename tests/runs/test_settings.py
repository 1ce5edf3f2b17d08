"""How many threads a run takes by itself."""

import os

import pytest

from compression.runs import settings


@pytest.mark.parametrize(
    ("quota", "given", "threads"),
    [
        ("150000 100000", "", 2),
        ("max 100000", "3", 3),
        ("20000 100000", "8", 1),
        ("nonsense", "many", 8),
        (None, "0", 1),
    ],
)
def test_threads_are_what_affinity_quota_and_environment_leave(quota, given, threads, tmp_path, monkeypatch):
    if quota is not None:
        (tmp_path / "cpu.max").write_text(quota)
    monkeypatch.setattr(settings, "CPU_QUOTA", tmp_path / "cpu.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert settings.default_threads() == threads
