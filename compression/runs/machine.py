"""The machine a run uses: device, threads, precision, and what must be logged of them."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import os
import platform
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from compression.errors import UserError
from compression.runs.settings import Settings, default_threads

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
LOGGED = ("torch", "torchvision", "transformers", "mlflow", "onnx", "onnxruntime", "accelerate")


@dataclass(frozen=True)
class Machine:
    """The device and threads of a run, and the process that logs where several run together."""

    accelerator: Accelerator
    threads: int

    @property
    def device(self) -> torch.device:
        """The device to train on."""
        device: torch.device = self.accelerator.device
        return device

    @property
    def main(self) -> bool:
        """Whether this is the process that measures and logs, when `accelerate launch` started several."""
        return bool(self.accelerator.is_main_process)

    def shared(self, make: Callable[[], T]) -> T:
        """Call `make` in the main process and return its result in every process."""
        made = [make() if self.main else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(made)  # in place
        return made[0]  # type: ignore[return-value]

    def facts(self) -> dict[str, str | int]:
        """Device, threads, precision, library versions and CPU capability, as MLflow parameters."""
        versions = {f"version.{name}": importlib.metadata.version(name) for name in LOGGED if _installed(name)}
        gpu = {"gpu": torch.cuda.get_device_name(self.device)} if self.device.type == "cuda" else {}
        return {
            "device": self.device.type,
            "processes": self.accelerator.num_processes,
            "precision": self.accelerator.mixed_precision,
            "threads": self.threads,
            "cpu": platform.processor() or platform.machine(),
            # int8 figures depend on it: without VNNI, products of u8 and s8 saturate in ONNX Runtime's kernels
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "version.python": platform.python_version(),
            **gpu,
            **versions,
        }


def _installed(name: str) -> bool:
    """Whether a package is installed: an image without CUDA may lack torchvision."""
    return importlib.util.find_spec(name) is not None


def prepare(settings: Settings) -> Machine:
    """Set threads and seeds and choose the device; UserError if it is not there."""
    cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not cuda:
        raise UserError("device=cuda, but torch sees no GPU here; use device=auto, or a machine with an NVIDIA driver.")
    threads = settings.threads or default_threads()
    torch.set_num_threads(threads)
    seed(settings.seed)
    return Machine(accelerator(settings.device == "cpu" or not cuda, settings.precision), threads)


def seed(number: int) -> None:
    """Seed Python's, NumPy's and torch's generators."""
    random.seed(number)
    np.random.seed(number)
    torch.manual_seed(number)


@functools.cache
def accelerator(cpu: bool, precision: str) -> Accelerator:
    """The Accelerator of a device and precision: accelerate keeps one state per process, so each is made once."""
    if precision == "auto":
        # accelerate launch may have been told a precision already: it stands
        gpu = "no" if cpu else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
        precision = os.environ.get("ACCELERATE_MIXED_PRECISION", gpu)
    return Accelerator(cpu=cpu, mixed_precision=precision)
