"""The settings of a run besides its methods: task, model, data, machine, participant."""

from __future__ import annotations

import contextlib
import math
import os
from dataclasses import dataclass, field
from pathlib import Path

from compression import params
from compression.params import Place, param
from compression.runs.observer import Observer

CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def default_threads() -> int:
    """The processor cores that this process may use, by its affinity, a container's quota, and OMP_NUM_THREADS.

    More threads than cores wait for one another: an epoch of a tiny BERT took 15 s with two threads on cores that other
    work used, 1 s with one.
    """
    cores = [len(os.sched_getaffinity(0)), *_quota()]
    if (given := os.environ.get("OMP_NUM_THREADS", "")).isdigit():
        cores.append(int(given))
    return max(1, min(cores))


def _quota() -> list[int]:
    """The whole cores of the quota that `docker run --cpus` gives a control group; empty without one."""
    with contextlib.suppress(OSError, ValueError):
        quota, period = CPU_QUOTA.read_text(encoding="utf-8").split()  # microseconds: "150000 100000" is 1.5 cores
        return [] if quota == "max" else [math.ceil(int(quota) / int(period))]
    return []


@dataclass(frozen=True)
class Settings:
    """The fields that all commands share. An empty text means the task's default, or not set."""

    task: Place = param("", "data set and metric, by name; `compression --help` lists them")
    model: Place = param(
        "", "model to compress: a name of the lab, a hub name or a folder; the task's default if empty"
    )
    baseline: Place = param(
        "", "trained model to start from: runs:/…, models:/…, a folder or a hub name; found or trained if empty"
    )
    data: Place = param(
        "", "folder or file with the data; if empty: COMPRESSION_DATA, the hub, or the mirror in HF_ENDPOINT"
    )
    context: int | None = param(
        None, "tokens in a window of a language task; 512 if not set, or what the model has", interval="[2, inf)"
    )
    text_columns: tuple[str, ...] = param(
        (), "column of a table with the text, or the two of a pair; found by usual names"
    )
    label_column: str = param("", "column of a table with the labels; found by its name if it is a usual one")
    mean: tuple[float, ...] = param(
        (),
        "mean of images, of each channel or of all, for pixels in [0, 1]; the task's own if empty",
        interval="[0, 1]",
    )
    std: tuple[float, ...] = param(
        (), "their standard deviation, likewise: with it, somebody else's trained weights fit", interval="(0, 1]"
    )
    limit: int | None = param(None, "use only this many examples of each split, for a quick look", interval="[1, inf)")
    seed: int = param(0, "random seed", interval="[0, 2147483647]")
    device: str = param("auto", "device to train on", choices=("auto", "cpu", "cuda"))
    precision: str = param(
        "auto",
        "mixed precision of training; auto: bf16 or fp16 on a GPU, none on a CPU",
        choices=("auto", "no", "bf16", "fp16"),
    )
    threads: int | None = param(
        None, "CPU threads, for timing too; the cores there are, or OMP_NUM_THREADS, if not set", interval="[1, inf)"
    )
    participant: str = param("", "participant of the study who runs this; COMPRESSION_PARTICIPANT if empty")
    experiment: str = param("", "MLflow experiment; MLFLOW_EXPERIMENT_NAME or MLflow's default if empty")
    run_name: str = param("", "name of the run in MLflow; made from method and task if empty")
    resume: str = param("", "id of a killed run of the same command, to resume after its last epoch")
    observer: Observer = field(default_factory=Observer, repr=False, compare=False)  # not a parameter

    def __post_init__(self) -> None:
        params.check(self)

    @property
    def person(self) -> str:
        """The participant, given or from COMPRESSION_PARTICIPANT; empty if there is none."""
        return self.participant or os.environ.get("COMPRESSION_PARTICIPANT", "")
