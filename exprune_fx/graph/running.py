"""What interpreters of captured graphs share: batches, flat inputs, and the values of symbolic sizes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from exprune_fx.errors import CaptureError
from exprune_fx.graph._inputs import InputCheck, bind_inputs


def as_call(batch: object) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A batch as ``(args, kwargs)``: a tuple of positional arguments, or a pair of a tuple and a dict.

    Raises:
        CaptureError: it is neither.
    """
    if isinstance(batch, list):
        batch = tuple(batch)  # what a DataLoader makes of a tuple
    if not isinstance(batch, tuple):
        raise CaptureError(
            f"a batch is a {type(batch).__name__}", hint="give tuples of positional arguments, or pairs (args, kwargs)"
        )
    if len(batch) == 2 and isinstance(batch[0], tuple | list) and isinstance(batch[1], Mapping):
        return tuple(batch[0]), dict(batch[1])
    return batch, {}


def flat_inputs(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """One value for each placeholder, in order.

    Raises:
        CaptureError: the call does not fit the captured signature, or its structure is another one.
    """
    return bind_inputs(gm, args, kwargs)[1]


def placeholder_values(gm: fx.GraphModule, batch: object) -> list[Any]:
    """One value for each placeholder, after the graph's own check of its inputs.

    Raises:
        CaptureError: not a batch, or one that the graph was not captured for.
    """
    args, kwargs = as_call(batch)
    flat = flat_inputs(gm, args, kwargs)
    check = InputCheck.of(gm)
    if check is not None:
        check(gm, args, kwargs)
    return flat


def examples_in(batch: object) -> int:
    """The first dimension of the batch's first tensor (1 if it has none)."""
    first = next((leaf for leaf in pytree.tree_leaves(batch) if isinstance(leaf, Tensor)), None)
    return int(first.shape[0]) if first is not None and first.dim() > 0 else 1


def symbol_values(gm: fx.GraphModule, flat: list[Any]) -> dict[sympy.Expr, int]:
    """The value of every symbolic size that stands alone as a size of an input."""
    values: dict[sympy.Expr, int] = {}
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    for node, value in zip(placeholders, flat, strict=True):
        fake = node.meta.get("val")
        if isinstance(fake, torch.Tensor) and isinstance(value, torch.Tensor):
            for size, actual in zip(fake.shape, value.shape, strict=True):
                if isinstance(size, torch.SymInt):
                    values[size.node.expr] = int(actual)
        elif isinstance(fake, torch.SymInt):
            values[fake.node.expr] = int(value)
    return values
