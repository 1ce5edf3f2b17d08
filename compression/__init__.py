"""A model-compression lab: one command compresses a network, measures it before and after, and logs to MLflow.

From Python: `import compression as lab`, then `lab.compress(model, "structured:sparsity=0.5+static", task)`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

if TYPE_CHECKING:  # for completion and types; imported when asked for, since torch takes seconds
    from compression.api import (
        CompressionError,
        Page,
        Result,
        compress,
        load,
        load_task,
        measure,
        task,
        tune,
    )

__all__ = [
    "CompressionError", "Page", "Result", "compress", "load", "load_task", "measure", "task", "tune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in __all__:  # not `methods`: that is a package, which can be called
        return getattr(importlib.import_module("compression.api"), name)
    registry = importlib.import_module("compression.methods")
    if name in registry.class_names():  # Structured, Static, …
        return registry.method(registry.class_names()[name])
    raise AttributeError(f"module 'compression' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "methods", *importlib.import_module("compression.methods").class_names()]
