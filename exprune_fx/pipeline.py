"""The default pipelines, as tuples of passes, and the two calls that run them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from exprune_fx.errors import PlanError
from exprune_fx.graph.edits import copy_graph_module
from exprune_fx.pass_manager import Pass, run_pipeline
from exprune_fx.passes.commute_relu_max_pool import CommuteReluMaxPoolPass
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from exprune_fx.passes.fold_batch_norm import FoldBatchNormPass
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.plan import Plan
from exprune_fx.sites import Site, find_sites
from exprune_fx.symmetry import SymmetryReport, symmetries

NORMALISE: tuple[Pass, ...] = (DropNoOpsPass(), FoldBatchNormPass(), CommuteReluMaxPoolPass())
RECORD_KEY = "exprune_record"


@dataclass(frozen=True)
class StagedRecord:
    """What a staged graph remembers of how it came about; it hangs on ``gm.meta["exprune_record"]``.

    Attributes:
        plan: what was decided.
        dense: the normalised, reordered graph before staging; it shares its tensors with the staged one.
        sites: the sites of ``dense``.
        groups: the symmetry groups of ``dense``.
    """

    plan: Plan
    dense: fx.GraphModule
    sites: tuple[Site, ...]
    groups: SymmetryReport


def record_of(gm: fx.GraphModule) -> StagedRecord | None:
    """The record of a graph that ``transform`` made, or None."""
    record = getattr(gm, "meta", {}).get(RECORD_KEY)
    return record if isinstance(record, StagedRecord) else None


def normalise(gm: fx.GraphModule) -> fx.GraphModule:
    """Folds batch norms, drops what does nothing at inference, and moves ReLU before max-pool.

    Args:
        gm: a captured graph; it is left as it is.

    Returns:
        An equal graph (to rounding), in which sites can be staged.
    """
    return run_pipeline(gm, NORMALISE)


def transform(gm: fx.GraphModule, plan: Plan, lower: bool = False) -> fx.GraphModule:
    """Rewrites a captured graph by a plan into its staged form.

    Args:
        gm: a captured graph; it is left as it is, bit for bit.
        plan: what ``calibrate`` decided for this model.
        lower: replace the readable nodes by fused operators with a native kernel. This release has none: False only.

    Returns:
        A GraphModule that is called like the model.

    Raises:
        PlanError: the plan was made for another model, or asks for kernels that are not there.
        PassError: a site cannot be staged as planned.
    """
    if lower:
        raise PlanError("this release has no native kernels to lower to", hint="use lower=False, the readable form")
    if not isinstance(plan, Plan):
        raise PlanError(f"the plan is a {type(plan).__name__}", hint="give the Plan that calibrate returned")
    dense = run_pipeline(gm, (*NORMALISE, ReorderTermsPass(plan.orders)))
    groups = symmetries(dense)
    sites = find_sites(dense, groups)
    plan.check_fits(sites)
    staged = run_pipeline(dense, (StageSitesPass(plan), SkipGatedRowsPass()))
    if staged is dense:
        staged = copy_graph_module(dense)
    staged.meta[RECORD_KEY] = StagedRecord(plan, dense, sites, groups)
    return staged
