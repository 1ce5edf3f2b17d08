"""Residual networks for small images: He et al. 2015, arXiv:1512.03385.

If a block changes the shape, its shortcut is a 1x1 convolution (option B of section 3.3). Option A, a strided slice
padded with zero channels, has no weights, but pruning cannot trace channels through it.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from torch import Tensor, nn

from compression.models.width import scale_channels
from compression.nn.layers import Add

if TYPE_CHECKING:
    from collections.abc import Sequence


class BasicBlock(nn.Module):
    """Two 3x3 convolutions plus a shortcut; He et al. 2015, figure 2.

    Takes `(batch, inputs, h, w)`, returns `(batch, outputs, h / stride, w / stride)`.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        # A ReLU of its own at each place: what is called twice is left alone by rewrites (nn.graph), and hooks see one
        # output.
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        keeps_shape = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if keeps_shape else _projection(inputs, outputs, stride)
        self.add = Add()
        self.relu2 = nn.ReLU()

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's feature maps."""
        hidden = self.relu1(self.bn1(self.conv1(images)))
        outputs: Tensor = self.relu2(self.add(self.bn2(self.conv2(hidden)), self.shortcut(images)))
        return outputs


def _projection(inputs: int, outputs: int, stride: int) -> nn.Module:
    conv = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(outputs)))


class ResNet(nn.Module):
    """A 3x3 convolution, stages of `depth` blocks, global average pooling and a linear layer.

    Every stage but the first halves height and width. Takes images `(batch, channels, height, width)` of any size,
    returns logits `(batch, outputs)`. `widths` are the channels of the stages.
    """

    def __init__(self, outputs: int, channels: int, widths: Sequence[int], depth: int) -> None:
        super().__init__()
        conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stem = nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(widths[0]), relu=nn.ReLU()))
        before = [widths[0], *widths]
        self.stages = nn.Sequential(
            *(_stage(before[i], width, depth, 1 if i == 0 else 2) for i, width in enumerate(widths))
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], outputs)
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(self.pool(self.stages(self.stem(images))).flatten(1))
        return logits


def _stage(inputs: int, outputs: int, depth: int, stride: int) -> nn.Module:
    first = BasicBlock(inputs, outputs, stride)
    return nn.Sequential(first, *(BasicBlock(outputs, outputs) for _ in range(depth - 1)))


def _init_weights(module: nn.Module) -> None:
    """He et al. 2015, arXiv:1502.01852, eq. 14: keeps the variance of the gradients through ReLUs."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def resnet18(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ResNet:
    """ResNet-18 (He et al. 2015, table 1) for 32x32 images: a 3x3 stem without pooling."""
    return ResNet(outputs, input_shape[0], scale_channels((64, 128, 256, 512), width), depth=2)


def _cifar_resnet(outputs: int, input_shape: Sequence[int], width: float, depth: int) -> ResNet:
    """A network of 6n+2 layers (He et al. 2015, section 4.2) for n = `depth`."""
    return ResNet(outputs, input_shape[0], scale_channels((16, 32, 64), width), depth)


def resnet8(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ResNet:
    """ResNet-8 for CIFAR-10, smaller than those of the paper."""
    return _cifar_resnet(outputs, input_shape, width, depth=1)


def resnet20(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ResNet:
    """ResNet-20 for CIFAR-10."""
    return _cifar_resnet(outputs, input_shape, width, depth=3)


def resnet32(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ResNet:
    """ResNet-32 for CIFAR-10."""
    return _cifar_resnet(outputs, input_shape, width, depth=5)


def resnet56(outputs: int, input_shape: Sequence[int], width: float = 1.0) -> ResNet:
    """ResNet-56 for CIFAR-10."""
    return _cifar_resnet(outputs, input_shape, width, depth=9)
