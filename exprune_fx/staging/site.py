"""One site's staged form: the head's sums, a guard after each stage, and the finish in the activation's place."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx
from torch.fx.node import Argument

from exprune_fx.graph.edits import replace_node
from exprune_fx.guards import Bound, HeadKind
from exprune_fx.ops import coded, heads
from exprune_fx.plan import SitePlan
from exprune_fx.sites import Site
from exprune_fx.staging.emitter import STAGE_KEY, Emitter
from exprune_fx.staging.guard_nodes import Known, guard_node, input_norm


def stage_site(gm: fx.GraphModule, site: Site, entry: SitePlan, nodes: dict[str, fx.Node], made_by: str) -> None:
    """Replaces a site's activation by its staged form, in place; the dense nodes are left without users.

    Args:
        gm: the graph module to edit, which nobody else holds.
        site: a site of it, without an obstacle.
        entry: what was decided for it, not dense.
        nodes: by the names that sites know them by; the activation's name is given to the node that replaces it, so
            that a later site whose residual it is finds it.
        made_by: the name of the pass that asks.

    Raises:
        PassError: there is no rewrite for the entry's guard.
    """
    emit = Emitter(gm, site, entry, nodes, made_by)
    constant = None
    if emit.bias is not None or emit.residual is not None:
        operator = torch.ops.exprune.constant_term.default
        constant = emit.call(operator, emit.bias, emit.residual, site.spatial_dims)
    whole = input_norm(emit, 0) if isinstance(entry.guard, Bound) else None
    partial, stopped, start = _HEADS[entry.looks_at](emit, constant, whole)
    finish = _finish(emit, partial, stopped, start)
    replace_node(gm, nodes[site.activation_node], finish)
    nodes[site.activation_node] = finish


Head = tuple[fx.Node | None, fx.Node, int]  # the sum to go on from (None: from nothing), who stopped, the next feature


def _prefix(emit: Emitter, constant: fx.Node | None, whole: fx.Node | None) -> Head:
    """The first terms, in as many stages as planned."""
    guard, block = emit.entry.guard, emit.site.block
    per_term: tuple[Argument, ...] = (block,) if emit.site.geometry is None else ()
    partial: fx.Node | None = None
    squares: fx.Node | None = None
    stopped: fx.Node | None = None
    start = 0
    for index, seen in enumerate(emit.entry.stages):
        read = (emit.x, emit.reduction.args[1], *emit.geometry, start, seen * block)
        partial = emit.call_by_kind("partial_{}", *read, partial)
        if guard is not None and guard.needs_squares:
            squares = emit.call_by_kind("squares_{}", *read, *per_term, squares)
        stopped = _stopped(emit, Known(index, partial, squares, constant, None, whole, stopped))
        start = seen * block
    assert stopped is not None
    return partial, stopped, start


def _principal(emit: Emitter, constant: fx.Node | None, whole: fx.Node | None) -> Head:
    """The best rank-r estimate; survivors are computed from nothing."""
    weight, entry = emit.weight, emit.entry
    assert entry.down is not None
    assert entry.lift is not None
    down = entry.down.tensor().to(weight)
    up = heads.principal_up(weight, entry.lift.tensor().to(weight))
    walk = emit.geometry[:3]
    partial = emit.call_by_kind(
        "principal_{}", emit.x, emit.bind("principal_down", down), emit.bind("principal_up", up), *walk
    )
    return None, _stopped(emit, Known(0, partial, None, constant, (down, up), whole)), 0


def _coded(emit: Emitter, constant: fx.Node | None, whole: fx.Node | None) -> Head:
    """Every pre-activation estimated in 8 bits; survivors are computed from nothing."""
    codes, scales = coded.codes_of(emit.weight)
    tables = (emit.bind("codes", codes), emit.bind("code_scales", scales))
    partial = emit.call(torch.ops.exprune.coded_conv.default, emit.x, *tables, *emit.geometry[:3])
    return None, _stopped(emit, Known(0, partial, None, constant, None, whole)), 0


_HEADS: dict[HeadKind, Callable[[Emitter, fx.Node | None, fx.Node | None], Head]] = {
    "prefix": _prefix,
    "principal": _principal,
    "coded": _coded,
}


def _stopped(emit: Emitter, known: Known) -> fx.Node:
    """Who has stopped after this stage, here or before."""
    stopped = guard_node(emit, known)
    if known.stopped is not None:
        stopped = emit.call(torch.ops.aten.logical_or.default, known.stopped, stopped)
    emit.mark(stopped, "stopped")
    stopped.meta[STAGE_KEY] = known.index
    return stopped


def _finish(emit: Emitter, partial: fx.Node | None, stopped: fx.Node, start: int) -> fx.Node:
    known = (emit.bias, emit.residual, partial, stopped)
    activation = emit.site.activation
    finish = emit.call_by_kind(
        "finish_{}_relu", emit.x, emit.reduction.args[1], *known, *emit.geometry, start, activation
    )
    emit.mark(finish, "finish")
    return finish
