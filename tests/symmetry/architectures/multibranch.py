"""Concatenations: U-Net with transposed convolutions, Inception, and YOLOv8's C2f with a chunk."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from tests.symmetry.architectures.common import (
    Architecture,
    Expected,
    at,
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


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.enc1 = nn.Conv2d(3, 4, 3, padding=1)
        self.enc2 = nn.Conv2d(4, 5, 3, padding=1)
        self.bottom = nn.Conv2d(5, 6, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(6, 7, 2, stride=2)
        self.dec2 = nn.Conv2d(12, 8, 3, padding=1)
        self.up1 = nn.ConvTranspose2d(8, 9, 2, stride=2)
        self.dec1 = nn.Conv2d(13, 11, 3, padding=1)
        self.last = nn.Conv2d(11, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        skip1 = F.relu(self.enc1(x))
        skip2 = F.relu(self.enc2(F.max_pool2d(skip1, 2)))
        x = F.relu(self.bottom(F.max_pool2d(skip2, 2)))
        x = F.relu(self.dec2(torch.cat((self.up2(x), skip2), 1)))
        x = F.relu(self.dec1(torch.cat((self.up1(x), skip1), 1)))
        y: torch.Tensor = self.last(x)
        return y


def unet(generator: torch.Generator) -> Architecture:
    """A transposed convolution's weight is (in, out, kernel, kernel); a skip is a segment of what reads it later."""
    x = image(generator)
    return Architecture(
        randomise(UNet(), generator),
        (x,),
        batched(x),
        (
            free(4, out_b("enc1"), into("enc2", "dec1")),
            free(5, out_b("enc2"), into("bottom", "dec2")),
            free(6, out_b("bottom"), at("up2.weight", 0)),
            free(7, at("up2.weight", 1), at("up2.bias", 0), into("dec2")),
            free(8, out_b("dec2"), at("up1.weight", 0)),
            free(9, at("up1.weight", 1), at("up1.bias", 0), into("dec1")),
            free(11, out_b("dec1"), into("last")),
            pinned(3, "enc1.weight", 1),
            pinned(2, "last.weight", 0),
        ),
    )


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.one = nn.Conv2d(5, 4, 1)
        self.three_reduce = nn.Conv2d(5, 2, 1)
        self.three = nn.Conv2d(2, 6, 3, padding=1)
        self.five_reduce = nn.Conv2d(5, 9, 1)
        self.five = nn.Conv2d(9, 8, 5, padding=2)
        self.pool = nn.Conv2d(5, 7, 1)
        self.merge = nn.Conv2d(25, 11, 1, bias=False)
        self.bn = nn.BatchNorm2d(11)
        self.fc = nn.Linear(11, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        branches = [
            self.one(x),
            self.three(F.relu(self.three_reduce(x))),
            self.five(F.relu(self.five_reduce(x))),
            self.pool(F.max_pool2d(x, 3, stride=1, padding=1)),
        ]
        x = F.relu(self.bn(self.merge(F.relu(torch.cat(branches, 1)))))
        y: torch.Tensor = self.fc(F.avg_pool2d(x, 6).flatten(1))
        return y


def inception(generator: torch.Generator) -> Architecture:
    x = image(generator, size=6)
    return Architecture(
        randomise(Inception(), generator),
        (x,),
        batched(x),
        (
            free(5, out_b("stem"), into("one", "three_reduce", "five_reduce", "pool")),
            free(4, out_b("one"), into("merge")),
            free(2, out_b("three_reduce"), into("three")),
            free(6, out_b("three"), into("merge")),
            free(9, out_b("five_reduce"), into("five")),
            free(8, out_b("five"), into("merge")),
            free(7, out_b("pool"), into("merge")),
            free(11, out("merge"), bn("bn"), into("fc")),
            pinned(3, "stem.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


class ConvBNSiLU(nn.Module):
    def __init__(self, width_in: int, width: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width_in, width, kernel, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.silu(self.bn(self.conv(x)), inplace=True)


class Bottleneck(nn.Module):
    def __init__(self, width: int, hidden: int, shortcut: bool) -> None:
        super().__init__()
        self.cv1 = ConvBNSiLU(width, hidden, 3)
        self.cv2 = ConvBNSiLU(hidden, width, 3)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.cv2(self.cv1(x))
        return x + y if self.shortcut else y


class C2f(nn.Module):
    def __init__(self, shortcut: bool) -> None:
        super().__init__()
        self.stem = ConvBNSiLU(3, 5, 3)
        self.cv1 = ConvBNSiLU(5, 8, 1)
        self.m = nn.ModuleList((Bottleneck(4, 6, shortcut), Bottleneck(4, 7, shortcut)))
        self.cv2 = ConvBNSiLU(16, 9, 1)
        self.fc = nn.Linear(9, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = list(self.cv1(self.stem(x)).chunk(2, 1))
        parts.extend(m(parts[-1]) for m in self.m)
        y: torch.Tensor = self.fc(self.cv2(torch.cat(parts, 1)).mean((2, 3)))
        return y


def _c2f(generator: torch.Generator, shortcut: bool, stream: tuple[Expected, ...]) -> Architecture:
    x = image(generator, size=6)
    return Architecture(
        randomise(C2f(shortcut), generator),
        (x,),
        batched(x),
        (
            *stream,
            free(5, out("stem.conv"), bn("stem.bn"), into("cv1.conv")),
            free(4, out("cv1.conv"), bn("cv1.bn"), into("cv2.conv")),
            free(6, out("m.0.cv1.conv"), bn("m.0.cv1.bn"), into("m.0.cv2.conv")),
            free(7, out("m.1.cv1.conv"), bn("m.1.cv1.bn"), into("m.1.cv2.conv")),
            free(9, out("cv2.conv"), bn("cv2.bn"), into("fc")),
            pinned(3, "stem.conv.weight", 1),
            pinned(10, "fc.weight", 0),
        ),
    )


def c2f_shortcut(generator: torch.Generator) -> Architecture:
    """The second half of the chunk and both bottlenecks' outputs are one stream, three segments of the last read."""
    stream = free(
        4,
        out("cv1.conv", "m.0.cv2.conv", "m.1.cv2.conv"),
        bn("cv1.bn", "m.0.cv2.bn", "m.1.cv2.bn"),
        into("m.0.cv1.conv", "m.1.cv1.conv", "cv2.conv"),
    )
    return _c2f(generator, True, (stream,))


def c2f_plain(generator: torch.Generator) -> Architecture:
    """Without shortcuts every part is a group of its own."""
    stream = (
        free(4, out("cv1.conv"), bn("cv1.bn"), into("m.0.cv1.conv", "cv2.conv")),
        free(4, out("m.0.cv2.conv"), bn("m.0.cv2.bn"), into("m.1.cv1.conv", "cv2.conv")),
        free(4, out("m.1.cv2.conv"), bn("m.1.cv2.bn"), into("cv2.conv")),
    )
    return _c2f(generator, False, stream)
