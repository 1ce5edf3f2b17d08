"""Normalizing and augmenting batches of uint8 images `(batch, channels, height, width)`.

Random numbers are drawn on the CPU and moved to the images, so that every device makes the same augmentation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Generator, Tensor
from torch.nn import functional

from compression.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from compression.tasks import TaskRequest


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 images with mean 0 and standard deviation 1.

    `mean` and `std` are those of each channel of the data set, for pixels in [0, 1].
    """
    center, scale = (255 * torch.tensor([mean, std], device=images.device))[:, :, None, None]
    normalized: Tensor = (images - center) / scale
    return normalized


@dataclass(frozen=True)
class Normalization:
    """The mean and the standard deviation of each channel of a data set, for pixels in [0, 1]."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, images: Any) -> Tensor:
        """Return normalized images, float32 `(batch, channels, height, width)`, of uint8 ones."""
        return normalize(images, self.mean, self.std)

    def described(self) -> dict[str, list[float]]:
        """Return mean and standard deviation as JSON holds them."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def requested(self, request: TaskRequest) -> Normalization:
        """Return this one with the mean and the standard deviation that `request` gives instead, if any.

        Raises UserError if there is not one number, or one for each channel, or if one is not for pixels in [0, 1].
        """
        chosen = Normalization(
            self._per_channel("mean", request.mean) or self.mean, self._per_channel("std", request.std) or self.std
        )
        if not all(0 <= value <= 1 for value in chosen.mean) or not all(0 < value <= 1 for value in chosen.std):
            raise UserError(
                f"mean={_slashed(chosen.mean)} and std={_slashed(chosen.std)} are out of range: they are for pixels in "
                "[0, 1] (divide those for pixels in 0 to 255 by 255), and std is not 0."
            )
        return chosen

    def _per_channel(self, name: str, values: tuple[float, ...]) -> tuple[float, ...]:
        if len(values) not in (0, 1, len(self.mean)):
            raise UserError(f"{name}={_slashed(values)} has {len(values)} numbers; it takes 1 or {len(self.mean)}.")
        return values * len(self.mean) if len(values) == 1 else values


def _slashed(values: tuple[float, ...]) -> str:
    """Return a list of numbers as a field takes it."""
    return "/".join(f"{value:g}" for value in values)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return an image as 8-bit colour, upright: what is seen when it is opened in a browser.

    Turned as its EXIF orientation says; on white where it is transparent; 16-bit greys from the whole range, 0 to
    65535, to 0 to 255. Raises ValueError for 32-bit greys, whose range is not told.
    """
    is_16_bit = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    image = ImageOps.exif_transpose(image)
    if is_16_bit:
        return Image.fromarray(np.rint(np.asarray(image) / 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise ValueError(f"greys of 32 bits (mode {image.mode}) have no fixed range; save them with 8 or 16 bits")
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image.convert("RGB")


def random_flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    flipped = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(3), images)


def random_crop(images: Tensor, padding: int, generator: Generator) -> Tensor:
    """Pad each image with `padding` zeros on all sides, and crop it to its size at a random place.

    The standard augmentation of CIFAR-10, with 4 pixels: He et al. 2015, arXiv:1512.03385, section 4.2.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(0, 2 * padding + 1, (2, n), generator=generator).to(images.device)
    windows = functional.pad(images, [padding] * 4).unfold(2, height, 1).unfold(3, width, 1)  # views, no copies
    return windows[torch.arange(n, device=images.device), :, top, left]


def cutout(images: Tensor, size: int, generator: Generator) -> Tensor:
    """Cover a square of `size` pixels in each image with the batch's mean colour; part of it may lie outside.

    DeVries and Taylor 2017, arXiv:1708.04552. The mean colour is what normalization turns into zero.
    """
    n, _, height, width = images.shape
    rows = _window_mask(torch.randint(0, height, (n, 1), generator=generator), height, size)
    columns = _window_mask(torch.randint(0, width, (n, 1), generator=generator), width, size)
    square = (rows[:, :, None] & columns[:, None, :])[:, None].to(images.device)
    # Summed as integers, so that the order of summation, which depends on the device, does not matter.
    mean = images.sum((0, 2, 3), dtype=torch.long) // (n * height * width)
    return torch.where(square, mean.to(images.dtype)[:, None, None], images)


def _window_mask(centers: Tensor, length: int, size: int) -> Tensor:
    """Mark the `size` positions around each center `(n, 1)`, as booleans `(n, length)`."""
    first = centers - size // 2
    positions = torch.arange(length)
    return (positions >= first) & (positions < first + size)
