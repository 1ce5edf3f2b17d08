"""What every run is told besides its methods: the task, the model, the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from compression import params
from compression.params import param
from compression.runs.observer import Observer


def default_threads() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Settings:
    """The fields that all commands share. Empty texts mean "the task's own" or "not given"."""

    task: str = param("", "what the model is for; `compression --help` lists them")
    model: str = param("", "the model to compress: a name of the lab, a hub name, a folder; the task's own if empty")
    baseline: str = param(
        "", "its trained weights: runs:/…, models:/…, a folder or a hub name; found or trained if empty"
    )
    data: str = param("", "folder of the data; COMPRESSION_DATA, the hub or HF_ENDPOINT's mirror if empty")
    limit: int | None = param(None, "use only so many examples, for a quick look", interval="[1, inf)")
    seed: int = param(0, "seed of everything random", interval="[0, 2147483647]")
    device: str = param("auto", "where to train", choices=("auto", "cpu", "cuda"))
    precision: str = param(
        "auto",
        "of training; auto is bf16 or fp16 on a GPU, full on a CPU",
        choices=("auto", "no", "bf16", "fp16"),
    )
    threads: int | None = param(None, "processor threads, also of the timing; all if empty", interval="[1, inf)")
    participant: str = param("", "who runs this, for the study; COMPRESSION_PARTICIPANT if empty")
    experiment: str = param("", "MLflow experiment; MLFLOW_EXPERIMENT_NAME or MLflow's default if empty")
    run_name: str = param("", "name of the run in MLflow; made from the method if empty")
    resume: str = param("", "id of a killed run of the same command, to go on from its last epoch")
    observer: Observer = field(default_factory=Observer, repr=False, compare=False)  # not a parameter

    def __post_init__(self) -> None:
        params.check(self)

    @property
    def person(self) -> str:
        return self.participant or os.environ.get("COMPRESSION_PARTICIPANT", "")
