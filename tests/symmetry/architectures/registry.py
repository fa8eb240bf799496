"""Every architecture by name; each builder takes the generator of its weights and inputs."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.symmetry.architectures import (
    densenet,
    graph_networks,
    grouped,
    language,
    mlp,
    mobilenet,
    multibranch,
    resnet,
    shufflenet,
    vgg,
    vit,
)
from tests.symmetry.architectures.common import Architecture

ARCHITECTURES: dict[str, Callable[[torch.Generator], Architecture]] = {
    "mlp": mlp.mlp,
    "squared_relu_mlp": mlp.squared_relu_mlp,
    "tied_lm": mlp.tied_lm,
    "vgg_bn": vgg.vgg_bn,
    "resnet_basic": resnet.resnet_basic,
    "resnet_bottleneck": resnet.resnet_bottleneck,
    "resnext": resnet.resnext,
    "densenet": densenet.densenet,
    "mobilenet_v2": mobilenet.mobilenet_v2,
    "depthwise_multiplier": mobilenet.depthwise_multiplier,
    "squeeze_excite": mobilenet.squeeze_excite,
    "shufflenet_v1": shufflenet.shufflenet_v1,
    "shufflenet_v2": shufflenet.shufflenet_v2,
    "unet": multibranch.unet,
    "inception": multibranch.inception,
    "c2f_shortcut": multibranch.c2f_shortcut,
    "c2f_plain": multibranch.c2f_plain,
    "grouped_same": grouped.grouped_same,
    "grouped_nested": grouped.grouped_nested,
    "conv1d": grouped.conv1d,
    "vit": vit.vit,
    "opt": language.opt,
    "llama": language.llama,
    "gcn": graph_networks.gcn,
    "gin": graph_networks.gin,
    "sage": graph_networks.sage,
}


def build(name: str, seed: int = 0) -> Architecture:
    """The named architecture with weights and inputs that depend on `seed` alone."""
    return ARCHITECTURES[name](torch.Generator().manual_seed(seed))
