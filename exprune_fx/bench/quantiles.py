"""Hand-made plans: thresholds at a wanted quantile, and biases that leave a wanted share of activations zero.

This is how benchmarks get a *known* share of stopped neurons. Nothing is calibrated: a neuron's threshold is the value
below which the wanted share of its own prefix sums lies, over sample inputs, whatever that does to the outputs. That
stopping then hits dead neurons almost only is the work of the samples: the first terms carry most of the variance, as
they do after calibration has put the terms in order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from exprune_fx.calibration.basis import principal_basis
from exprune_fx.calibration.moments import MomentObserver
from exprune_fx.calibration.observe import Data
from exprune_fx.errors import PlanError
from exprune_fx.graph.edits import tensor_at
from exprune_fx.graph.running import placeholder_values
from exprune_fx.guards import Calibrated, HeadKind
from exprune_fx.ops.coded import obstacle
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import Site, find_sites
from exprune_fx.staging import SITE_KEY

Batches = Sequence[tuple[Any, ...]]


def quantile_plan(
    gm: fx.GraphModule, batches: Batches, stopped: float, seen: float = 1 / 8, head: HeadKind = "prefix"
) -> Plan:
    """Stages every site so that, over the batches, each neuron stops for this share of its inputs (pixels, tokens).

    Args:
        gm: a captured graph.
        batches: sample inputs.
        stopped: share from 0 (thresholds of minus infinity) to below 1.
        seen: share of the terms that the head sees, or its rank as a share of the features.
        head: prefix, principal or coded; where no coded head may be, the site stays dense.

    Raises:
        PlanError: the graph has no site that can be staged.
    """
    dense = normalise(gm)
    sites = find_sites(dense)
    chosen = [site for site in sites if not site.obstacle and round(seen * site.terms) >= 1]
    if head == "coded":
        chosen = [site for site in chosen if site.geometry and not obstacle(site.weight_shape, site.geometry.groups)]
    if not chosen:
        raise PlanError("the graph has no site to stage", hint="give a model with a linear layer or convolution + ReLU")
    bases = _bases(dense, chosen, batches, seen) if head == "principal" else {}
    names = {site.name for site in chosen}
    entries = [
        _entry(site, seen, head, bases.get(site.name)) if site.name in names else SitePlan(site.name, site.weight_shape)
        for site in sites
    ]
    plan = Plan(tuple(entries))
    if stopped <= 0:
        return plan
    sums = _known_sums(transform(gm, plan, lower=False), batches)
    return Plan(tuple(_with_thresholds(entry, sums, stopped) for entry in plan.sites), examples=len(batches))


def shift_biases(model: nn.Module, layers: Sequence[nn.Module], batches: Batches, zero: float) -> None:
    """Shifts each layer's bias so that, over the batches, each neuron's pre-activation is negative for this share.

    Args:
        model: of our own making: its biases are written to.
        layers: linear layers or convolutions of it, in the order in which they run.
        batches: sample inputs.
        zero: share from 0 (all clearly positive) to below 1.
    """
    for layer in layers:
        seen: list[Tensor] = []
        hook = layer.register_forward_hook(lambda module, _args, out, seen=seen: seen.append(_rows(module, out)))
        with torch.no_grad():
            for batch in batches:
                model(*batch)
            hook.remove()
            values = torch.cat(seen).sort(dim=0).values
            margin = 0.1 * values.std() if zero <= 0 else 0.0
            bias = layer.bias
            assert isinstance(bias, Tensor)
            bias -= values[int(zero * len(values))] - margin


def _rows(layer: nn.Module, out: Tensor) -> Tensor:
    """Outputs as samples: [..., out] -> [samples, out], [N, out, *space] -> [N*pixels, out]."""
    if isinstance(layer, nn.Linear):
        return out.reshape(-1, out.shape[-1])
    return out.movedim(1, -1).reshape(-1, out.shape[1])


def _bases(
    dense: fx.GraphModule, sites: Sequence[Site], batches: Batches, seen: float
) -> dict[str, tuple[Tensor, Tensor]]:
    moments = MomentObserver()
    Data(list(batches)).walk(dense, sites, moments, "moments")
    bases = {}
    for site in sites:
        weight = tensor_at(dense, site.weight).detach()
        basis = principal_basis(weight, moments.moments[site.name].matrix())
        bases[site.name] = basis.truncated(max(1, round(seen * site.weight_shape[1])))
    return bases


def _entry(site: Site, seen: float, head: HeadKind, basis: tuple[Tensor, Tensor] | None) -> SitePlan:
    """Staged with one stage, and nothing stopped."""
    down, lift = basis if basis is not None else (None, None)
    prefix = site.terms if head == "coded" else round(seen * site.terms)
    return SitePlan(
        site=site.name,
        weight_shape=site.weight_shape,
        head=head,
        reason="staged by hand",
        guard=Calibrated(0.0),
        stages=(prefix if down is None else down.shape[0],),
        thresholds=Array.of(torch.full((1, site.weight_shape[0]), -torch.inf)),
        down=None if down is None else Array.of(down),
        lift=None if lift is None else Array.of(lift),
    )


class _KnownSums(fx.Interpreter):
    """Collects what each calibrated guard compares with its thresholds: S + c, as [samples, out]."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.sums: dict[str, list[Tensor]] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs the node; notes the guard's operands."""
        if n.target is torch.ops.exprune.guard_calibrated.default:
            (partial, constant, thresholds), _ = self.fetch_args_kwargs_from_env(n)
            known = partial if constant is None else partial + constant
            axis = known.dim() - thresholds.dim()  # thresholds are [out] or [out, 1, 1]
            rows = known.movedim(axis, -1).reshape(-1, known.shape[axis])
            self.sums.setdefault(n.meta[SITE_KEY], []).append(rows.float())
        return super().run_node(n)


def _known_sums(staged: fx.GraphModule, batches: Batches) -> dict[str, Tensor]:
    interpreter = _KnownSums(staged)
    with torch.no_grad():
        for batch in batches:
            interpreter.run(*placeholder_values(staged, batch), enable_io_processing=False)
    return {name: torch.cat(rows) for name, rows in interpreter.sums.items()}


def _with_thresholds(entry: SitePlan, sums: dict[str, Tensor], stopped: float) -> SitePlan:
    if entry.head == "dense":
        return entry
    ordered = sums[entry.site].sort(dim=0).values
    index = int(stopped * len(ordered))
    thresholds = (ordered[max(index - 1, 0)] + ordered[index]) / 2  # between samples: on one, rounding would decide
    return replace(entry, thresholds=Array.of(thresholds.unsqueeze(0)), alive_fraction=(1 - stopped,))
