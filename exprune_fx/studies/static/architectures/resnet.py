"""ResNet-18 and ResNet-50 (He et al., arXiv 1512.03385; strides in the 3x3 convolutions of bottlenecks)."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (64, 128, 256, 512)


def _normed(inputs: int, outputs: int, kernel: int, stride: int = 1) -> list[nn.Module]:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1 with four times as many outputs, and a shortcut around them."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool) -> None:
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            layers = [*_normed(inputs, width, 1), nn.ReLU(), *_normed(width, width, 3, stride), nn.ReLU()]
            layers += _normed(width, outputs, 1)
        else:
            layers = [*_normed(inputs, width, 3, stride), nn.ReLU(), *_normed(width, width, 3)]
        self.layers = nn.Sequential(*layers)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else nn.Sequential(*_normed(inputs, outputs, 1, stride))
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """N x inputs x H x W to N x outputs x H/stride x W/stride."""
        y: Tensor = self.relu(self.layers(x) + self.shortcut(x))
        return y


def _resnet(depths: tuple[int, ...], bottleneck: bool) -> nn.Sequential:
    layers: list[nn.Module] = [*_normed(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, (width, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
        for index in range(depth):
            layers.append(Block(channels, width, 2 if stage and not index else 1, bottleneck))
            channels = 4 * width if bottleneck else width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


def resnet18() -> nn.Sequential:
    """11.69 million parameters."""
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet50() -> nn.Sequential:
    """25.56 million parameters."""
    return _resnet((3, 4, 6, 3), bottleneck=True)
