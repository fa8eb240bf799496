"""How good a model is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exprune_fx.errors import DataError


def accuracy(model: Callable[[Tensor], Tensor], images: Tensor, labels: Tensor, batch_size: int = 250) -> float:
    """The share of images whose highest logit is their label's.

    Args:
        model: anything called like the zoo's models: N x 1 x 28 x 28 to N x 10. A module must be in eval mode already.
        images: float32, N x 1 x 28 x 28, normalised, N at least 1.
        labels: int64, N.
        batch_size: images a call, at least 1; the last call may have fewer.

    Returns:
        A fraction, 0 to 1.

    Raises:
        DataError: there are no images, not as many labels, or the batch size is below 1.
    """
    if len(images) == 0 or len(images) != len(labels) or batch_size < 1:
        raise DataError(
            f"accuracy of {len(images)} images with {len(labels)} labels in batches of {batch_size}",
            hint="give as many labels as images, at least one, and a batch size of at least 1",
        )
    correct = 0
    with torch.no_grad():
        for start in range(0, len(images), batch_size):
            logits = model(images[start : start + batch_size])
            correct += int((logits.argmax(1) == labels[start : start + batch_size]).sum())
    return correct / len(images)
