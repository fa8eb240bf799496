"""ResNet-18 on CIFAR-10, narrower than the paper's so that a CPU trains it."""

from __future__ import annotations

import torch

from exprune_fx.studies.subjects.cifar import Folder, Sizes, cifar_subject, training_images
from exprune_fx.studies.subjects.networks import resnet18
from exprune_fx.studies.subjects.subject import Subject
from exprune_fx.studies.subjects.training import Say, train_classifier
from exprune_fx.studies.subjects.weights import read_or_train
from exprune_fx.zoo.training import Recipe

NAME = "resnet18"
WIDTH, PAPER_WIDTH = 16, 64


def make_resnet18(
    data_dir: Folder,
    weights: Folder | None,
    sizes: Sizes,
    epochs: int,
    seed: int,
    say: Say,
    width: int = WIDTH,
    train_images: int | None = None,
) -> Subject:
    """The subject; trained first where the file of weights is not there.

    Args:
        data_dir: holds CIFAR-10.
        weights: where the weights are, or are written.
        sizes: of the three parts.
        epochs: of training.
        seed: of training.
        say: told what is being done.
        width: channels of the first stage; the paper's network has 64.
        train_images: in each epoch; None for all 40,000.

    Raises:
        DataError: images are missing, or the weights are of another network.
    """
    torch.manual_seed(seed)
    model = resnet18(width)

    def train() -> None:
        images, labels = training_images(data_dir, train_images)
        train_classifier(model, images, labels, Recipe(epochs, seed), say)

    read_or_train(model, weights, train)
    head = max(32 * width // PAPER_WIDTH, 2)
    about = (
        f"ResNet-18 of width {width} (the paper's: {PAPER_WIDTH}), 40,000 images of training; the paper's guards test "
        f"after {head} channels, 32 scaled by the width"
    )
    return cifar_subject(
        model, data_dir, sizes, name=NAME, title="ResNet-18, CIFAR-10", about=about, head_terms=head, sparse=False
    )
