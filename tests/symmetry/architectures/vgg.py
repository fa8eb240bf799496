"""VGG with batch norm: convolutions, pooling, a flatten into fully connected layers."""

from __future__ import annotations

import torch
from torch import nn

from tests.symmetry.architectures.common import (
    Architecture,
    batched,
    bn,
    free,
    image,
    into,
    out_b,
    pinned,
    randomise,
)


class VGG(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width_in, width in ((3, 5), (5, 6), (6, 7)):
            layers += [nn.Conv2d(width_in, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
            if width > 5:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(7 * 4, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.classifier(torch.flatten(self.features(x), 1))
        return y


def vgg_bn(generator: torch.Generator) -> Architecture:
    """A channel before the flatten is a block of 4 columns of the first linear."""
    x = image(generator)
    return Architecture(
        randomise(VGG(), generator),
        (x,),
        batched(x),
        (
            free(5, out_b("features.0"), bn("features.1"), into("features.3")),
            free(6, out_b("features.3"), bn("features.4"), into("features.7")),
            free(7, out_b("features.7"), bn("features.8"), into("classifier.0")),
            free(9, out_b("classifier.0"), into("classifier.3")),
            pinned(3, "features.0.weight", 1),
            pinned(10, "classifier.3.weight", 0),
        ),
    )
