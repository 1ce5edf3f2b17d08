"""What models of images in the Hugging Face format say of their images, in the preprocessor_config.json beside them."""

from __future__ import annotations

from pathlib import Path

from compression.errors import UserError
from compression.models import hub


def normalization(name: str) -> dict[str, list[float]] | None:
    """Return `mean` and `std` of each channel, for pixels in [0, 1], that the model `name` takes images with.

    None if it does not say. Raises UserError for a model that takes the channels in another order than the tasks give.
    """
    from transformers.image_processing_base import ImageProcessingMixin  # part of the extra `text`

    is_local = Path(name).is_dir() or not hub.is_reachable()
    try:
        said, _ = ImageProcessingMixin.get_image_processor_dict(name, local_files_only=is_local)
    except (OSError, ValueError):  # there is no such file
        return None
    if said.get("do_flip_channel_order"):
        raise UserError(f"{name} takes the channels of images as blue, green, red, and tasks give red, green, blue.")
    if not said.get("do_normalize", True):
        return {"mean": [0.0], "std": [1.0]}
    mean, std = said.get("image_mean"), said.get("image_std")
    return {"mean": _list(mean), "std": _list(std)} if mean and std else None


def _list(values: float | list[float]) -> list[float]:
    return [values] if isinstance(values, (int, float)) else list(values)
