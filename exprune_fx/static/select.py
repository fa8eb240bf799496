"""From scores to removals: which members go so that a target holds."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from exprune_fx.errors import ShrinkError
from exprune_fx.static.units import Bundle, Removal, outer_size

Ranking: TypeAlias = Literal["global", "layer"]
Remaining: TypeAlias = "Callable[[Sequence[Removal]], float]"


@dataclass(frozen=True)
class Limits:
    """What may not be removed.

    Attributes:
        min_kept: members that every group keeps at least.
        round_to: members kept are a multiple of this (rounded up; a smaller group is left whole).
        ratios: bundle name -> fraction that is removed from it, whatever its scores.
    """

    min_kept: int = 1
    round_to: int = 1
    ratios: Mapping[str, float] = field(default_factory=dict)

    def allowed(self, bundle: Bundle, wanted: int) -> int:
        """How many steps are made where `wanted` should be."""
        sizes = [(outer_size(group), bundle.per_step(group)) for group in bundle.groups]
        for steps in range(min(wanted, bundle.size - 1), 0, -1):
            kept = [size - steps * each for size, each in sizes]
            if all(left >= self.min_kept and left % self.round_to == 0 for left in kept):
                return steps
        return 0


@dataclass(frozen=True)
class Ranked:
    """A bundle with its members in order of removal.

    Attributes:
        bundle: the bundle.
        order: group name -> (repeats, size) members, the first to go first.
        steps: score of the first, second, ... removal, not descending.
    """

    bundle: Bundle
    order: Mapping[str, Tensor]
    steps: tuple[float, ...]

    def removals(self, count: int) -> tuple[Removal, ...]:
        """What the first `count` steps remove."""
        if not count:
            return ()
        return tuple(
            Removal(group, tuple(tuple(sorted(row[: count * each])) for row in self.order[group.name].tolist()))
            for group in self.bundle.groups
            for each in [self.bundle.per_step(group)]
        )


def ranked(bundle: Bundle, scores: Mapping[str, Tensor], normalise: bool) -> Ranked:
    """Puts a bundle's members in order.

    Raises:
        ShrinkError: the criterion left a group out, gave other shapes, or numbers that are not finite.
    """
    order: dict[str, Tensor] = {}
    rows: list[Tensor] = []
    for group in bundle.groups:
        found = scores.get(group.name)
        if found is None or tuple(found.shape) != (group.repeats, group.size) or not bool(found.isfinite().all()):
            raise ShrinkError(
                f"the criterion gave no finite scores of shape {(group.repeats, group.size)} for group {group.name}",
                hint="a criterion returns {group.name: (repeats, size)} for every group of its scene",
            )
        each = found.to(torch.float64).reshape(group.repeats, outer_size(group), -1).mean(2)
        mean = each.mean()
        each = each / mean if normalise and mean > 0 else each
        ascending = each.sort(dim=1, stable=True)
        order[group.name] = ascending.indices
        rows.append(ascending.values.unflatten(1, (bundle.size, -1)).mean(2))
    return Ranked(bundle, order, tuple(torch.cat(rows).mean(0).tolist()))


def choose(
    candidates: Sequence[Ranked], remaining: Remaining, goal: float, ranking: Ranking, limits: Limits
) -> tuple[Removal, ...]:
    """The fewest removals, in order of rank, after which no more than `goal` remains.

    Args:
        candidates: the bundles.
        remaining: what remains after removals, as a fraction.
        goal: the fraction that may remain.
        ranking: global puts all members in one order; layer takes the same fraction of every bundle.
        limits: what may not go.

    Raises:
        ShrinkError: the goal cannot be met; the message says what can.
    """
    fixed = {c.bundle.name: limits.ratios[c.bundle.name] for c in candidates if c.bundle.name in limits.ratios}
    counts = _global_counts if ranking == "global" else _layer_counts
    last, at = counts(candidates, fixed, limits)

    def removals(step: int) -> tuple[Removal, ...]:
        found = at(step)
        return tuple(r for c in candidates for r in c.removals(found[c.bundle.name]))

    def enough(step: int) -> bool:
        return remaining(removals(step)) <= goal + 1e-12

    if not enough(last):
        least = remaining(removals(last))
        raise ShrinkError(
            f"the target cannot be met: {goal:.4g} of the whole shall remain, and {least:.4g} is the least that can",
            hint="ask for less, or loosen min_kept, round_to, ratios or ignore",
        )
    low, high = 0, last
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle + 1, high)
    return removals(low)


_Counts: TypeAlias = "tuple[int, Callable[[int], dict[str, int]]]"


def _set(candidate: Ranked, fixed: Mapping[str, float], limits: Limits) -> int:
    return limits.allowed(candidate.bundle, round(fixed[candidate.bundle.name] * candidate.bundle.size))


def _global_counts(candidates: Sequence[Ranked], fixed: Mapping[str, float], limits: Limits) -> _Counts:
    entries = sorted(
        (score, i, j)
        for i, candidate in enumerate(candidates)
        if candidate.bundle.name not in fixed
        for j, score in enumerate(candidate.steps)
    )

    def at(step: int) -> dict[str, int]:
        found = {c.bundle.name: _set(c, fixed, limits) if c.bundle.name in fixed else 0 for c in candidates}
        for _, i, _ in entries[:step]:
            found[candidates[i].bundle.name] += 1
        return {
            c.bundle.name: found[c.bundle.name]
            if c.bundle.name in fixed
            else limits.allowed(c.bundle, found[c.bundle.name])
            for c in candidates
        }

    return len(entries), at


def _layer_counts(candidates: Sequence[Ranked], fixed: Mapping[str, float], limits: Limits) -> _Counts:
    fractions = sorted({0.0, *(j / c.bundle.size for c in candidates for j in range(1, c.bundle.size + 1))})

    def at(step: int) -> dict[str, int]:
        return {
            c.bundle.name: _set(c, fixed, limits)
            if c.bundle.name in fixed
            else limits.allowed(c.bundle, math.floor(fractions[step] * c.bundle.size + 1e-9))
            for c in candidates
        }

    return len(fractions) - 1, at


def by_fraction(candidates: Sequence[Ranked], fraction: float, limits: Limits) -> tuple[Removal, ...]:
    """The same fraction of every bundle, to the nearest member, as far as the limits let it."""
    return tuple(
        removal
        for c in candidates
        for removal in c.removals(
            limits.allowed(c.bundle, round(limits.ratios.get(c.bundle.name, fraction) * c.bundle.size))
        )
    )
