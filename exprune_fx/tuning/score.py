"""What `evaluate` says of a model, and how sure a difference of two such sayings is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from exprune_fx.calibration import ranks
from exprune_fx.errors import DataError

RESAMPLES = 2000
Evaluate = Callable[[Any], "float | Sequence[float] | Tensor"]


@dataclass(frozen=True)
class Score:
    """One evaluation.

    Attributes:
        value: the metric, higher is better.
        each: one number for each example, whose mean the metric is; empty where `evaluate` gives the metric alone.
    """

    value: float
    each: tuple[float, ...] = ()

    @classmethod
    def of(cls, said: object) -> Score:
        """Reads what `evaluate` returned.

        Raises:
            DataError: neither a finite number nor some of them.
        """
        try:
            numbers = torch.as_tensor(said, dtype=torch.float64).detach().cpu()
        except (TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"evaluate returned {type(said).__name__}: {error}", hint=_HINT) from error
        if numbers.dim() > 1 or numbers.numel() == 0 or not bool(torch.isfinite(numbers).all()):
            raise DataError(f"evaluate returned numbers of shape {list(numbers.shape)}, or not finite", hint=_HINT)
        return cls(float(numbers.mean()), tuple(numbers.tolist()) if numbers.dim() == 1 else ())

    def gathered(self) -> Score:
        """Under ``torchrun``, the score of the shares of all processes, in the order of the ranks.

        Raises:
            DataError: there are several processes and no number for each example, so that shares cannot be weighed.
        """
        if ranks.count() == 1:
            return self
        parts = ranks.gathered(self.each)
        if not all(parts):
            raise DataError(
                f"evaluate gave no number for each example in one of {ranks.count()} processes",
                hint="under torchrun each process evaluates its share, ranks.my_slice(examples), example by example",
            )
        each = tuple(number for part in parts for number in part)
        return Score(float(torch.tensor(each, dtype=torch.float64).mean()), each)


_HINT = "return the metric as a float, or one number for each example as a list or a 1-d tensor; higher is better"


def differences(dense: Score, staged: Score) -> Tensor | None:
    """``dense - staged`` of each example, float64; None without a number for each."""
    if not dense.each or len(dense.each) != len(staged.each):
        return None
    return torch.tensor(dense.each, dtype=torch.float64) - torch.tensor(staged.each, dtype=torch.float64)


def drop_interval(dense: Score, staged: Score, seed: int = 0, level: float = 0.95) -> tuple[float, float] | None:
    """The paired bootstrap's interval of ``dense - staged``; None without a number for each example."""
    difference = differences(dense, staged)
    if difference is None:
        return None
    return bootstrap_interval(lambda drawn: float(difference[drawn].mean()), len(difference), RESAMPLES, seed, level)


def bootstrap_interval(
    drop_of: Callable[[Tensor], float | None], examples: int, resamples: int, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The interval between the quantiles of a drop (Efron and Tibshirani 1993, section 13.3).

    Args:
        drop_of: of the examples with these indices, drawn with replacement, each with both of its results; None where
            they make no metric: then others are drawn.
        examples: how many there are.
        resamples: how many drops are drawn.
        seed: of the draws.
        level: of confidence.
    """
    generator = torch.Generator().manual_seed(seed)
    drops: list[float] = []
    while len(drops) < resamples:
        drop = drop_of(torch.randint(examples, (examples,), generator=generator))
        if drop is not None:
            drops.append(drop)
    tail = (1 - level) / 2
    low, high = torch.tensor(drops, dtype=torch.float64).quantile(torch.tensor([tail, 1 - tail]).double()).tolist()
    return low, high
