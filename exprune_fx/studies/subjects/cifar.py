"""CIFAR-10 as these studies split it: train_1 to train_4 train, calibrate and select, train_5 judges."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim

from exprune_fx.bench.vgg import CALIBRATION, HELD_OUT, load_images
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects.metrics import Accuracy
from exprune_fx.studies.subjects.subject import Judge, Subject

Folder = str | os.PathLike[str]
BATCH = 125


@dataclass(frozen=True)
class Sizes:
    """How many examples each part has; the parts never overlap.

    Attributes:
        calibration: inputs without labels.
        selection: that guards are chosen by.
        test: that the choice is judged on.
    """

    calibration: int = 1000
    selection: int = 1000
    test: int = 10000


def training_images(folder: Folder, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The 40,000 images that models may be trained on, or as many of each file to make so many, and their labels.

    Raises:
        DataError: a file is missing.
    """
    parts = [load_images(folder, name) for name in CALIBRATION]
    if count is not None:
        parts = [(images[: count // len(parts)], labels[: count // len(parts)]) for images, labels in parts]
    return torch.cat([images for images, _ in parts]), torch.cat([labels for _, labels in parts])


def judge_of(images: Tensor, labels: Tensor) -> Judge:
    """These images in batches."""
    return Judge(Accuracy(), [(part,) for part in images.split(BATCH)], labels.split(BATCH))


def accuracy_on_test(model: Callable[[Tensor], Tensor], folder: Folder) -> float:
    """On the 10,000 images of train_5."""
    judge = judge_of(*load_images(folder, HELD_OUT))
    return judge.metric.value(judge.each(model))


def cifar_subject(
    model: nn.Module, folder: Folder, sizes: Sizes, *, name: str, title: str, about: str, head_terms: int, sparse: bool
) -> Subject:
    """A subject on CIFAR-10.

    Calibration takes the first images of train_1 and train_2, half each, selection those of train_3 and train_4.

    Raises:
        DataError: a file is missing, or has too few images.
    """
    halves = [load_images(folder, part) for part in CALIBRATION]
    wanted = (sizes.calibration // 2, sizes.calibration // 2, sizes.selection // 2, sizes.selection // 2)
    test_images, test_labels = load_images(folder, HELD_OUT)
    if any(len(labels) < count for (_, labels), count in zip(halves, wanted, strict=True)) or not min(wanted):
        raise DataError(
            f"{sizes.calibration} images for calibration and {sizes.selection} for selection are not there",
            hint="give even numbers from 2 to 20,000",
        )
    images = [part[:count] for (part, _), count in zip(halves, wanted, strict=True)]
    labels = [part[:count] for (_, part), count in zip(halves, wanted, strict=True)]
    test = judge_of(test_images[: sizes.test], test_labels[: sizes.test])
    return Subject(
        name=name,
        title=title,
        about=f"{about}; {sizes.calibration:,} calibration and {sizes.selection:,} selection images of train_1 to "
        f"train_4, judged on {test.examples:,} images of train_5",
        model=model.eval(),
        args=(images[0][:2],),
        dynamic_shapes=({0: Dim.AUTO},),
        calibration=[(part,) for part in torch.cat(images[:2]).split(BATCH)],
        selection=judge_of(torch.cat(images[2:]), torch.cat(labels[2:])),
        test=test,
        head_terms=head_terms,
        sparse=sparse,
    )
