"""What an architecture of the symmetry tests is, and the vocabulary in which its groups are written by hand.

The expected groups beside each architecture were derived on paper, from what the layers compute. They are the
independent truth: never regenerate them from what the analysis prints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Axis = tuple[str, int]
"""A parameter's or buffer's dotted name, and one of its dimensions."""


@dataclass(frozen=True)
class Expected:
    """One symmetry group that the mathematics of an architecture demands.

    Attributes:
        anchor: an axis that the group must touch.
        size: how many things are permuted.
        free: whether they may really be permuted.
        repeats: how many independent copies of the permutation there are (wreath product: one per outer index).
        order: order of the permutation group; by default `size! ** repeats` for a free group.
        members: every axis that the group must touch, and no other; required for a free group.
        may_be_pinned: why an analysis that reports this free group as pinned is not wrong either ("": it is).
    """

    anchor: Axis
    size: int
    free: bool = True
    repeats: int = 1
    order: int | None = None
    members: frozenset[Axis] | None = None
    may_be_pinned: str = ""

    def __post_init__(self) -> None:
        if self.free and (self.members is None or self.anchor not in self.members):
            raise ValueError(f"a free group lists all its members, its anchor among them: {self}")

    @property
    def group_order(self) -> int:
        return self.order if self.order is not None else math.factorial(self.size) ** self.repeats


@dataclass(frozen=True)
class Architecture:
    """A small model, example inputs with dynamic batch where it exports so, and its groups.

    Attributes:
        invisible: parameters that cannot change any output, whatever their values (a key bias under a softmax).
    """

    model: nn.Module
    args: tuple[Any, ...]
    dynamic_shapes: Any
    expected: tuple[Expected, ...]
    invisible: frozenset[str] = frozenset()


def free(
    size: int, *members: Sequence[Axis], repeats: int = 1, order: int | None = None, may_be_pinned: str = ""
) -> Expected:
    """A free group with exactly these members; the first one is the anchor."""
    axes = [axis for part in members for axis in part]
    return Expected(axes[0], size, True, repeats, order, frozenset(axes), may_be_pinned)


def pinned(size: int, target: str, dim: int) -> Expected:
    """A group that is tied to a model input or output, or told apart by an operator."""
    return Expected((target, dim), size, free=False)


def out(*modules: str) -> list[Axis]:
    """Output axis of a linear or convolution without bias."""
    return [(f"{m}.weight", 0) for m in modules]


def out_b(*modules: str) -> list[Axis]:
    """Output axis of a linear or convolution, or the axis of an affine normalisation: weight and bias, dimension 0."""
    return [(f"{m}.{p}", 0) for m in modules for p in ("weight", "bias")]


def into(*modules: str) -> list[Axis]:
    """Input axis of a linear or convolution (for a grouped one: the input axis within a group)."""
    return [(f"{m}.weight", 1) for m in modules]


def bn(*modules: str) -> list[Axis]:
    """Channel axis of a batch norm: affine parameters and running statistics."""
    return [(f"{m}.{p}", 0) for m in modules for p in ("weight", "bias", "running_mean", "running_var")]


def at(target: str, dim: int) -> list[Axis]:
    """One axis."""
    return [(target, dim)]


def batched(*args: torch.Tensor) -> tuple[dict[int, torch.export.Dim], ...]:
    """`dynamic_shapes` with the first dimension of every argument one symbolic batch size."""
    batch = torch.export.Dim("batch")
    return tuple({0: batch} for _ in args)


def image(generator: torch.Generator, size: int = 8, channels: int = 3) -> torch.Tensor:
    """A float64 image batch of shape (2, channels, size, size)."""
    return torch.randn(2, channels, size, size, dtype=torch.float64, generator=generator)


@torch.no_grad()
def randomise(model: nn.Module, generator: torch.Generator) -> nn.Module:
    """Give every parameter and every normalisation statistic a random value, in float64 and eval mode.

    Default values (zero biases, unit scales, identity statistics) are the same under every permutation, so that a
    forgotten one would be invisible. Matrices are scaled by fan-in so that activations keep their size.
    """
    model.double().eval()
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        if parameter.dim() <= 1:
            centre = 1.0 if name.endswith("weight") else 0.3  # positive: few units that are dead for every input
            parameter.copy_(centre + 0.4 * noise)
        else:
            parameter.copy_(noise * (2.0 / math.prod(parameter.shape[1:])) ** 0.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.3 * torch.randn(buffer.shape, dtype=torch.float64, generator=generator))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand(buffer.shape, dtype=torch.float64, generator=generator))
    return model
