"""What ``exprune reproduce`` is asked for, and the subject that it means."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from exprune_fx.cli.names import SUBJECTS
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects import Subject, gcn_hiv, opt, pruned_vgg11, resnet18, vgg11
from exprune_fx.studies.subjects.cifar import Sizes
from exprune_fx.studies.subjects.training import Say

DEFAULT_SIZES = {
    vgg11.NAME: Sizes(1000, 1000, 10_000),
    resnet18.NAME: Sizes(1000, 2000, 10_000),
    gcn_hiv.NAME: Sizes(1000, 4113, 4113),
    opt.NAME: Sizes(64, 160, 400),
    pruned_vgg11.NAME: Sizes(1000, 1000, 10_000),
}
DEFAULT_EPOCHS = {resnet18.NAME: 15, gcn_hiv.NAME: 20, pruned_vgg11.NAME: 6}


@dataclass(frozen=True)
class Wanted:
    """The subject's options.

    Attributes:
        name: one of `exprune_fx.cli.names.SUBJECTS`.
        data_dir: folder of data sets.
        weights: file of the subject's weights, read or written.
        dense_weights: file of the weights that pruned-vgg11 begins with.
        model_dir: folder of a pretrained OPT, for PIQA.
        calibration: examples; None for the subject's own number, likewise the next two.
        selection: examples.
        test: examples.
        epochs: of training, where there is some; None for the subject's own number.
        train_images: of CIFAR-10 in each epoch; None for all 40,000.
        seed: of training and of draws.
        cache: folder for what was read from slow formats, or None.
    """

    name: str
    data_dir: Path
    weights: Path | None = None
    dense_weights: Path | None = None
    model_dir: Path | None = None
    calibration: int | None = None
    selection: int | None = None
    test: int | None = None
    epochs: int | None = None
    train_images: int | None = None
    seed: int = 0
    cache: Path | None = None

    @property
    def sizes(self) -> Sizes:
        """The subject's own, but for what was asked for."""
        own = DEFAULT_SIZES[self.name]
        return Sizes(self.calibration or own.calibration, self.selection or own.selection, self.test or own.test)


def make_subject(wanted: Wanted, say: Say) -> Subject:
    """Reads the data, and reads or trains the weights.

    Raises:
        DataError: something is missing.
    """
    name, data, weights, sizes = wanted.name, wanted.data_dir, wanted.weights, wanted.sizes
    epochs = wanted.epochs or DEFAULT_EPOCHS.get(name, 0)
    if name == vgg11.NAME:
        return vgg11.make_vgg11(data, weights, sizes)
    if name == resnet18.NAME:
        return resnet18.make_resnet18(data, weights, sizes, epochs, wanted.seed, say, train_images=wanted.train_images)
    if name == gcn_hiv.NAME:
        cache = None if wanted.cache is None else wanted.cache / "hiv_graphs.npz"
        return gcn_hiv.make_gcn_hiv(data, weights, sizes, epochs, wanted.seed, say, cache)
    if name == pruned_vgg11.NAME:
        return pruned_vgg11.make_pruned_vgg11(
            data, wanted.dense_weights, weights, sizes, epochs, wanted.seed, say, train_images=wanted.train_images
        )
    if name == opt.NAME and wanted.model_dir is not None:
        return opt.make_opt_piqa(data, wanted.model_dir, sizes)
    if name == opt.NAME:
        return opt.make_opt_characters(data, weights, sizes, wanted.seed)
    raise DataError(f"there is no subject {name!r}", hint=f"one of {', '.join(SUBJECTS)}")
