"""From a graph in the dialect to its staged form, with a record of how its tensors come of the parameters."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch
from torch import fx

from exprune_fx.backend import once
from exprune_fx.backend.derivation import Tape
from exprune_fx.backend.heads import heads_for_graph
from exprune_fx.backend.matching import plan_for_graph
from exprune_fx.backend.options import Options
from exprune_fx.backend.policy import plan_without_data
from exprune_fx.backend.tracing import Traced
from exprune_fx.graph.edits import fake_mode_of, tensor_at, tensor_names
from exprune_fx.ops import native
from exprune_fx.pass_manager import Pass, run_pipeline
from exprune_fx.passes.commute_relu_max_pool import CommuteReluMaxPoolPass
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from exprune_fx.passes.fold_batch_norm import FoldBatchNormPass
from exprune_fx.pipeline import rewrite
from exprune_fx.plan import Plan
from exprune_fx.sites import find_sites
from exprune_fx.staging import KEPT_KEY, SITE_KEY
from exprune_fx.symmetry import symmetries

_log = logging.getLogger(__name__)
NOTHING = "nothing in it can be staged"


def stage(traced: Traced, options: Options) -> tuple[fx.GraphModule, Tape] | str:
    """The staged graph and the record; why there is none, if nothing is to be staged.

    Raises:
        PlanError: the options' plan was made for another model.
        PassError: a site cannot be staged as planned.
    """
    with torch.no_grad():
        dense = run_pipeline(traced.gm, _normalising())
        groups = symmetries(dense)
        sites = find_sites(dense, groups)
        heads = heads_for_graph(options, dense)
        if not sites and not heads:
            return "it has no site: no layer with a parameter as weight meets a ReLU through affine operations only"
        lower = native.available()
        if not lower and not options.chosen:
            return "there are no native kernels, and the readable form computes more than the dense one"
        if options.plan is not None:
            plan = plan_for_graph(options.plan, sites, groups) if sites else replace(options.plan, sites=(), orders={})
            plan = replace(plan, heads=heads)
            found = _rewritten(traced, plan, options, lower)
        else:
            plan = plan_without_data(sites, options)
            found = _rewritten(traced, plan, options, lower)
            readable = set() if options.chosen and options.objective != "latency" else _readable_sites(found, lower)
            if readable:  # it takes longer than the dense form: it is for those who asked for it
                plan = plan_without_data(sites, options, readable)
                found = _rewritten(traced, plan, options, lower)
    _log_decisions(plan)
    return found


def _readable_sites(found: tuple[fx.GraphModule, Tape] | str, lower: bool) -> set[str]:
    """The sites that no native kernel holds."""
    if isinstance(found, str):
        return set()
    nodes = (node for node in found[0].graph.nodes if SITE_KEY in node.meta)
    return {node.meta[SITE_KEY] for node in nodes if not lower or KEPT_KEY in node.meta}


def _normalising(modules: tuple[str, ...] | None = None) -> tuple[Pass, ...]:
    """The normalising passes, for tensors without values; batch norms are folded for some modules only, or for all."""
    return DropNoOpsPass(), FoldBatchNormPass(values_known=False, modules=modules), CommuteReluMaxPoolPass()


def _rewritten(traced: Traced, plan: Plan, options: Options, lower: bool) -> tuple[fx.GraphModule, Tape] | str:
    if plan.skipping and lower and not options.freeze:
        names = ", ".join(entry.site for entry in plan.skipping)
        once.inform(f"zeros of {names} are not skipped: that needs packed weights, which option freeze=True makes")
    if not plan.staged and not plan.staged_heads and not (lower and options.freeze and plan.skipping):
        return NOTHING
    modules: tuple[str, ...] | None = None
    if not options.freeze and not plan.orders:
        # To fold is to compute a weight at every call. (Orders are named after folded weights.)
        modules = tuple(entry.site.partition("#")[0] for entry in plan.staged)
    mode = fake_mode_of(traced.gm)
    assert mode is not None
    tape = Tape(mode)
    for name in tensor_names(traced.gm):
        if name in traced.states:
            tape.watch(tensor_at(traced.gm, name), traced.states[name].place, traced.states[name].dtype)
    with tape:
        staged = rewrite(run_pipeline(traced.gm, _normalising(modules)), plan, lower=lower, pack=options.freeze)
    return staged, tape


def _log_decisions(plan: Plan) -> None:
    for entry in plan.sites:
        _log.info("site %r %s: %s", entry.site, list(entry.weight_shape), entry.reason)
    if plan.orders:
        once.inform(f"orders of terms are applied to {', '.join(plan.orders)}")
