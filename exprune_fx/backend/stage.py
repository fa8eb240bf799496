"""From a graph in the dialect to its staged form, with a record of how its tensors come of the parameters."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

import torch
from torch import fx

from exprune_fx.backend import once
from exprune_fx.backend.derivation import Tape
from exprune_fx.backend.matching import plan_for_graph
from exprune_fx.backend.options import Options
from exprune_fx.backend.policy import plan_without_data
from exprune_fx.backend.tracing import Traced
from exprune_fx.graph.edits import fake_mode_of, tensor_at, tensor_names
from exprune_fx.ops import native
from exprune_fx.pass_manager import run_pipeline
from exprune_fx.passes.commute_relu_max_pool import CommuteReluMaxPoolPass
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from exprune_fx.passes.fold_batch_norm import FoldBatchNormPass
from exprune_fx.pipeline import rewrite
from exprune_fx.plan import Plan
from exprune_fx.sites import Site, find_sites
from exprune_fx.staging import KEPT_KEY, SITE_KEY
from exprune_fx.symmetry import SymmetryReport, symmetries

_log = logging.getLogger(__name__)
_NORMALISE = (DropNoOpsPass(), FoldBatchNormPass(values_known=False), CommuteReluMaxPoolPass())
NOTHING = "nothing in it can be staged"


def stage(traced: Traced, options: Options) -> tuple[fx.GraphModule, Tape] | str:
    """The staged graph and the record; why there is none, if nothing is to be staged.

    Raises:
        PlanError: the options' plan was made for another model.
        PassError: a site cannot be staged as planned.
    """
    with torch.no_grad():
        dense = run_pipeline(traced.gm, _NORMALISE)
        groups = symmetries(dense)
        sites = find_sites(dense, groups)
        if not sites:
            return "it has no site"
        lower = native.available()
        if not lower and not options.chosen:
            return "there are no native kernels, and the readable form computes more than the dense one"
        plan = _plan(dense, sites, groups, options, lower)
        _log_decisions(plan)
        if not plan.staged and not (lower and plan.skipping):
            return NOTHING
        mode = fake_mode_of(traced.gm)
        assert mode is not None
        tape = Tape(
            mode, {name: tensor_at(traced.gm, name) for name in tensor_names(traced.gm) if name in traced.states}
        )
        with tape:
            staged = rewrite(run_pipeline(traced.gm, _NORMALISE), plan, lower=lower, pack=options.freeze)
    return staged, tape


def _plan(dense: fx.GraphModule, sites: Sequence[Site], groups: SymmetryReport, options: Options, lower: bool) -> Plan:
    if options.plan is not None:
        return plan_for_graph(options.plan, sites, groups)
    plan = plan_without_data(sites, options)
    if options.chosen and options.objective != "latency":
        return plan
    return plan_without_data(sites, options, _without_kernel(dense, plan, lower))


def _without_kernel(dense: fx.GraphModule, plan: Plan, lower: bool) -> Collection[str]:
    """The sites that would stay in their readable form, which takes longer than the dense one."""
    staged = rewrite(dense, plan, lower=lower, pack=False)
    return {node.meta[SITE_KEY] for node in staged.graph.nodes if not lower or KEPT_KEY in node.meta}


def _log_decisions(plan: Plan) -> None:
    for entry in plan.sites:
        _log.info("site %r %s: %s", entry.site, list(entry.weight_shape), entry.reason)
    if plan.orders:
        once.inform(f"orders of terms are applied to {', '.join(plan.orders)}")
