"""The default pipelines, as tuples of passes, and the two calls that run them."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx
from torch._subclasses.fake_tensor import is_fake

from exprune_fx.errors import PlanError
from exprune_fx.graph.edits import copy_graph_module, recompile, set_tensor, tensor_at, tensor_names
from exprune_fx.ops import native
from exprune_fx.pass_manager import Pass, run_pipeline
from exprune_fx.passes.code_weights import CodeWeightsPass
from exprune_fx.passes.commute_relu_max_pool import CommuteReluMaxPoolPass
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from exprune_fx.passes.fold_batch_norm import FoldBatchNormPass
from exprune_fx.passes.fuse_feed_forward import FuseFeedForwardPass
from exprune_fx.passes.fuse_max_pool import FuseMaxPoolPass
from exprune_fx.passes.lower_heads import LowerHeadsPass
from exprune_fx.passes.lower_sites import LowerSitesPass
from exprune_fx.passes.pack_weights import PackWeightsPass
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.split_weights import SplitWeightsPass
from exprune_fx.passes.stage_heads import StageHeadsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.plan import Plan
from exprune_fx.sites import Site, find_sites
from exprune_fx.staging import ROLE_KEY
from exprune_fx.staging.pages import back_by_huge_pages, weights_of_fused
from exprune_fx.symmetry import SymmetryReport, symmetries

NORMALISE: tuple[Pass, ...] = (DropNoOpsPass(), FoldBatchNormPass(), CommuteReluMaxPoolPass())
RECORD_KEY = "exprune_record"


@dataclass(frozen=True)
class StagedRecord:
    """What a staged graph remembers of how it came about; it hangs on ``gm.meta["exprune_record"]``.

    Attributes:
        plan: what was decided.
        dense: the normalised, reordered graph before staging; it shares its tensors with the staged or lowered one.
        sites: the sites of ``dense``.
        groups: the symmetry groups of ``dense``.
        captured: the graph that was given to ``transform``, with the tensors of ``dense`` where that has one of the
            name: reordered and packed, so that no weight is held twice. What normalising did away with is its own, and
            its metadata are those of the original. Not to be run; `exprune_fx.saving` puts the order back.
        lowered: whether fused operators were made where there is a kernel.
    """

    plan: Plan
    dense: fx.GraphModule
    sites: tuple[Site, ...]
    groups: SymmetryReport
    captured: fx.GraphModule | None = None
    lowered: bool = False


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


def transform(gm: fx.GraphModule, plan: Plan, lower: bool = True) -> fx.GraphModule:
    """Rewrites a captured graph by a plan into its staged form.

    Args:
        gm: a captured graph; it is left as it is, bit for bit.
        plan: what ``calibrate`` decided for this model.
        lower: replace the readable nodes by fused operators with a native kernel, for float32, bfloat16 and float16 on
            the CPU, inference only. What no kernel holds stays readable, everything where the kernels cannot be built;
            ``explain`` says which form each site has. False: the readable form, plain PyTorch that can be traced,
            exported and differentiated.

    Returns:
        A GraphModule that is called like the model.

    Raises:
        PlanError: the plan was made for another model.
        PassError: a site cannot be staged as planned.
    """
    if not isinstance(plan, Plan):
        raise PlanError(f"the plan is a {type(plan).__name__}", hint="give the Plan that calibrate returned")
    lower = lower and bool(plan.staged or plan.skipping or plan.staged_heads) and native.available()
    staged = rewrite(normalise(gm), plan, lower=lower)
    record = record_of(staged)
    assert record is not None
    staged.meta[RECORD_KEY] = replace(record, captured=_with_dense_tensors(gm, record.dense), lowered=lower)
    return staged


def _with_dense_tensors(gm: fx.GraphModule, dense: fx.GraphModule) -> fx.GraphModule:
    """See ``StagedRecord.captured``."""
    values = {node.target: node.meta["val"] for node in gm.graph.nodes if node.op == "get_attr"}
    result = copy_graph_module(with_tensors_of(gm, dense))
    for node in result.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = values[node.target]
    return result


def rewrite(gm: fx.GraphModule, plan: Plan, *, lower: bool, pack: bool = True) -> fx.GraphModule:
    """What ``transform`` does to a graph that is normalised already.

    Args:
        gm: a normalised graph; it is left as it is.
        plan: one entry for each site of it.
        lower: use the fused operators, which must be there.
        pack: give weights the memory layouts in which the kernels read them, and 8-bit codes, or 24 bits, to those of
            large linear layers. Else the kernels convert layouts at each call, and feed-forwards are not joined: that
            would transpose their second weight each time.

    Raises:
        PlanError: the plan was made for another model.
        PassError: a site cannot be staged as planned.
    """
    dense = run_pipeline(gm, (ReorderTermsPass(plan.orders), *((ReshapeViewsPass(),) if lower else ())))
    groups = symmetries(dense)
    record = StagedRecord(plan, dense, find_sites(dense, groups), groups)
    plan.check_fits(record.sites)
    staged = lowered_form(record, pack=pack) if lower else _stage(record)
    if lower:
        record = replace(record, dense=with_tensors_of(dense, staged))
    if staged is dense:
        staged = copy_graph_module(dense)
    staged.meta[RECORD_KEY] = record
    return staged


def lowered_form(record: StagedRecord, *, pack: bool = True) -> fx.GraphModule:
    """The staged graph with fused operators, which must be there; it has no record yet.

    ``record.dense`` has no `aten.view` behind convolutions (see reshape-views).
    """
    skipping = tuple(entry.site for entry in record.plan.skipping)
    joining = FuseFeedForwardPass(record.sites, skipping)
    packing: tuple[Pass, ...] = (joining, CodeWeightsPass(), SplitWeightsPass(), PackWeightsPass())
    lowering: tuple[Pass, ...] = (LowerSitesPass(), FuseMaxPoolPass(), LowerHeadsPass(), *(packing if pack else ()))
    lowered = run_pipeline(_stage(record), lowering)
    if pack:
        back_by_huge_pages(weight for weight in weights_of_fused(lowered) if not is_fake(weight))
    return lowered


def readable_form(gm: fx.GraphModule) -> fx.GraphModule:
    """The readable form of what ``transform`` made, with its record: the graph itself if nothing in it is lowered."""
    record = record_of(gm)
    if record is None or not any(node.meta.get(ROLE_KEY) == "fused" for node in gm.graph.nodes):
        return gm
    staged = _stage(record)
    if staged is record.dense:
        staged = copy_graph_module(staged)
    staged.meta[RECORD_KEY] = record
    return staged


def _stage(record: StagedRecord) -> fx.GraphModule:
    passes: tuple[Pass, ...] = (StageSitesPass(record.plan), SkipGatedRowsPass(), StageHeadsPass(record.plan.heads))
    return run_pipeline(record.dense, passes)


def with_tensors_of(gm: fx.GraphModule, other: fx.GraphModule) -> fx.GraphModule:
    """The graph with the tensors that another one holds under the same names, so that no weight is held twice."""
    names = set(tensor_names(gm)) & set(tensor_names(other))
    differing = [name for name in sorted(names) if tensor_at(gm, name) is not tensor_at(other, name)]
    if not differing:
        return gm
    result = copy_graph_module(gm)
    for name in differing:
        set_tensor(result, name, tensor_at(other, name))
    return recompile(result)
