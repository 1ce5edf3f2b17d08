"""Random small networks for images of 8x8, drawn from a seed: what people build, and what they build by accident."""

from __future__ import annotations

import random

import torch
from torch import nn
from torch.nn import functional as F


def random_network(seed: int, depth: int | None = None) -> nn.Module:
    """A classifier `(batch, 1, 8, 8)` -> `(batch, 3)` with the statistics of a trained one, in eval mode."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    model = RandomNetwork(draw, depth or draw.randint(1, 4))
    model(torch.randn(2, 1, 8, 8))  # LazyLinear takes its size
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.3, 2.0)
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.normal_(module.bias, 0, 0.3)
    return model.eval()


class RandomNetwork(nn.Module):
    def __init__(self, draw, depth):
        super().__init__()
        channels = draw.choice([4, 8])
        self.stem = nn.Conv2d(1, channels, 3, padding=1)
        self.blocks = nn.ModuleList()
        for _ in range(depth):
            block = draw.choice(BLOCKS)(draw, channels)
            self.blocks.append(block)
            channels = getattr(block, "outputs", channels)
        if draw.random() < 0.3:  # a module under two names, called twice where shapes allow it
            self.blocks.append(nn.Conv2d(channels, channels, 3, padding=1))
            self.blocks.append(self.blocks[-1])
        self.pool = draw.choice([Pooled(how) for how in POOLS])
        self.fc = nn.LazyLinear(3)
        self.unused = nn.Conv2d(3, 3, 1) if draw.random() < 0.3 else None
        self.returns = draw.choice(["tensor", "tensor", "dict", "tuple"])
        self.scale = nn.Parameter(torch.ones(channels, 1, 1)) if draw.random() < 0.3 else None

    def forward(self, images):
        hidden = self.stem(images)
        for block in self.blocks:
            hidden = block(hidden)
        if self.scale is not None:
            hidden = hidden * self.scale
        features = self.pool(hidden).flatten(1)
        logits = self.fc(features)
        if self.returns == "dict":
            return {"features": features, "logits": logits}
        return (logits, features) if self.returns == "tuple" else logits


class Pooled(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.how = how
        self.module = how() if isinstance(how, type) else None

    def forward(self, images):
        return self.how(images) if self.module is None else self.module(images)


class GlobalMean(nn.AdaptiveAvgPool2d):
    def __init__(self):
        super().__init__(1)


def adaptive_pool():
    return nn.AdaptiveAvgPool2d(1)


POOLS = [
    lambda x: x.mean((2, 3)),
    lambda x: F.adaptive_avg_pool2d(x, 1),
    lambda x: F.avg_pool2d(x, x.shape[-2:]),
    lambda x: F.max_pool2d(x, 2),
    nn.Flatten,
    GlobalMean,
]


def norm(draw, channels):
    return draw.choice(
        [
            nn.BatchNorm2d, nn.BatchNorm2d, nn.BatchNorm2d,
            lambda c: nn.BatchNorm2d(c, affine=False),
            lambda c: nn.BatchNorm2d(c, track_running_stats=False),
            lambda c: nn.GroupNorm(2, c),
            lambda c: nn.InstanceNorm2d(c, affine=True),
            lambda c: nn.Identity(),
        ]
    )(channels)  # fmt: skip


def activation(draw):
    return draw.choice(
        [
            nn.ReLU(), nn.ReLU(inplace=True), Function(F.relu), Function(lambda x: F.relu(x, inplace=True)),
            Function(torch.relu_), nn.ReLU6(), nn.SiLU(inplace=True), nn.GELU(), nn.Hardswish(), nn.LeakyReLU(0.1),
            nn.PReLU(), nn.Sigmoid(), nn.Identity(),
        ]
    )  # fmt: skip


class Function(nn.Module):
    """Without children or parameters, as people wrap functions."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, values):
        return self.function(values)


