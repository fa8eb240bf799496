"""Writes one site's staged form into a graph: partial sum, guard, ..., finish. Used by the pass that stages sites."""

from __future__ import annotations

import torch
from torch import fx
from torch.fx.node import Argument

from exprune_fx.errors import PassError
from exprune_fx.graph.edits import fresh_name, insert_call, replace_node, set_tensor, tensor_at
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, StatsTest, Threshold
from exprune_fx.ops import heads
from exprune_fx.plan import SitePlan
from exprune_fx.sites import Site

exprune = torch.ops.exprune

SITE_KEY = "exprune_site"  # meta of a staged node: the site's name
ROLE_KEY = "exprune_role"  # "stopped" (bool, after a stage), "finish" (the activation) or "gated" (its product)
STAGE_KEY = "exprune_stage"  # of a "stopped" node: the index of its stage


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
    nodes[site.activation_node] = _Stager(gm, site, entry, nodes, made_by).rewrite()


class _Stager:
    """Writes one site's nodes, in front of its activation."""

    def __init__(
        self, gm: fx.GraphModule, site: Site, entry: SitePlan, nodes: dict[str, fx.Node], pass_name: str
    ) -> None:
        self.gm, self.site, self.entry, self.pass_name = gm, site, entry, pass_name
        self.reduction, self.activation = nodes[site.node], nodes[site.activation_node]
        self.residual = nodes[site.residual] if site.residual else None
        self.x, self.weight = self.reduction.args[0], self.reduction.args[1]
        given = self.reduction.args[2] if len(self.reduction.args) > 2 else self.reduction.kwargs.get("bias")
        self.bias = given if isinstance(given, fx.Node) else None
        self.tensor = tensor_at(gm, site.weight).detach()
        self.constant: fx.Node | None = None

    def rewrite(self) -> fx.Node:
        """Head and guard for each stage, then the finish in the activation's place."""
        if self.bias is not None or self.residual is not None:
            self.constant = self._call(exprune.constant_term.default, self.bias, self.residual, self.site.spatial_dims)
        if self.entry.head == "prefix":
            partial, stopped, start = self._prefix()
        else:
            partial, stopped, start = None, self._principal(), 0
        finish = self._finish(partial, stopped, start)
        self._mark(finish, "finish")
        replace_node(self.gm, self.activation, finish)
        return finish

    # --- heads --------------------------------------------------------------------------------------------------------

    def _prefix(self) -> tuple[fx.Node, fx.Node, int]:
        kind = "linear" if self.site.geometry is None else "conv"
        partial_op = getattr(exprune, f"partial_{kind}").default
        squares_op = getattr(exprune, f"squares_{kind}").default
        block = (self.site.block,) if kind == "linear" else ()
        partial = squares = stopped = None
        start = 0
        assert self.entry.guard is not None
        for index, seen in enumerate(self.entry.stages):
            span = (start, seen * self.site.block)
            partial = self._call(partial_op, self.x, self.weight, *self._geometry(), *span, partial)
            if self.entry.guard.needs_squares:
                squares = self._call(squares_op, self.x, self.weight, *self._geometry(), *span, *block, squares)
            stopped = self._stopped(index, partial, squares, stopped)
            start = span[1]
        assert partial is not None
        assert stopped is not None
        return partial, stopped, start

    def _principal(self) -> fx.Node:
        assert self.entry.down is not None
        assert self.entry.lift is not None
        down = self.entry.down.tensor().to(self.tensor)
        up = heads.principal_up(self.tensor, self.entry.lift.tensor().to(self.tensor))
        down_node, up_node = self._bind("principal_down", down), self._bind("principal_up", up)
        if self.site.geometry is None:
            partial = self._call(exprune.principal_linear.default, self.x, down_node, up_node)
        else:
            partial = self._call(exprune.principal_conv.default, self.x, down_node, up_node, *self._geometry()[:3])
        return self._stopped(0, partial, None, None, factors=(down, up))

    # --- guards -------------------------------------------------------------------------------------------------------

    def _stopped(
        self,
        index: int,
        partial: fx.Node,
        squares: fx.Node | None,
        earlier: fx.Node | None,
        factors: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> fx.Node:
        """The guard's node after stage ``index``, joined with what stopped before."""
        stopped = self._guard(index, partial, squares, factors)
        if earlier is not None:
            stopped = self._call(torch.ops.aten.logical_or.default, earlier, stopped)
        self._mark(stopped, "stopped")
        stopped.meta[STAGE_KEY] = index
        return stopped

    def _guard(
        self,
        index: int,
        partial: fx.Node,
        squares: fx.Node | None,
        factors: tuple[torch.Tensor, torch.Tensor] | None,
    ) -> fx.Node:
        guard, seen, terms = self.entry.guard, self.entry.stages[index], self.site.terms
        if isinstance(guard, Threshold):
            return self._call(
                exprune.guard_threshold.default, partial, self.constant, seen, terms, float(guard.threshold)
            )
        if isinstance(guard, StatsTest | FinitePopulation):
            operator = (
                exprune.guard_stats_test if isinstance(guard, StatsTest) else exprune.guard_finite_population
            ).default
            return self._call(operator, partial, squares, self.constant, seen, terms, guard.quantile)
        if isinstance(guard, Calibrated):
            assert self.entry.thresholds is not None
            thresholds = self._bind_per_output(f"thresholds_{index}", self.entry.thresholds.tensor()[index])
            return self._call(exprune.guard_calibrated.default, partial, self.constant, thresholds)
        if isinstance(guard, Bound):
            return self._bound(partial, 0 if factors else seen, factors)
        raise PassError(f"{self.pass_name}: site {self.site.name!r}: no rewrite for guard {guard}")

    def _bound(self, partial: fx.Node, seen: int, factors: tuple[torch.Tensor, torch.Tensor] | None) -> fx.Node:
        nonnegative, first = self.site.input_nonnegative, seen * self.site.block
        if factors is None:
            rest = heads.rest_weight_norm(self.tensor, first, nonnegative)
            whole = heads.weight_norm(self.tensor)
        else:
            rest = heads.principal_rest_norm(self.tensor, *factors, nonnegative)
            whole = heads.principal_margin_norm(self.tensor, *factors)
        return self._call(
            exprune.guard_bound.default,
            partial,
            self.constant,
            self._bind_per_output(f"rest_weight_norm_{seen}", rest),
            self._input_norm(first),
            self._bind_per_output("weight_norm", whole),
            self._input_norm(0),
            self.site.elements,
        )

    def _input_norm(self, first: int) -> fx.Node:
        last = self.site.terms * self.site.block
        if self.site.geometry is None:
            return self._call(exprune.input_norm_linear.default, self.x, first, last)
        groups = self.site.geometry.groups
        kernel = list(self.site.weight_shape[2:])
        return self._call(
            exprune.input_norm_conv.default,
            self.x,
            kernel,
            *self._geometry(),
            self.site.out_features // groups,
            first,
            last,
        )

    # --- the tail -----------------------------------------------------------------------------------------------------

    def _finish(self, partial: fx.Node | None, stopped: fx.Node, start: int) -> fx.Node:
        operator = exprune.finish_linear_relu if self.site.geometry is None else exprune.finish_conv_relu
        return self._call(
            operator.default,
            self.x,
            self.weight,
            self.bias,
            self.residual,
            partial,
            stopped,
            *self._geometry(),
            start,
            self.site.activation,
        )

    # --- small things -------------------------------------------------------------------------------------------------

    def _geometry(self) -> tuple[Argument, ...]:
        geometry = self.site.geometry
        if geometry is None:
            return ()
        return (list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups)

    def _call(self, target: torch._ops.OpOverload, *args: Argument) -> fx.Node:
        return insert_call(self.gm, target, args, like=self.reduction, made_by=self.pass_name, before=self.activation)

    def _mark(self, node: fx.Node, role: str) -> None:
        node.meta[SITE_KEY], node.meta[ROLE_KEY] = self.site.name, role

    def _bind(self, what: str, value: torch.Tensor) -> fx.Node:
        name = fresh_name(self.gm, f"exprune.{self.site.name.replace('.', '_').replace('#', '_')}.{what}")
        return set_tensor(self.gm, name, value)

    def _bind_per_output(self, what: str, value: torch.Tensor) -> fx.Node:
        """One number per output, shaped to stand against [N, out, *space] or [..., out]; float32 at least."""
        wide = torch.float64 if self.tensor.dtype == torch.float64 else torch.float32
        shaped = value.to(device=self.tensor.device, dtype=wide)
        if isinstance(self.entry.guard, Bound):
            shaped = torch.nextafter(shaped, torch.full_like(shaped, torch.inf))  # a bound is rounded up
        return self._bind(what, shaped.reshape(-1, *[1] * self.site.spatial_dims))
