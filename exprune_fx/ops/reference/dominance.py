"""The readable form of a prediction head: who cannot win any more, and the winners among the others.

The tables are those of `exprune_fx.ops.dominance`. A class is stopped where the most that its logit can be is less than
what as many others as there are winners are known to have.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from exprune_fx.ops.reference.walk import wide

LEADERS = 16
"""Classes that are computed whole after each stage, at least: those whose estimates are the largest."""
_LARGEST_TICK = 32767


@dataclass(frozen=True, eq=False)
class Turned:
    """Inputs as the codes meet them, a row each.

    Attributes:
        values: float32 [rows, features], in the basis of the codes.
        ticks: float64 [rows, features], whole numbers.
        tick: float32 [rows, 1], what one of them stands for.
        common: float32 [rows, 1], what all logits share.
        slack: float32 [rows, 1], what covers rounding.
    """

    values: Tensor
    ticks: Tensor
    tick: Tensor
    common: Tensor
    slack: Tensor


def norm(value: Tensor) -> Tensor:
    """Euclidean norm over the last axis, which stays, rounded up: float32."""
    exact: Tensor = torch.linalg.vector_norm(value.double(), dim=-1, keepdim=True)
    return exact.float() * (1 + 1e-6) + 1e-30


def turn(x: Tensor, center: Tensor | None, basis: Tensor | None, slack: Tensor) -> Turned:
    """Rows of input [rows, features] in the basis of the codes; arguments as in `exprune_fx.ops.dominance.Tables`."""
    given = wide(x).float()
    centered = given if center is None else given - center[0]
    common = torch.zeros_like(given[:, :1]) if center is None else (given.double() @ center[1:].double().t()).float()
    values = centered
    if basis is not None:
        values = centered * basis if basis.dim() == 1 else (centered.double() @ basis.double().t()).float()
    largest = values.abs().amax(-1, keepdim=True) / _LARGEST_TICK
    tick = torch.maximum(largest, torch.linalg.vector_norm(values, dim=-1, keepdim=True) * slack[4])
    ticks = torch.where(tick > 0, values / tick, 0.0).round().double()
    rounding = slack[0] * norm(given) + slack[1] * norm(centered) + slack[2] * tick + slack[3]
    return Turned(values, ticks, tick, common, rounding)


def guard_dominance(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    codes: Tensor,
    numbers: Tensor,
    center: Tensor | None,
    basis: Tensor | None,
    slack: Tensor,
    stages: list[int],
    reach: list[float],
    winners: int,
) -> Tensor:
    """After which stage each class stopped: ``estimate + reach * (what is left out) + slack`` is below the bar.

    After each stage the classes of the `LEADERS` (or as many as there are winners) largest estimates are computed
    whole; the bar is the ``winners``-th largest logit computed so far. Those who have it, or more, are not stopped.
    Where an input is not finite, nobody is.

    Args:
        x: [..., features].
        weight: [out, features].
        bias: [out] or None.
        codes: see `exprune_fx.ops.dominance.Tables`, as all that follow.
        numbers: likewise.
        center: likewise.
        basis: likewise.
        slack: likewise.
        stages: features seen after each stage.
        reach: by stage, the share of the Cauchy-Schwarz bound that the rest is taken to have: 1 is sound.
        winners: how many classes win.

    Returns:
        int8 [..., out]: the index of the stage, ``len(stages)`` for who was never stopped.
    """
    rows = x.reshape(-1, x.shape[-1])
    estimates = Estimates(turn(rows, center, basis, slack), codes)
    after = stopped_after(F.linear(rows, weight, bias), estimates, numbers, stages, reach, winners)
    return after.reshape(*x.shape[:-1], weight.shape[0])


@dataclass(frozen=True, eq=False)
class Estimates:
    """What codes tell of logits: sums of products of whole numbers, each computed once."""

    turned: Turned
    codes: Tensor
    _sums: dict[int, Tensor] = field(default_factory=dict)

    def sums(self, seen: int) -> Tensor:
        """Over the first features, exact before they are rounded: float32 [rows, out]."""
        if seen not in self._sums:
            self._sums[seen] = (self.turned.ticks[:, :seen] @ self.codes[:, :seen].double().t()).float()
        return self._sums[seen]


def stopped_after(
    logits: Tensor, estimates: Estimates, numbers: Tensor, stages: Sequence[int], reach: Sequence[float], winners: int
) -> Tensor:
    """`guard_dominance` of rows whose logits, [rows, out], are known."""
    turned, classes = estimates.turned, logits.shape[1]
    after = torch.full_like(logits, len(stages), dtype=torch.int8)
    alive = torch.ones_like(after, dtype=torch.bool)
    known = torch.zeros_like(alive)
    held = known
    leaders = min(max(LEADERS, winners), classes)
    for stage, seen in enumerate(stages):
        estimate = estimates.sums(seen) * (turned.tick * numbers[0]) + (numbers[1] + turned.common)
        leading = estimate.masked_fill(~alive, -torch.inf).topk(leaders, dim=-1).indices
        known = known.scatter(-1, leading, True) & (alive | known)
        best = logits.masked_fill(~known, -torch.inf).topk(winners, dim=-1)
        held = torch.zeros_like(known).scatter(-1, best.indices, True)
        bar = best.values[:, -1:]
        left_out = numbers[2 + 2 * stage] * norm(turned.values[:, :seen])
        left_out = left_out + numbers[3 + 2 * stage] * norm(turned.values[:, seen:])
        upper = estimate + reach[stage] * left_out + turned.slack
        stopped = alive & (upper.to(logits.dtype) < bar)
        after = torch.where(stopped, stage, after)
        alive = alive & ~stopped
    return torch.where(held, len(stages), after).to(torch.int8)


def _alive_logits(x: Tensor, weight: Tensor, bias: Tensor | None, stopped: Tensor) -> Tensor:
    return F.linear(x, weight, bias).masked_fill(stopped, -torch.inf)


def finish_argmax(x: Tensor, weight: Tensor, bias: Tensor | None, stopped: Tensor) -> Tensor:
    """The class of the largest logit among those that were not stopped; the first of equals, and of NaN.

    Args:
        x: [..., features].
        weight: [out, features].
        bias: [out] or None.
        stopped: bool [..., out].

    Returns:
        int64 [...].
    """
    return _alive_logits(x, weight, bias, stopped).argmax(-1)


def finish_topk(x: Tensor, weight: Tensor, bias: Tensor | None, stopped: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest logits among those that were not stopped, the largest first, and their classes.

    Returns:
        [..., k] in the dtype of ``x``, int64 [..., k].
    """
    values, indices = _alive_logits(x, weight, bias, stopped).topk(k, dim=-1)
    return values, indices
