"""Training on images of a study: what it says meanwhile, and masks that keep pruned weights at zero."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from exprune_fx.zoo.training import Recipe, Training, augment, drawn

Say = Callable[[str], None]


def train_classifier(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    recipe: Recipe,
    say: Say,
    masks: Mapping[str, Tensor] | None = None,
) -> None:
    """Trains a model in place; it is in eval mode afterwards.

    Args:
        model: N x C x H x W images to N x classes logits.
        images: float32, normalised.
        labels: int64, N.
        recipe: how.
        say: told the loss after every epoch.
        masks: by parameter name, 0 where a weight is gone and stays gone.

    Raises:
        DataError: there is no epoch, or fewer images than a batch.
    """
    training = Training(model, len(images), recipe)
    held = [(model.get_parameter(name), mask) for name, mask in (masks or {}).items()]
    generator = torch.Generator().manual_seed(recipe.seed)
    for epoch in range(recipe.epochs):
        losses = []
        for chosen in drawn(len(images), recipe, generator):
            losses.append(training.step(augment(images[chosen], generator), labels[chosen]))
            with torch.no_grad():
                for parameter, mask in held:
                    parameter.mul_(mask)
        say(f"epoch {epoch + 1} of {recipe.epochs}: loss {sum(losses) / len(losses):.3f}")
    training.finish()
