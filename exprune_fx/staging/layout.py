"""The memory layouts in which kernels read weights: the same logical tensors, stored in another order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """A memory layout.

    Attributes:
        name: for names of tensors.
        holds: whether a tensor is stored so already.
        packed: an equal tensor that is stored so, without a gradient history.
    """

    name: str
    holds: Callable[[Tensor], bool]
    packed: Callable[[Tensor], Tensor]


def _is_channels_last(value: Tensor) -> bool:
    return value.is_contiguous(memory_format=torch.channels_last)


def _to_channels_last(value: Tensor) -> Tensor:
    return value.detach().contiguous(memory_format=torch.channels_last)


def _is_by_columns(value: Tensor) -> bool:
    return value.t().is_contiguous()


def _to_columns(value: Tensor) -> Tensor:
    return value.detach().t().contiguous().t()


def _is_by_rows(value: Tensor) -> bool:
    return value.is_contiguous()


def _to_rows(value: Tensor) -> Tensor:
    return value.detach().contiguous()


CHANNELS_LAST = Layout("channels_last", _is_channels_last, _to_channels_last)
COLUMNS = Layout("columns", _is_by_columns, _to_columns)
ROWS = Layout("rows", _is_by_rows, _to_rows)
