"""MobileNetV2, depthwise convolutions with a multiplier, and squeeze-and-excite."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import (
    Architecture,
    batched,
    bn,
    free,
    image,
    into,
    out,
    out_b,
    pinned,
    randomise,
)


def conv_bn(width_in: int, width: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(width)]


class InvertedResidual(nn.Module):
    def __init__(self, width_in: int, hidden: int, width: int, stride: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if hidden != width_in:
            layers += [*conv_bn(width_in, hidden, 1), nn.ReLU6(inplace=True)]
        layers += [*conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(inplace=True), *conv_bn(hidden, width, 1)]
        self.conv = nn.Sequential(*layers)
        self.residual = stride == 1 and width_in == width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.conv(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(*conv_bn(3, 4, 3), nn.ReLU6())
        self.block1 = InvertedResidual(4, 4, 5, 1)
        self.block2 = InvertedResidual(5, 11, 6, 2)
        self.block3 = InvertedResidual(6, 13, 6, 1)
        self.last = nn.Sequential(*conv_bn(6, 9, 1), nn.ReLU6())
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(9, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.last(self.block3(self.block2(self.block1(self.stem(x)))))
        y: torch.Tensor = self.classifier(x.mean([2, 3]))
        return y


def mobilenet_v2(generator: torch.Generator) -> Architecture:
    """A depthwise convolution has one weight row per channel and reads no input axis: rows move with channels."""
    x = image(generator)
    return Architecture(
        randomise(MobileNetV2(), generator),
        (x,),
        batched(x),
        (
            free(4, out("stem.0", "block1.conv.0"), bn("stem.1", "block1.conv.1"), into("block1.conv.3")),
            free(5, out("block1.conv.3"), bn("block1.conv.4"), into("block2.conv.0")),
            free(
                11,
                out("block2.conv.0", "block2.conv.3"),
                bn("block2.conv.1", "block2.conv.4"),
                into("block2.conv.6"),
            ),
            free(
                6,
                out("block2.conv.6", "block3.conv.6"),
                bn("block2.conv.7", "block3.conv.7"),
                into("block3.conv.0", "last.0"),
            ),
            free(
                13,
                out("block3.conv.0", "block3.conv.3"),
                bn("block3.conv.1", "block3.conv.4"),
                into("block3.conv.6"),
            ),
            free(9, out("last.0"), bn("last.1"), into("classifier.1")),
            pinned(3, "stem.0.weight", 1),
            pinned(10, "classifier.1.weight", 0),
        ),
    )


class DepthwiseMultiplier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.depthwise = nn.Conv2d(5, 20, 3, padding=1, groups=5)
        self.pointwise = nn.Conv2d(20, 7, 1)
        self.fc = nn.Linear(7, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.pointwise(F.relu(self.depthwise(F.relu(self.stem(x))))))
        y: torch.Tensor = self.fc(x.amax((2, 3)))
        return y


def depthwise_multiplier(generator: torch.Generator) -> Architecture:
    """Each of 5 channels makes 4: those 4 move freely for each channel, and with their channel as a block."""
    x = image(generator, size=6)
    return Architecture(
        randomise(DepthwiseMultiplier(), generator),
        (x,),
        batched(x),
        (
            free(5, out_b("stem", "depthwise"), into("pointwise")),
            free(4, out_b("depthwise"), into("pointwise"), repeats=5),
            free(7, out_b("pointwise"), into("fc")),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


class SqueezeExcite(nn.Module):
    """One block that squeezes by linears and a view, and one by 1x1 convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(6)
        self.squeeze1 = nn.Linear(6, 4)
        self.excite1 = nn.Linear(4, 6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.squeeze2 = nn.Conv2d(8, 5, 1)
        self.excite2 = nn.Conv2d(5, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        gate = F.adaptive_avg_pool2d(x, 1).view(x.shape[0], -1)
        gate = torch.sigmoid(self.excite1(F.relu(self.squeeze1(gate))))
        x = x * gate.view(x.shape[0], 6, 1, 1).expand_as(x)
        x = F.silu(self.conv2(x))
        gate = self.excite2(F.silu(self.squeeze2(x.mean((2, 3), keepdim=True))))
        x = x * F.hardsigmoid(gate)
        y: torch.Tensor = self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))
        return y


def squeeze_excite(generator: torch.Generator) -> Architecture:
    """The gate multiplies channel by channel, so the excitation's outputs are tied to the channels."""
    x = image(generator, size=6)
    return Architecture(
        randomise(SqueezeExcite(), generator),
        (x,),
        batched(x),
        (
            free(6, out("conv1"), bn("bn1"), into("squeeze1", "conv2"), out_b("excite1")),
            free(4, out_b("squeeze1"), into("excite1")),
            free(8, out_b("conv2", "excite2"), into("squeeze2", "fc")),
            free(5, out_b("squeeze2"), into("excite2")),
            pinned(3, "conv1.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )
