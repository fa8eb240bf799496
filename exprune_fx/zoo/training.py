"""How image classifiers are trained here: SGD with Nesterov momentum, one cycle, shifted and mirrored images."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune_fx.errors import DataError


@dataclass(frozen=True)
class Recipe:
    """All that decides the outcome of a run, but for the machine's rounding.

    Attributes:
        epochs: passes over the images.
        seed: of the order of the images and of what is done to them (and, by the caller, of the initial weights).
        batch_size: images a step.
        peak_lr: the highest learning rate of the one-cycle schedule.
        weight_decay: on all parameters; it also pushes pre-activations below zero, which early stopping feeds on.
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
        images: N x C x H x W, of any dtype.
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


def drawn(count: int, recipe: Recipe, generator: torch.Generator) -> Iterator[Tensor]:
    """One epoch: the indices of each whole batch, in random order; the rest that fills no batch is left out."""
    order = torch.randperm(count, generator=generator)
    for start in range(0, count - recipe.batch_size + 1, recipe.batch_size):
        yield order[start : start + recipe.batch_size]


class Training:
    """A model being trained, in place; channels-last meanwhile."""

    def __init__(self, model: nn.Module, count: int, recipe: Recipe) -> None:
        """Makes the optimizer and its schedule.

        Args:
            model: N x C x H x W images to N x classes logits.
            count: images of an epoch.
            recipe: how.

        Raises:
            DataError: there is no epoch, or fewer images than a batch.
        """
        steps = recipe.epochs * (count // recipe.batch_size)
        if steps < 1:
            raise DataError(
                f"{recipe.epochs} epochs of {count} images in batches of {recipe.batch_size} make no training step",
                hint="give at least one epoch and at least one batch of images",
            )
        self.model = model.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload] # torch's stubs
        self._recipe = recipe
        self._optimizer = torch.optim.SGD(
            model.parameters(), lr=recipe.peak_lr, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer, recipe.peak_lr, total_steps=steps, pct_start=0.25
        )

    def step(self, images: Tensor, labels: Tensor) -> float:
        """One step of gradient descent on one batch; the loss before it (cross entropy, nats an image)."""
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._recipe.bfloat16):
            logits = self.model(images)
        loss = F.cross_entropy(logits.float(), labels, label_smoothing=self._recipe.label_smoothing)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.item()

    def finish(self) -> nn.Module:
        """The model in eval mode, in PyTorch's default memory format."""
        trained: nn.Module = self.model.to(memory_format=torch.contiguous_format).eval()
        return trained
