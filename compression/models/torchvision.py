"""The ImageNet networks of torchvision, without its weights but with its parameter names.

So the state dicts that torchvision publishes can be loaded into them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torchvision import models
from torchvision.models.resnet import Bottleneck, ResNet

from compression.errors import UserError
from compression.nn.layers import Add

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class QuantizableBottleneck(Bottleneck):  # type: ignore[misc] # torchvision has no type hints
    """torchvision's bottleneck with modules of their own for the addition and each ReLU, for quantizers to see.

    Takes `(batch, inputs, h, w)`, returns `(batch, 4 * planes, h / stride, w / stride)`.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        self.add = Add()

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's feature maps."""
        hidden = self.relu1(self.bn1(self.conv1(images)))
        hidden = self.bn3(self.conv3(self.relu2(self.bn2(self.conv2(hidden)))))
        shortcut = images if self.downsample is None else self.downsample(images)
        outputs: Tensor = self.relu(self.add(hidden, shortcut))
        return outputs


def alexnet(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """AlexNet with one column, Krizhevsky 2014, arXiv:1404.5997; for images of at least 63x63 pixels."""
    return _build("alexnet", models.alexnet, 63, outputs, input_shape, width)


def vgg16(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """VGG-16 without batch norms, Simonyan and Zisserman 2014, arXiv:1409.1556; for images of at least 32x32 pixels."""
    return _build("vgg16", models.vgg16, 32, outputs, input_shape, width)


def resnet50(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> nn.Module:
    """ResNet-50, He et al. 2015, with the stride in the 3x3 convolutions; for images of at least 32x32 pixels."""
    return _build("resnet50", _resnet50, 32, outputs, input_shape, width)


def _resnet50(num_classes: int) -> ResNet:
    return ResNet(QuantizableBottleneck, [3, 4, 6, 3], num_classes)


def _build(
    name: str, build: Callable[..., nn.Module], side: int, outputs: int, shape: Sequence[int], width: float
) -> nn.Module:
    """Call `build`. Raises UserError for images that are not RGB or have sides below `side`, and for another width."""
    if shape[0] != 3 or min(shape[1:]) < side:
        given = "x".join(map(str, shape))
        raise UserError(f"{name} takes images of 3 channels and at least {side}x{side} pixels; these are {given}.")
    if width != 1.0:
        raise UserError(f"{name} comes in one width: leave width={width:g} out, or take a resnet18.")
    model = build(num_classes=outputs)
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False  # else the output that a hook has seen of the layer before changes afterwards
    return model
