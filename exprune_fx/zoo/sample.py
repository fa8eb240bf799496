"""The images that ship with the library: enough to calibrate on and to test on without any download."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib import resources

import numpy as np
import torch
from torch import Tensor

from exprune_fx.errors import DataError
from exprune_fx.zoo.data import CLASSES, load_raw, normalise

SAMPLE_FILE = "fashion_sample.npz"
SAMPLE_SEED = 0
CALIBRATION_PER_CLASS = 100
TEST_IMAGES = 2000


@dataclass(frozen=True, eq=False)
class Sample:
    """A part of Fashion-MNIST, ready for the models.

    Attributes:
        calibration_images: float32, 1,000 x 1 x 28 x 28, normalised; from the training set, 100 of each class, chosen
            at random and in random order.
        calibration_labels: int64, 1,000.
        test_images: float32, 2,000 x 1 x 28 x 28, normalised; the first of the test set.
        test_labels: int64, 2,000.
    """

    calibration_images: Tensor
    calibration_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def choose_calibration(labels: Tensor) -> Tensor:
    """Which training images are the calibration images: as many of each class, by a fixed seed, in random order.

    Args:
        labels: int64, N, of the training set.

    Returns:
        int64, 1,000 indices into it, all different.
    """
    generator = torch.Generator().manual_seed(SAMPLE_SEED)
    order = torch.randperm(len(labels), generator=generator)
    chosen = [order[labels[order] == label][:CALIBRATION_PER_CLASS] for label in range(len(CLASSES))]
    together = torch.cat(chosen)
    return together[torch.randperm(len(together), generator=generator)]


def write_sample(data_dir: str | os.PathLike[str], path: str | os.PathLike[str]) -> None:
    """Make the file that ships, from the published files; how it came about, for whoever wants to repeat it.

    Args:
        data_dir: the folder that holds Fashion-MNIST's four files.
        path: the .npz to write: images uint8, N x 28 x 28, and labels uint8, N.

    Raises:
        DataError: a published file is missing or wrong.
    """
    train_images, train_labels = load_raw(data_dir, "train")
    test_images, test_labels = load_raw(data_dir, "test")
    chosen = choose_calibration(train_labels)
    np.savez_compressed(
        path,
        calibration_images=train_images[chosen].numpy(),
        calibration_labels=train_labels[chosen].to(torch.uint8).numpy(),
        test_images=test_images[:TEST_IMAGES].numpy(),
        test_labels=test_labels[:TEST_IMAGES].to(torch.uint8).numpy(),
    )


def load_sample() -> Sample:
    """The shipped images and labels.

    Raises:
        DataError: the installation lacks the file.
    """
    resource = resources.files("exprune_fx.zoo").joinpath("data", SAMPLE_FILE)
    if not resource.is_file():
        raise DataError(f"the installed library lacks zoo/data/{SAMPLE_FILE}", hint="install exprune_fx again")
    with resource.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        return Sample(
            calibration_images=normalise(torch.from_numpy(arrays["calibration_images"])),
            calibration_labels=torch.from_numpy(arrays["calibration_labels"]).to(torch.int64),
            test_images=normalise(torch.from_numpy(arrays["test_images"])),
            test_labels=torch.from_numpy(arrays["test_labels"]).to(torch.int64),
        )


def calibration_batches(batch_size: int = 100) -> list[tuple[Tensor]]:
    """The shipped calibration images as batches, each a tuple of the model's positional arguments.

    Args:
        batch_size: images a batch; the last may have fewer.

    Returns:
        1-tuples of float32, B x 1 x 28 x 28, normalised.

    Raises:
        DataError: the batch size is below 1, or the installation lacks the file.
    """
    if batch_size < 1:
        raise DataError(f"a calibration batch of {batch_size} images", hint="use a batch size of at least 1")
    return [(images,) for images in load_sample().calibration_images.split(batch_size)]
