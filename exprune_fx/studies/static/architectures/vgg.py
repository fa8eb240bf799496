"""VGG-16 (Simonyan and Zisserman, arXiv 1409.1556), without and with batch norms."""

from __future__ import annotations

from torch import nn

WIDTHS = (64, 64, None, 128, 128, None, 256, 256, 256, None, 512, 512, 512, None, 512, 512, 512, None)


def _vgg(normed: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width is None:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if normed else [nn.ReLU()]
        channels = width
    layers += [nn.AdaptiveAvgPool2d(7), nn.Flatten(), nn.Linear(channels * 49, 4096), nn.ReLU(), nn.Dropout()]
    layers += [nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers)


def vgg16() -> nn.Sequential:
    """138.36 million parameters."""
    return _vgg(normed=False)


def vgg16_bn() -> nn.Sequential:
    """138.37 million parameters."""
    return _vgg(normed=True)
