"""Trained classifiers of images, with what scores, fine-tunes, selects and judges: four sets without a common image."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from exprune_fx import zoo
from exprune_fx.bench import vgg
from exprune_fx.errors import DataError

Folder = str | os.PathLike[str]
_BATCH = 250


@dataclass(frozen=True, eq=False)
class Labelled:
    """Images with their classes.

    Attributes:
        images: float32, N x C x H x W, normalised.
        labels: int64, N.
    """

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, part: slice) -> Labelled:
        return Labelled(self.images[part], self.labels[part])

    def inputs(self, size: int = _BATCH) -> list[tuple[Tensor]]:
        """The images alone, as batches of arguments."""
        return [(images,) for images in self.images.split(size)]

    def pairs(self, size: int = _BATCH) -> list[tuple[Tensor, Tensor]]:
        """Batches of images with their labels."""
        return list(zip(self.images.split(size), self.labels.split(size), strict=True))


@dataclass(frozen=True)
class Counts:
    """How many images each set has.

    Attributes:
        scoring: criteria look at these.
        tuning: fine-tuning goes through these.
        selection: settings are chosen on these; the dense model was trained on them.
        test: only for judging; the dense model never saw them.
        glance: the first of these, for judging before fine-tuning.
    """

    scoring: int = 500
    tuning: int = 3000
    selection: int = 1000
    test: int = 10000
    glance: int = 1000


@dataclass(frozen=True, eq=False)
class Classifier:
    """A trained model and its data.

    Attributes:
        name: of the model.
        make: gives the trained model, in eval mode, afresh.
        initial: gives the same model with random weights.
        scoring: see `Counts`.
        tuning: see `Counts`.
        selection: see `Counts`.
        test: see `Counts`.
        glance: see `Counts`.
    """

    name: str
    make: Callable[[], nn.Module]
    initial: Callable[[], nn.Module]
    scoring: Labelled
    tuning: Labelled
    selection: Labelled
    test: Labelled
    glance: Labelled

    @property
    def args(self) -> tuple[Tensor]:
        """Example inputs, two images."""
        return (self.scoring.images[:2],)


def cifar_vgg(weights: Folder, data_dir: Folder, counts: Counts) -> Classifier:
    """VGG11-BN for CIFAR-10: judged on train_5, everything else from train_1 to train_4.

    Raises:
        DataError: weights or images are not there.
    """
    first, second, *_, last = (Labelled(*vgg.load_images(data_dir, name)) for name in vgg.CALIBRATION)
    test = Labelled(*vgg.load_images(data_dir, vgg.HELD_OUT))
    tuning = Labelled(torch.cat((first.images, second.images)), torch.cat((first.labels, second.labels)))
    make = partial(vgg.load_vgg, weights)
    return _divided(vgg.NAME, make, vgg.vgg11_bn, tuning, last, test, counts)


def fashion(name: str, data_dir: Folder, counts: Counts) -> Classifier:
    """A shipped model: judged on Fashion-MNIST's test images, everything else from its training images.

    Raises:
        DataError: there is no such model, or the images are not there.
    """
    if name not in zoo.names():
        raise DataError(f"no model {name!r} ships with the library", hint=f"use one of {', '.join(zoo.names())}")
    train = Labelled(*zoo.load_fashion_mnist(data_dir, "train"))
    test = Labelled(*zoo.load_fashion_mnist(data_dir, "test"))
    initial = getattr(zoo, name)
    return _divided(name, partial(zoo.load, name), initial, train[:30000], train[30000:], test, counts)


def _divided(
    name: str,
    make: Callable[[], nn.Module],
    initial: Callable[[], nn.Module],
    tuning: Labelled,
    rest: Labelled,
    test: Labelled,
    counts: Counts,
) -> Classifier:
    """Scoring and selection are taken from `rest`, one after the other."""
    if counts.scoring + counts.selection > len(rest) or counts.tuning > len(tuning) or counts.test > len(test):
        raise DataError(f"{name} has not enough images for {counts}", hint="ask for fewer")
    selection = rest[counts.scoring : counts.scoring + counts.selection]
    scoring, judged = rest[: counts.scoring], test[: counts.test]
    return Classifier(name, make, initial, scoring, tuning[: counts.tuning], selection, judged, judged[: counts.glance])


def judge(model: Any, data: Labelled, *, bfloat16: bool) -> float:
    """The share of images that are classified right, 0 to 1; `bfloat16`: under autocast."""
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        return zoo.accuracy(model, data.images, data.labels)
