"""The ImageNet networks of torchvision: built here, without its weights, under its parameter names.

A state dict that torchvision publishes for one of them can therefore be loaded into it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from compression.errors import UserError
from compression.nn.layers import Add


class SummedBottleneck(Bottleneck):
    """torchvision's bottleneck with its sum and each of its ReLUs as a module of its own, so that quantizers see them.

    Takes `(batch, inputs, h, w)`, gives `(batch, 4 * planes, h / stride, w / stride)`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.add = Add()

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.relu1(self.bn1(self.conv1(images)))
        hidden = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(hidden)))))
        shortcut = images if self.downsample is None else self.downsample(images)
        return self.relu(self.add(hidden, shortcut))


def alexnet(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """AlexNet of one column, Krizhevsky 2014, arXiv:1404.5997; pictures of at least 63x63 pixels."""
    return _built("alexnet", models.alexnet, 63, outputs, input_shape, width)


def vgg16(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """VGG-16 without batch norms, Simonyan and Zisserman 2014, arXiv:1409.1556; at least 32x32 pixels."""
    return _built("vgg16", models.vgg16, 32, outputs, input_shape, width)


def resnet50(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """ResNet-50, He et al. 2015, with the stride in the 3x3 convolutions; at least 32x32 pixels."""
    return _built("resnet50", _resnet50, 32, outputs, input_shape, width)


def _resnet50(num_classes: int) -> ResNet:
    return ResNet(SummedBottleneck, [3, 4, 6, 3], num_classes)


def _built(
    name: str, build: Callable[..., nn.Module], side: int, outputs: int, shape: Sequence[int], width: float
) -> nn.Module:
    """What `build` makes; UserError for pictures it was not made for, and for another width."""
    if shape[0] != 3 or min(shape[1:]) < side:
        given = "x".join(map(str, shape))
        raise UserError(f"{name} takes pictures of 3 colours and at least {side}x{side} pixels; these are {given}.")
    if width != 1.0:
        raise UserError(f"{name} comes in one width: leave width={width:g} out, or take a resnet18.")
    model = build(num_classes=outputs)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # what was seen of a layer's output must not change behind the observer's back
    return model
