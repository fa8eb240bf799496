"""Importance by a first-order expansion of a loss."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from exprune_fx.errors import CalibrationError
from exprune_fx.static.criteria.base import Scene, Scores

Loss = Callable[[Callable[..., Any], Any], Tensor]


@dataclass(frozen=True)
class Taylor:
    """How much a loss would change, to first order, if a member's weights were zero (arXiv 1906.10771).

    The score is the sum of `abs(weight * gradient)` over all weights that go with the member, mean over batches.

    Attributes:
        batches: whatever `loss` takes, one after another.
        loss: `loss(model, batch)` gives a scalar; `model` is called like the model, in eval mode.
    """

    batches: Iterable[Any]
    loss: Loss

    def scores(self, scene: Scene) -> Scores:
        """Sums of absolute products.

        Raises:
            CalibrationError: no batches, or a loss that is no finite scalar.
        """
        weights = {name: p.detach().requires_grad_() for name, p in scene.graph.named_parameters()}
        total = {name: torch.zeros_like(p) for name, p in weights.items()}
        count = 0
        for batch in self.batches:
            loss = self.loss(lambda *args, **kwargs: functional_call(scene.graph, weights, args, kwargs), batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1 or not bool(loss.isfinite()):
                raise CalibrationError(
                    f"the loss of batch {count} is {loss}, not a finite scalar", hint="return loss.mean()"
                )
            gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True):
                if gradient is not None:
                    total[name] += (weight.detach() * gradient).abs()
            count += 1
        if not count:
            raise CalibrationError("Taylor was given no batches", hint="give a list, or a fresh loader")
        return {
            group.name: scene.over_parameters(group, lambda name, _: total[name] / count)[0] for group in scene.groups
        }
