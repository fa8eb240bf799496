"""Processes that share the work under ``torchrun``: each takes its part, and all know the whole afterwards.

Nothing here does anything unless the caller has initialised `torch.distributed`. Sums are gathered and added up in the
order of the ranks, so that every process holds the same bits and decides the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

T = TypeVar("T")


def count() -> int:
    """How many processes there are; 1 without `torch.distributed`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def index() -> int:
    """Which of them this is; 0 without `torch.distributed`."""
    return dist.get_rank() if count() > 1 else 0


def mine(items: Iterable[T]) -> Iterator[tuple[int, T]]:
    """This process's share of what all of them are given, each item with its place in the whole."""
    rank, ranks = index(), count()
    return ((place, item) for place, item in enumerate(items) if place % ranks == rank)


def my_slice(examples: int) -> slice:
    """This process's share of so many examples, as `optimize` puts the shares together again: in the order of ranks."""
    rank, ranks = index(), count()
    return slice(examples * rank // ranks, examples * (rank + 1) // ranks)


def gathered(value: T) -> list[T]:
    """What every process holds, in the order of ranks."""
    if count() == 1:
        return [value]
    found: list[Any] = [None] * count()
    dist.all_gather_object(found, value)
    return found


def from_first(value: T) -> T:
    """What the first process holds."""
    if count() == 1:
        return value
    held: list[Any] = [value]
    dist.broadcast_object_list(held, src=0)
    first: T = held[0]
    return first


def total(value: Tensor) -> Tensor:
    """The sum over all processes, the same to the last bit in each."""
    return value if count() == 1 else torch.stack(_all(value)).sum(0)


def largest(value: Tensor) -> Tensor:
    """The largest over all processes, element by element."""
    return value if count() == 1 else torch.stack(_all(value)).amax(0)


def smallest(value: Tensor) -> Tensor:
    """The smallest over all processes, element by element."""
    return value if count() == 1 else torch.stack(_all(value)).amin(0)


def _all(value: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(value) for _ in range(count())]
    dist.all_gather(parts, value.contiguous())
    return parts
