"""VGG11-BN for CIFAR-10, the ExPrune paper's network, with trained weights and images from folders of the user's."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from exprune_fx.errors import DataError

NAME = "vgg11_bn_cifar10"
CHECKPOINT = "vgg11_bn_cifar10.pt"
HELD_OUT = "train_5"
CALIBRATION = ("train_1", "train_2", "train_3", "train_4")
WIDTHS: tuple[int | None, ...] = (64, None, 128, None, 256, 256, None, 512, 512, None, 512, 512)
"""Output channels of each 3x3 convolution; None is a 2x2 max-pool."""

_MEAN, _STD = (0.4914, 0.4822, 0.4465), (0.247, 0.2435, 0.2616)  # of the training images, by channel


def vgg11_bn() -> nn.Sequential:
    """The network: convolution, batch norm and ReLU in five steps, average pool, one linear layer.

    Input: float32, N x 3 x 32 x 32, normalised. Output: float32 logits, N x 10.
    """
    layers: list[nn.Module] = []
    channels = 3
    for width in WIDTHS:
        if width is None:
            layers.append(nn.MaxPool2d(2))
            continue
        layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10))


def load_vgg(folder: str | os.PathLike[str]) -> nn.Sequential:
    """The trained network in float32, in eval mode.

    Raises:
        DataError: the checkpoint is not there, or is not this network's.
    """
    path = Path(folder) / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = vgg11_bn()
        model.load_state_dict(
            {name: value.float() if value.is_floating_point() else value for name, value in state.items()}
        )
    except Exception as error:  # torch raises whatever its archive's reader raises
        raise DataError(
            f"{path} does not hold the weights of VGG11-BN for CIFAR-10: {type(error).__name__}: {error}",
            hint=f"give a folder that holds {CHECKPOINT}",
        ) from error
    return model.eval()


def load_images(folder: str | os.PathLike[str], name: str) -> tuple[Tensor, Tensor]:
    """One file of 10,000 CIFAR-10 images.

    Args:
        folder: holds ``<name>.npz``, itself or in its subfolder cifar10: ``delta`` (uint8, N x 3 x 32 x 32, differences
            along the width, red and blue less green) and ``labels``.
        name: train_1 to train_5.

    Returns:
        Images, float32, N x 3 x 32 x 32, normalised; labels, int64, N.

    Raises:
        DataError: the file is not there, or is not such a file.
    """
    path = find_images(folder, name)
    if path is None:
        raise DataError(f"{name}.npz is neither in {folder} nor in its subfolder cifar10", hint="give --data-dir")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pixels = np.cumsum(arrays["delta"], axis=-1, dtype=np.uint8)
            labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path} is not a file of CIFAR-10 images: {error}", hint="give the right folder") from error
    pixels[:, 0] += pixels[:, 1]
    pixels[:, 2] += pixels[:, 1]
    scaled = torch.from_numpy(pixels).float() / 255
    mean, std = torch.tensor(_MEAN).view(3, 1, 1), torch.tensor(_STD).view(3, 1, 1)
    return (scaled - mean) / std, labels


def find_images(folder: str | os.PathLike[str], name: str) -> Path | None:
    """Where a file of images is, or None."""
    for path in (Path(folder) / f"{name}.npz", Path(folder) / "cifar10" / f"{name}.npz"):
        if path.is_file():
            return path
    return None
