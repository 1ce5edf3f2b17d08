"""Small networks: students, and models for images of a few pixels."""

from __future__ import annotations

from collections import OrderedDict
from math import prod
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compression.models.width import scale_channels

if TYPE_CHECKING:
    from collections.abc import Sequence


class ConvNet(nn.Module):
    """Blocks of convolution, batch norm, pooling and ReLU, then two linear layers.

    Every block halves height and width. Takes images `(batch, *input_shape)` with sides of at least
    `2 ** len(channels)`, returns logits `(batch, outputs)`.
    """

    def __init__(
        self, outputs: int, input_shape: Sequence[int], channels: Sequence[int], hidden: int, dropout: float
    ) -> None:
        super().__init__()
        before = [input_shape[0], *channels]
        self.stages = nn.Sequential(*(_stage(before[i], width) for i, width in enumerate(channels)))
        pixels = prod(side // 2 ** len(channels) for side in input_shape[1:])
        self.hidden = nn.Sequential(
            OrderedDict(
                fc=nn.Linear(channels[-1] * pixels, hidden),
                bn=nn.BatchNorm1d(hidden),
                relu=nn.ReLU(),
                dropout=nn.Dropout(dropout),
            )
        )
        self.fc = nn.Linear(hidden, outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(self.hidden(self.stages(images).flatten(1)))
        return logits


def _stage(inputs: int, outputs: int) -> nn.Module:
    # ReLU and max pooling commute; pooling first leaves the ReLU a quarter of the work.
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(inputs, outputs, 3, padding=1),
            bn=nn.BatchNorm2d(outputs),
            pool=nn.MaxPool2d(2),
            relu=nn.ReLU(),
        )
    )


class MLP(nn.Module):
    """A multilayer perceptron on the flattened image: `(batch, *input_shape)` to logits `(batch, outputs)`."""

    def __init__(self, outputs: int, input_shape: Sequence[int], hidden: Sequence[int]) -> None:
        super().__init__()
        before = [prod(input_shape), *hidden]
        self.stages = nn.Sequential(
            *(
                nn.Sequential(OrderedDict(fc=nn.Linear(before[i], width), relu=nn.ReLU()))
                for i, width in enumerate(hidden)
            )
        )
        self.fc = nn.Linear(hidden[-1], outputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(self.stages(images.flatten(1)))
        return logits


def cnn5(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ConvNet:
    """The student of Hao-Ting Li's knowledge-distillation-pytorch: 5 layers, 0.36 M parameters at 32x32 pixels."""
    *channels, hidden = scale_channels((32, 64, 128, 128), width)
    return ConvNet(outputs, input_shape, channels, hidden, dropout=0.5)


def digits_cnn(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ConvNet:
    """A teacher for 8x8 images: 53 k parameters."""
    *channels, hidden = scale_channels((32, 64, 128), width)
    return ConvNet(outputs, input_shape, channels, hidden, dropout=0.25)


def digits_cnn_small(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ConvNet:
    """A student for 8x8 images: 1.1 k parameters, a percent or two behind its teacher."""
    *channels, hidden = scale_channels((4, 8, 16), width)
    return ConvNet(outputs, input_shape, channels, hidden, dropout=0.0)


def mlp(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> MLP:
    """Two hidden layers, of 256 and 128 units."""
    return MLP(outputs, input_shape, scale_channels((256, 128), width))
