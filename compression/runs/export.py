"""Export a stored model as one file, or a folder, that other tools read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from compression.deploy.formats import FORMATS
from compression.errors import UserError, first_line
from compression.models import storage
from compression.runs import loading

if TYPE_CHECKING:
    from pathlib import Path


def write(spec: str, kind: str, output: Path) -> Path:
    """Write the model at `spec` (runs:/…, models:/… or a folder of the lab) to `output` in the format `kind`.

    Raises UserError where the format cannot hold the model, and then leaves no file.
    """
    with loading.stored_folder(spec) as folder:
        if folder is None:
            raise UserError(
                f"{spec} is no model of the lab: give runs:/ID/model, models:/NAME/VERSION or a run's folder."
            )
        model = storage.load(folder)
        if not output.parent.is_dir():
            raise UserError(f"{output} cannot be written: there is no folder {output.parent}.")
        try:
            return FORMATS[kind].write(model, folder, output)
        except OSError as error:
            raise UserError(f"Could not write {output}: {first_line(error)}.") from error
