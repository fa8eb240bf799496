"""Training on images: SGD, one cycle, shifted and mirrored images; masks keep pruned weights at zero."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune_fx.errors import DataError

Say = Callable[[str], None]


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome of a run, but for the machine's rounding.

    Attributes:
        epochs: passes over the images.
        seed: of the order of the images and of what is done to them (and, by the caller, of the initial weights).
        batch_size: images a step.
        peak_lr: the highest learning rate of the one-cycle schedule.
        weight_decay: on all parameters.
        label_smoothing: of the cross entropy.
        bfloat16: forward and backward under bfloat16 autocast; the weights stay float32.
    """

    epochs: int
    seed: int = 0
    batch_size: int = 128
    peak_lr: float = 0.2
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    bfloat16: bool = True


def augment(images: Tensor, generator: torch.Generator, pad: int = 4) -> Tensor:
    """Shifts each image by up to ``pad`` pixels each way, zeros coming in, and mirrors half of them.

    Args:
        images: N x C x H x W.
        generator: decides.
        pad: the largest shift, in pixels.
    """
    count, channels, height, width = images.shape
    padded = F.pad(images, (pad, pad, pad, pad))
    shift = torch.randint(0, 2 * pad + 1, (2, count, 1), generator=generator)
    rows, columns = shift[0] + torch.arange(height), shift[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    every = torch.arange(count)[:, None, None, None]
    return padded[every, torch.arange(channels)[None, :, None, None], rows[:, None, :, None], columns[:, None, None, :]]


def _batches(
    images: Tensor, labels: Tensor, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.randperm(len(images), generator=generator)
    for start in range(0, len(images) - recipe.batch_size + 1, recipe.batch_size):
        chosen = order[start : start + recipe.batch_size]
        yield augment(images[chosen], generator).contiguous(memory_format=torch.channels_last), labels[chosen]


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
    steps = recipe.epochs * (len(images) // recipe.batch_size)
    if steps < 1:
        raise DataError(
            f"{recipe.epochs} epochs of {len(images)} images in batches of {recipe.batch_size} make no training step",
            hint="give at least one epoch and at least one batch of images",
        )
    held = [(model.get_parameter(name), mask) for name, mask in (masks or {}).items()]
    generator = torch.Generator().manual_seed(recipe.seed)
    model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]  # torch's stubs
    optimizer = torch.optim.SGD(
        model.parameters(), lr=recipe.peak_lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.peak_lr, total_steps=steps, pct_start=0.25)
    for epoch in range(recipe.epochs):
        total, count = 0.0, 0
        for inputs, targets in _batches(images, labels, recipe, generator):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(inputs)
            loss = F.cross_entropy(logits.float(), targets, label_smoothing=recipe.label_smoothing)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                for parameter, mask in held:
                    parameter.mul_(mask)
            total, count = total + loss.item(), count + 1
        say(f"epoch {epoch + 1} of {recipe.epochs}: loss {total / count:.3f}")
    model.to(memory_format=torch.contiguous_format).eval()  # type: ignore[call-overload]  # torch's stubs
