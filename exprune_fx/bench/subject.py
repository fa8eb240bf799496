"""What a row is about: a model, what was decided for it, and inputs to time it on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from exprune_fx.plan import Plan

Kind = Literal["micro", "model"]
Args = tuple[Any, ...]
Say = Callable[[str], None]


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Examples that calibration did not see.

    Attributes:
        images: N x C x H x W.
        labels: int64, N.
    """

    images: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class Subject:
    """One row's model.

    Attributes:
        name: of the row.
        kind: one operator, or a whole model.
        dtype: of weights and activations.
        batch: examples (tokens, images) in one call.
        model: the dense model, in eval mode.
        gm: its captured graph.
        plan: how its sites are staged.
        inputs: arguments to time it on, in turn.
        about: how it was made, in a sentence.
        held_out: to judge accuracy on, or None.
    """

    name: str
    kind: Kind
    dtype: torch.dtype
    batch: int
    model: nn.Module
    gm: fx.GraphModule
    plan: Plan
    inputs: tuple[Args, ...]
    about: str = ""
    held_out: HeldOut | None = field(default=None, repr=False)


@dataclass(frozen=True)
class RowSpec:
    """A row that can be asked for; its model is made when its turn comes.

    Attributes:
        name: of the row.
        kind: one operator, or a whole model.
        dtype: of weights and activations.
        batch: examples in one call.
        make: makes the subject; told what is being done.
    """

    name: str
    kind: Kind
    dtype: torch.dtype
    batch: int
    make: Callable[[Say], Subject]

    @property
    def label(self) -> str:
        """What tells rows apart."""
        return f"{self.name} {str(self.dtype).removeprefix('torch.')} batch {self.batch}"
