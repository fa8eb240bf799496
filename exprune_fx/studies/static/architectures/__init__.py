"""Well-known networks by their published configurations, with random weights."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from exprune_fx.studies.static.architectures.densenet import densenet121
from exprune_fx.studies.static.architectures.mobilenet import mobilenet_v2
from exprune_fx.studies.static.architectures.resnet import resnet18, resnet50
from exprune_fx.studies.static.architectures.vgg import vgg16, vgg16_bn
from exprune_fx.studies.static.architectures.vit import vit_b16
from exprune_fx.studies.static.architectures.yolov8 import yolov8n

ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "mobilenet_v2": mobilenet_v2,
    "vgg16": vgg16,
    "vgg16_bn": vgg16_bn,
    "vit_b16": vit_b16,
    "yolov8n": yolov8n,
}
"""By name; all take float32 images N x 3 x H x W, H and W multiples of 32; vit_b16's are 224 x 224."""
