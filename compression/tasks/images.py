"""Normalizing and augmenting batches of uint8 images `(batch, channels, height, width)`.

Random numbers are drawn on the CPU and moved to the images, so that every device makes the same augmentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def normalize(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Return float32 images with mean 0 and standard deviation 1.

    `mean` and `std` are those of each channel of the data set, for pixels in [0, 1].
    """
    center, scale = (255 * torch.tensor([mean, std], device=images.device))[:, :, None, None]
    normalized: Tensor = (images - center) / scale
    return normalized


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
