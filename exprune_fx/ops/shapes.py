"""What to run on tensors without data in place of operators that take many steps to the shape that one step gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from exprune_fx.ops.reference import squares_conv


def on_fakes(target: Callable[..., Any]) -> Callable[..., Any]:
    """What gives the shapes, dtypes and strides of `target`, or its errors, sooner; `target` itself for most operators.

    Operators are composite (see `register`): a fake mode takes every step that they take. Nothing that records what is
    run may be given this.
    """
    return _SOONER.get(target.name(), target) if isinstance(target, torch._ops.OpOverload) else target


def _squares_of_the_last(
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    start: int,
    stop: int,
    squares: Tensor | None = None,
) -> Tensor:
    """Of one channel: there is one step for each."""
    return squares_conv(x, weight, stride, padding, dilation, groups, max(start, stop - 1), stop, squares)


_SOONER: dict[str, Callable[..., Any]] = {"exprune::squares_conv": _squares_of_the_last}