def conv(draw, inputs, outputs):
    kernel = draw.choice([1, 3, (3, 1)])
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    dilation = draw.choice([1, 1, 2]) if kernel == 3 else 1
    padding = draw.choice([tuple(dilation * (k // 2) for k in size), "same"])
    groups = draw.choice([1, 1, 2, inputs]) if outputs % inputs == 0 else 1
    return nn.Conv2d(
        inputs,
        outputs,
        kernel,
        padding=padding,
        dilation=dilation,
        groups=groups if inputs % groups == 0 else 1,
        bias=draw.random() < 0.5,
        padding_mode=draw.choice(["zeros", "zeros", "zeros", "reflect", "circular", "replicate"]),
    )


class Plain(nn.Module):
    """Convolution, norm and activation, in any order."""

    def __init__(self, draw, channels):
        super().__init__()
        self.outputs = draw.choice([channels, 2 * channels, 6])
        self.conv = conv(draw, channels, self.outputs)
        parts = [self.conv, norm(draw, self.outputs), activation(draw)]
        if draw.random() < 0.3:
            parts.append(nn.MaxPool2d(3, 1, 1))
        parts[1:] = draw.sample(parts[1:], len(parts) - 1)
        self.body = nn.Sequential(*parts)

    def forward(self, images):
        return self.body(images)


class Residual(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.first, self.second = conv(draw, channels, channels), conv(draw, channels, channels)
        self.norm, self.other_norm = norm(draw, channels), norm(draw, channels)
        self.act = activation(draw)
        self.how = draw.choice(["add", "in place", "torch.add", "sub", "stacked"])

    def forward(self, images):
        hidden = self.other_norm(self.second(self.act(self.norm(self.first(images)))))
        if self.how == "in place":
            hidden += images
        elif self.how == "torch.add":
            hidden = torch.add(hidden, images)
        elif self.how == "sub":
            hidden = hidden - images
        elif self.how == "stacked":
            hidden = torch.stack([hidden, images]).sum(0)
        else:
            hidden = hidden + images
        return self.act(hidden)


class NormBesideItsInput(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.conv, self.norm = conv(draw, channels, channels), norm(draw, channels)

    def forward(self, images):
        hidden = self.conv(images)
        return self.norm(hidden) - hidden


class SharedNorm(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.first, self.second = conv(draw, channels, channels), conv(draw, channels, channels)
        self.norm, self.act = norm(draw, channels), activation(draw)

    def forward(self, images):
        return self.act(self.norm(self.second(self.act(self.norm(self.first(images))))))


class SharedLayer(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.conv, self.norm, self.other = conv(draw, channels, channels), norm(draw, channels), norm(draw, channels)

    def forward(self, images):
        return self.other(self.conv(F.relu(self.norm(self.conv(images)))))


class SharedWeight(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.first, self.second = (
            nn.Conv2d(channels, channels, 3, padding=1),
            nn.Conv2d(channels, channels, 3, padding=1),
        )
        self.second.weight = self.first.weight
        self.norm = norm(draw, channels)

    def forward(self, images):
        return self.norm(self.second(F.relu(self.first(images))))


class Dense(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.outputs = channels + 4
        self.norm, self.conv, self.act = norm(draw, channels), conv(draw, channels, 4), activation(draw)

    def forward(self, images):
        return torch.cat([images, self.conv(self.act(self.norm(images)))], 1)


class Chunked(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.conv = conv(draw, channels // 2, channels // 2)

    def forward(self, images):
        left, right = images.chunk(2, 1)
        mixed = torch.cat([self.conv(left), right], 1)
        n, c, h, w = mixed.shape
        return mixed.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Attention(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.norm = draw.choice([nn.LayerNorm(channels), nn.Identity()])
        self.mlp = nn.Sequential(nn.Linear(channels, 8), nn.BatchNorm1d(64), nn.GELU(), nn.Linear(8, channels))

    def forward(self, images):
        if images[0, 0].numel() != 64:
            return images
        tokens = self.norm(images.flatten(2).transpose(1, 2))
        tokens = tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return self.mlp(tokens).transpose(1, 2).unflatten(2, images.shape[2:])


class Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, draw, channels):
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, 2, 1), nn.Conv2d(2, channels, 1)

    def forward(self, images):
        return images * torch.sigmoid(self.up(F.relu(self.down(images.mean((2, 3), keepdim=True)))))


class Transposed(nn.Module):
    def __init__(self, draw, channels):
        super().__init__()
        self.outputs = 4
        self.down = nn.Conv2d(channels, channels, 2, stride=2)
        self.up, self.norm = nn.ConvTranspose2d(channels, 4, 2, stride=2), norm(draw, 4)

    def forward(self, images):
        return self.norm(self.up(self.down(images)))


class FunctionalWeight(nn.Module):
    """Uses one weight as a layer and in a function."""

    def __init__(self, draw, channels):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(draw, channels)

    def forward(self, images):
        return self.norm(self.conv(images)) + F.conv2d(images, self.conv.weight, padding=1)


BLOCKS = [
    Plain, Plain, Plain, Residual, Residual, NormBesideItsInput, SharedNorm, SharedLayer, SharedWeight, Dense, Chunked,
    Attention, Gated, Transposed, FunctionalWeight,
]  # fmt: skip
