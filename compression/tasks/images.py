"""Images as uint8 tensors `(batch, channels, height, width)`: normalising and augmenting whole batches.

Random numbers are drawn on the CPU and moved to the images, so that every device sees the same augmentation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Generator, Tensor
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Sequence


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """float32 images of mean 0 and deviation 1; `mean` and `std` are the channels', for images in [0, 1]."""
    centre, scale = (255 * torch.tensor([mean, std], device=images.device))[:, :, None, None]
    return (images - centre) / scale


def flip(images: Tensor, generator: Generator) -> Tensor:
    """Mirror each image left to right with probability 1/2."""
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen.to(images.device)[:, None, None, None], images.flip(3), images)


def shift(images: Tensor, generator: Generator, pixels: int) -> Tensor:
    """Pad each image with `pixels` zeros on all sides and cut its size out at random.

    The standard augmentation of CIFAR-10: He et al. 2015, arXiv:1512.03385, section 4.2, with 4 pixels.
    """
    n, _, height, width = images.shape
    top, left = torch.randint(0, 2 * pixels + 1, (2, n), generator=generator).to(images.device)
    windows = functional.pad(images, [pixels] * 4).unfold(2, height, 1).unfold(3, width, 1)  # views, no copies
    return windows[torch.arange(n, device=images.device), :, top, left]


def cutout(images: Tensor, size: int, generator: Generator) -> Tensor:
    """Cover a square of `size` pixels with the batch's mean colour; a part of it may lie outside the image.

    DeVries and Taylor 2017, arXiv:1708.04552. The mean colour is what normalisation turns into zero.
    """
    n, channels, height, width = images.shape
    rows = _within(torch.randint(0, height, (n, 1), generator=generator), height, size)
    columns = _within(torch.randint(0, width, (n, 1), generator=generator), width, size)
    square = (rows[:, :, None] & columns[:, None, :])[:, None].to(images.device)
    # Whole numbers, so that the order of summation, and with it the device, does not matter.
    mean = images.sum((0, 2, 3), dtype=torch.long) // (n * height * width)
    return torch.where(square, mean.to(images.dtype)[:, None, None], images)


def _within(centre: Tensor, length: int, size: int) -> Tensor:
    """`(n, length)`: whether a position lies in the `size` positions around its row's centre."""
    first = centre - size // 2
    position = torch.arange(length)
    return (position >= first) & (position < first + size)
