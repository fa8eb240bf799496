"""Calibration batches: what is accepted."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from exprune_fx.errors import CalibrationError, ExpruneError
from exprune_fx.graph._inputs import describe_inputs
from exprune_fx.graph.running import placeholder_values

Batches = Iterable[Any] | Callable[[], Iterable[Any]]
_AGAIN = "the batches are read several times: give a list, a DataLoader, or a function that returns an iterator"


def check_batches(batches: object) -> None:
    """Refuses what cannot be read several times.

    Raises:
        CalibrationError: a one-shot iterator, or nothing that gives batches.
    """
    if isinstance(batches, Iterator):
        raise CalibrationError(f"batches is a {type(batches).__name__}, which can be read only once", hint=_AGAIN)
    if isinstance(batches, Tensor | Mapping | str) or not (callable(batches) or isinstance(batches, Iterable)):
        raise CalibrationError(f"batches is a {type(batches).__name__}, not an iterable of batches", hint=_AGAIN)


def check_latency_batch(gm: fx.GraphModule, batch: object) -> None:
    """Refuses, before minutes of calibration, what is to be timed behind it and cannot be.

    Raises:
        CalibrationError: the captured graph does not take it; None is nothing to refuse.
    """
    if batch is None:
        return
    try:
        placeholder_values(gm, batch)
    except ExpruneError as error:
        raise CalibrationError(
            f"the model refuses latency_batch, {describe(batch)}: {error.what}",
            hint="give it in the form of a batch: a tuple of what the model takes, or a pair (args, kwargs)",
        ) from error


def read(batches: Batches) -> Iterator[object]:
    """The batches, from the first on."""
    yield from batches if isinstance(batches, Iterable) else batches()


def describe(batch: object) -> str:
    """A batch in words: its tree with dtype and shape of each tensor."""
    return describe_inputs(batch).removeprefix("args=")


def check_finite(batch: object, index: int) -> None:
    """Refuses NaN and infinity in a batch.

    Raises:
        CalibrationError: a tensor of it holds one.
    """
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and not bool(torch.isfinite(leaf).all()):
            raise CalibrationError(f"batch {index} holds NaN or infinity: {describe(batch)}", hint="clean the data")
