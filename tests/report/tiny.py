"""A tiny model that has one of everything: a site on raw inputs, an exchangeable one, and one without an activation."""

from __future__ import annotations

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from exprune_fx.calibration import calibrate
from exprune_fx.guards import Guard
from exprune_fx.pipeline import transform
from tests.captures import captured_alike


class Tiny(nn.Module):
    """8 -> 16 -> 16 -> 3, ReLU between."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.first, self.second, self.last = nn.Linear(8, 16), nn.Linear(16, 16), nn.Linear(16, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) / 4

    def forward(self, x: Tensor) -> Tensor:
        """N x 8 to N x 3."""
        hidden = torch.relu(self.first(x))
        logits: Tensor = self.last(torch.relu(self.second(hidden)))
        return logits


class Smooth(nn.Module):
    """Nothing to stage: GELU lets negative values through."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """N x 4 to N x 2."""
        result: Tensor = self.down(nn.functional.gelu(self.up(x)))
        return result


def captured(model: nn.Module | None = None, width: int = 8) -> fx.GraphModule:
    """The captured graph, its batch size symbolic."""
    return captured_alike(model or Tiny(), torch.zeros(2, width), ({0: Dim.AUTO},))


def examples() -> list[tuple[Tensor]]:
    """64 examples in two batches, each a 1-tuple."""
    return [(batch,) for batch in torch.randn(64, 8, generator=torch.Generator().manual_seed(1)).split(32)]


def staged(guard: Guard, head: str = "prefix") -> fx.GraphModule:
    """The tiny model, calibrated and staged."""
    gm = captured()
    return transform(gm, calibrate(gm, examples(), guard, head=head), lower=False)  # type: ignore[arg-type] # a literal in each test
