"""Two small convolutional networks for 28 x 28 grey images: one plain stack, one with residual connections.

Both are sized for early negative prediction: the first convolution sees one channel and so cannot be staged, but it
does less than 1 % of the multiply-adds; nearly all the rest is in 3x3 convolutions over 32 or more channels, each
followed by batch norm and ReLU.
"""

from __future__ import annotations

from collections import OrderedDict
from itertools import pairwise

from torch import Tensor, nn

NUM_CLASSES = 10

VGG_WIDTHS: tuple[int | None, ...] = (32, None, 64, 64, None, 128, 128, None, 192, 192)
"""Output channels of each 3x3 convolution; None is a 2x2 max-pool."""

RESNET_WIDTHS = (32, 48, 96, 96, 192)
"""Output channels of the stem, then of each BasicBlock; a block that changes the width also halves height and width."""


class VggFashion(nn.Module):
    """A VGG-style network: conv3x3-BN-ReLU stacks with max-pools, global average pool, one linear layer.

    Input: float32, N x 1 x 28 x 28, normalised (`exprune_fx.zoo.normalise`). Output: float32 logits, N x 10.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for width in VGG_WIDTHS:
            if width is None:
                layers.append(nn.MaxPool2d(2))
                continue
            conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
            channels = width
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(channels, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N x 10) of normalised images (N x 1 x 28 x 28)."""
        logits: Tensor = self.classifier(self.flatten(self.pool(self.features(x))))
        return logits


class BasicBlock(nn.Module):
    """Two conv3x3-BN with a shortcut around them; the second ReLU comes after the add.

    Args:
        in_channels: channels of the input.
        channels: channels of the output. Where they differ from `in_channels` the first convolution has stride 2 and
            the shortcut is a 1x1 convolution of stride 2 with batch norm; else the shortcut is the identity.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        stride = 1 if in_channels == channels else 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2:
            self.shortcut = nn.Sequential(
                OrderedDict(
                    conv=nn.Conv2d(in_channels, channels, 1, stride=2, bias=False),
                    bn=nn.BatchNorm2d(channels),
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """N x in_channels x H x W -> N x channels x H' x W', where H' = H, or ceil(H / 2) with stride 2."""
        branch = self.relu1(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        out: Tensor = self.relu2(branch + self.shortcut(x))
        return out


class ResnetFashion(nn.Module):
    """A residual network: conv stem, four BasicBlocks, global average pool, one linear layer.

    Input: float32, N x 1 x 28 x 28, normalised (`exprune_fx.zoo.normalise`). Output: float32 logits, N x 10.
    """

    def __init__(self) -> None:
        super().__init__()
        stem = RESNET_WIDTHS[0]
        self.conv = nn.Conv2d(1, stem, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        self.relu = nn.ReLU()
        self.blocks = nn.Sequential(*(BasicBlock(before, after) for before, after in pairwise(RESNET_WIDTHS)))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.classifier = nn.Linear(RESNET_WIDTHS[-1], NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N x 10) of normalised images (N x 1 x 28 x 28)."""
        x = self.relu(self.bn(self.conv(x)))
        logits: Tensor = self.classifier(self.flatten(self.pool(self.blocks(x))))
        return logits


def vgg_fashion() -> VggFashion:
    """A `VggFashion` with fresh random weights, in training mode; `exprune_fx.zoo.load` gives the trained one."""
    return VggFashion()


def resnet_fashion() -> ResnetFashion:
    """A `ResnetFashion` with fresh random weights, in training mode; `exprune_fx.zoo.load` gives the trained one."""
    return ResnetFashion()
