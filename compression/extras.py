"""Optional dependencies: which extra of pyproject.toml installs a package, and the error when it is missing."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator

DISTRIBUTION = "model-compression-lab"

# Top-level modules that an extra installs, as they are imported. Extras that no module of the lab imports are left out.
MODULES: dict[str, tuple[str, ...]] = {
    "language": ("gguf", "rouge_score", "sacrebleu"),
    "postgres": ("psycopg2",),
    "study": ("alembic", "fastapi", "fpdf", "itsdangerous", "pydantic", "starlette", "uvicorn"),
    "text": ("tokenizers", "transformers"),
    "tune": ("optuna",),
}


def extra_of(module: str) -> str | None:
    """Return the extra that installs `module` (a dotted name), or None if none does."""
    top = module.partition(".")[0]
    return next((extra for extra, modules in MODULES.items() if top in modules), None)


@contextmanager
def explain_missing() -> Iterator[None]:
    """Turn a failed import of an extra's package into one sentence that names the extra.

    Raises UserError in place of the ImportError; any other ImportError passes through unchanged.
    """
    try:
        yield
    except ImportError as error:
        module = _missing_module(error)
        extra = extra_of(module)
        if extra is None:
            raise
        raise UserError(
            f"This needs the package {module.partition('.')[0]}, which is not installed: "
            f"pip install '{DISTRIBUTION}[{extra}]'."
        ) from error


def _missing_module(error: BaseException | None) -> str:
    """Return the module that was not found, or "" if one was found but could not be imported."""
    while error is not None:  # Optuna raises a plain ImportError from the one that names the database driver
        if isinstance(error, ModuleNotFoundError):
            return error.name or ""
        error = error.__cause__
    return ""
