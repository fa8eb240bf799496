"""Proves that an activation's only reader is a max pool whose windows do not overlap."""

from __future__ import annotations

import math

import torch
from torch import fx

from exprune_fx.sites.site import PoolWindow

aten = torch.ops.aten


def pool_window(activation: fx.Node) -> PoolWindow | None:
    """The windows of the `max_pool2d` that alone reads a node; None where a pixel's value may matter elsewhere.

    That is so with other readers, with indices (a rival's place is read then, not its value alone), and where windows
    overlap. Padding, dilation, ceil mode and windows that lie apart: nothing here was proved for them.
    """
    users = list(activation.users)
    if len(users) != 1 or users[0].target != aten.max_pool2d.default:
        return None
    pool = users[0]
    given = {**dict(zip(_ARGUMENTS, pool.args[1:], strict=False)), **pool.kwargs}
    kernel = _pair(given.get("kernel_size"))
    if kernel is None or math.prod(kernel) < 2:
        return None
    stride = _pair(given.get("stride") or list(kernel))
    plain = _pair(given.get("padding", 0)) == (0, 0) and _pair(given.get("dilation", 1)) == (1, 1)
    if stride != kernel or not plain or given.get("ceil_mode", False) is not False:
        return None
    return PoolWindow(pool.name, kernel)


_ARGUMENTS = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")


def _pair(value: object) -> tuple[int, int] | None:
    """One number per spatial dimension, if they are known numbers."""
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(number, int) for number in numbers) or len(numbers) not in (1, 2):
        return None
    return (numbers[0], numbers[-1])
