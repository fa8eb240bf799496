"""Which weights of fused linear operators the kernels are given once more, in fewer bits."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx
from torch.types import IntLikeType

from exprune_fx.graph.edits import fresh_name, is_call, set_tensor
from exprune_fx.ops.codes import MOST_ROWS

LARGE_BYTES = 2**21  # what is smaller stays in a cache from one call to the next
SPLIT_BYTES = 2**24  # of what is smaller the last cache may hold much, and there fewer bytes gain nothing
_OPERATORS = ("staged_linear_relu", "staged_ffn", "staged_gated_ffn")


def may_have_codes(node: fx.Node) -> bool:
    """Whether this is a call of a fused linear operator, which must be registered."""
    return is_call(node, *(getattr(torch.ops.exprune, name).default for name in _OPERATORS))


def hold_tables(gm: fx.GraphModule, weight: str, tables: Mapping[str, Tensor]) -> dict[str, fx.Node]:
    """Gives a graph the tables of one of its weights, under names of their own; the nodes that read them."""
    base = f"exprune.{weight.replace('.', '_')}"
    return {key: set_tensor(gm, fresh_name(gm, f"{base}.{key}"), table) for key, table in tables.items()}


def rows_of(x: Tensor) -> IntLikeType:
    """Rows of a linear layer's input, as far as its shape is known."""
    return x.numel() // x.shape[-1] if x.shape[-1] else 0


def codes_pay(weight: Tensor, rows: IntLikeType) -> bool:
    """Whether kernels are given 8-bit codes (`ops.codes`).

    Args:
        weight: two-dimensional.
        rows: of input; what is known only at run time may be few.
    """
    few = not isinstance(rows, int) or 0 < rows <= MOST_ROWS
    return few and weight.numel() * weight.element_size() >= LARGE_BYTES


def split_pays(weight: Tensor, rows: IntLikeType) -> bool:
    """Whether kernels are given 24 bits (`ops.split`), if these hold the weight well.

    Args:
        weight: two-dimensional.
        rows: of input; what is known only at run time may be many.
    """
    whole = weight.dtype == torch.float32 and weight.numel() * weight.element_size() >= SPLIT_BYTES
    return isinstance(rows, int) and codes_pay(weight, rows) and whole
