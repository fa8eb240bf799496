"""VGG11-BN on CIFAR-10, the paper's first network."""

from __future__ import annotations

from exprune_fx.bench.vgg import vgg11_bn
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects.cifar import Folder, Sizes, cifar_subject
from exprune_fx.studies.subjects.subject import Subject
from exprune_fx.studies.subjects.weights import read_weights

NAME = "vgg11"


def make_vgg11(data_dir: Folder, weights: Folder | None, sizes: Sizes) -> Subject:
    """The subject.

    Args:
        data_dir: holds CIFAR-10, see `exprune_fx.bench.vgg.load_images`.
        weights: file of trained weights.
        sizes: of the three parts.

    Raises:
        DataError: weights or images are missing.
    """
    if weights is None:
        raise DataError("vgg11 needs trained weights", hint="give --weights, a file of VGG11-BN's state dict")
    model = vgg11_bn()
    read_weights(model, weights)
    about = "VGG11-BN at full width, 40,000 images of training"
    return cifar_subject(
        model, data_dir, sizes, name=NAME, title="VGG11-BN, CIFAR-10", about=about, head_terms=32, sparse=False
    )
