"""VGG11-BN with most of its weights pruned away, fine-tuned: what dynamic pruning still finds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from exprune_fx.bench.vgg import vgg11_bn
from exprune_fx.errors import DataError
from exprune_fx.studies.subjects.cifar import Folder, Sizes, cifar_subject, training_images
from exprune_fx.studies.subjects.subject import Subject
from exprune_fx.studies.subjects.training import Say, train_classifier
from exprune_fx.studies.subjects.weights import read_or_train, read_weights
from exprune_fx.zoo.training import Recipe

NAME = "pruned-vgg11"
SPARSITY = 0.95


def make_pruned_vgg11(
    data_dir: Folder,
    dense: Folder | None,
    weights: Folder | None,
    sizes: Sizes,
    epochs: int,
    seed: int,
    say: Say,
    sparsity: float = SPARSITY,
    train_images: int | None = None,
) -> Subject:
    """The subject; pruned and fine-tuned first where the file of pruned weights is not there.

    Args:
        data_dir: holds CIFAR-10.
        dense: file of the weights to prune, read only where they are still to be pruned.
        weights: where the pruned weights are, or are written.
        sizes: of the three parts.
        epochs: of fine-tuning.
        seed: of fine-tuning.
        say: told what is being done.
        sparsity: share of the convolutions' and linear layers' weights that is pruned, the smallest of all.
        train_images: to fine-tune on in each epoch; None for all 40,000.

    Raises:
        DataError: weights or images are missing.
    """
    model = vgg11_bn()

    def train() -> None:
        if dense is None:
            raise DataError("there are no weights to prune", hint="give --dense-weights, VGG11-BN's state dict")
        read_weights(model, dense)
        masks = prune_globally(model, sparsity)
        images, labels = training_images(data_dir, train_images)
        recipe = Recipe(epochs, seed, batch_size=128, peak_lr=0.05)
        train_classifier(model, images, labels, recipe, say, masks)

    read_or_train(model, weights, train)
    found = zero_share(model)
    about = (
        f"VGG11-BN, {100 * found:.1f} % of the weights zero by global magnitude, fine-tuned; only other weights count"
    )
    return cifar_subject(
        model, data_dir, sizes, name=NAME, title="Pruned VGG11-BN, CIFAR-10", about=about, head_terms=32, sparse=True
    )


def _pruned_names(model: nn.Module) -> list[str]:
    return [
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]


def prune_globally(model: nn.Module, sparsity: float) -> dict[str, Tensor]:
    """Sets the smallest weights of all convolutions and linear layers to zero, in place.

    Returns:
        Masks by parameter name: 1 where a weight stays.
    """
    names = _pruned_names(model)
    sizes = torch.cat([model.get_parameter(name).detach().abs().flatten() for name in names])
    border = sizes.kthvalue(max(round(sparsity * len(sizes)), 1)).values
    masks = {name: (model.get_parameter(name).detach().abs() > border).float() for name in names}
    with torch.no_grad():
        for name, mask in masks.items():
            model.get_parameter(name).mul_(mask)
    return masks


def zero_share(model: nn.Module) -> float:
    """Share of the weights of convolutions and linear layers that are zero."""
    weights = torch.cat([model.get_parameter(name).detach().flatten() for name in _pruned_names(model)])
    return float((weights == 0).double().mean())
