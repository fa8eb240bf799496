"""The node that decides, for each guard."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from exprune_fx.errors import PassError
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, StatsTest, Threshold
from exprune_fx.ops import heads
from exprune_fx.staging.emitter import Emitter

exprune = torch.ops.exprune


@dataclass(frozen=True)
class Known:
    """What a guard may look at after one stage.

    Attributes:
        index: of the stage.
        partial: the node of S.
        squares: the node of Q, if the guard needs it.
        constant: the node of c, None where it is zero.
        factors: values of ``down`` and ``up``, for a principal head.
        input_norm: the node of the whole input's norm, for `Bound`.
        stopped: the node of who stopped at an earlier stage, or None.
    """

    index: int
    partial: fx.Node
    squares: fx.Node | None
    constant: fx.Node | None
    factors: tuple[Tensor, Tensor] | None = None
    input_norm: fx.Node | None = None
    stopped: fx.Node | None = None


def guard_node(emit: Emitter, known: Known) -> fx.Node:
    """Writes the node that says who stops here, earlier stages aside.

    Raises:
        PassError: there is no rewrite for the entry's guard.
    """
    guard, seen, terms = emit.entry.guard, emit.entry.stages[known.index], emit.site.terms
    if isinstance(guard, Threshold):
        return emit.call(
            exprune.guard_threshold.default, known.partial, known.constant, seen, terms, float(guard.threshold)
        )
    if isinstance(guard, StatsTest | FinitePopulation):
        rule = exprune.guard_stats_test if isinstance(guard, StatsTest) else exprune.guard_finite_population
        return emit.call(rule.default, known.partial, known.squares, known.constant, seen, terms, guard.quantile)
    if isinstance(guard, Calibrated):
        return _calibrated(emit, known)
    if isinstance(guard, Bound):
        return _bound(emit, known, 0 if known.factors else seen * emit.site.block)
    raise PassError(f"{emit.made_by}: site {emit.site.name!r}: no rewrite for guard {guard}", hint="plan another guard")


def _calibrated(emit: Emitter, known: Known) -> fx.Node:
    entry = emit.entry
    assert entry.thresholds is not None
    sums = (known.partial, known.constant)
    thresholds = emit.bind_per_output(f"thresholds_{known.index}", entry.thresholds.tensor()[known.index])
    if entry.margins is None:
        return emit.call(exprune.guard_calibrated.default, *sums, thresholds)
    margins = emit.bind_per_output(f"margins_{known.index}", entry.margins.tensor()[known.index])
    window = list(entry.window)
    return emit.call(exprune.guard_pooled.default, *sums, thresholds, margins, window, known.stopped)


def _bound(emit: Emitter, known: Known, first: int) -> fx.Node:
    rest, whole = heads.bound_norms(emit.weight, first, emit.site.input_nonnegative, known.factors)
    assert known.input_norm is not None
    return emit.call(
        exprune.guard_bound.default,
        known.partial,
        known.constant,
        emit.bind_per_output(f"rest_weight_norm_{known.index}", rest),
        input_norm(emit, first) if first else known.input_norm,
        emit.bind_per_output(f"weight_norm_{known.index}", whole),
        known.input_norm,
        emit.site.elements,
    )


def input_norm(emit: Emitter, first: int) -> fx.Node:
    """Writes the node of the norm of the site's inputs from feature (channel) ``first`` on."""
    site, last = emit.site, emit.site.terms * emit.site.block
    if site.geometry is None:
        return emit.call(exprune.input_norm_linear.default, emit.x, first, last)
    outputs_per_group = site.out_features // site.geometry.groups
    kernel = list(site.weight_shape[2:])
    return emit.call(exprune.input_norm_conv.default, emit.x, kernel, *emit.geometry, outputs_per_group, first, last)
