"""The loader that models stored before version 0.2 name in their MLmodel file."""

from compression.models.storage import _load_pyfunc

__all__ = ["_load_pyfunc"]
