"""`calibrate_heads`: decides on data how the prediction heads of a graph are staged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import fx

from exprune_fx.calibration.data import Batches, check_latency_batch
from exprune_fx.calibration.decide import dense_entry
from exprune_fx.calibration.head_candidates import decide_head, tensors_of
from exprune_fx.calibration.head_inputs import HeadRows, inputs_of
from exprune_fx.calibration.head_latency import check_kernels, timed_head
from exprune_fx.calibration.latency import pieces_to_time
from exprune_fx.calibration.request import check_objective
from exprune_fx.errors import GuardError, PlanError
from exprune_fx.guards import Dominance
from exprune_fx.pipeline import normalise, record_of
from exprune_fx.plan import HeadPlan, Plan
from exprune_fx.sites import PredictionHead, find_heads, find_sites


def calibrate_heads(
    gm: fx.GraphModule,
    batches: Batches | None = None,
    guard: Dominance | None = None,
    *,
    heads: Sequence[str] | None = None,
    plan: Plan | None = None,
    objective: str = "flops",
    latency_batch: object | None = None,
) -> Plan:
    """Decides how each prediction head (see `find_heads`) is staged: which rests on what its guard claims.

    All classes are estimated from 8-bit codes of their weights, a quarter of the bytes of float32, in one or several
    stages; a class that cannot win stops, and those that are left are computed whole, from the weights themselves. With
    data, weights are turned into the basis in which weights and inputs fall off alike (as in balanced truncation:
    Moore, IEEE TAC 26 (1), 1981), so that few numbers of each class tell most; the stages are those that read the
    fewest bytes on the examples. Without, one stage reads the codes of the weights as they are: that needs no examples
    to be sound.

    Args:
        gm: a captured graph that returns, or goes on with, ``argmax(-1)`` or ``topk(k, -1)`` of a linear layer.
        batches: re-iterable, as for ``calibrate``; None decides without data.
        guard: `Dominance()`, sound, by default.
        heads: names of heads to stage; all by default. Those that are not named stay dense.
        plan: a plan of ``calibrate`` for the same graph, whose sites and orders are kept.
        objective: "flops" stages every head that is asked for; "latency" times each, on this machine and with torch's
            present number of threads, against its dense layer as PyTorch and as Inductor runs it, and leaves dense what
            does not gain. It needs the native kernels.
        latency_batch: what "latency" times, as for ``calibrate``. Default: calibration examples.

    Returns:
        The plan with an entry for each head.

    Raises:
        GuardError: another guard, or an alpha without data.
        PlanError: the graph is staged already, has no head of a name that is asked for, or an unknown objective;
            "latency" without native kernels or without anything to time.
        CalibrationError: no batches, or a head that no example reached with finite values.
    """
    if record_of(gm) is not None:
        raise PlanError("this graph is staged already", hint="calibrate_heads(capture(model, args), batches)")
    guard = Dominance() if guard is None else guard
    if not isinstance(guard, Dominance):
        raise GuardError(f"{guard} is a guard of sites", hint="give Dominance(), or Dominance(alpha)")
    if check_objective(objective) == "latency":
        check_kernels()
        if batches is None and latency_batch is None:
            raise PlanError("there is nothing to time", hint="give batches, or a latency_batch")
    check_latency_batch(gm, latency_batch)
    normal = normalise(gm)
    found = find_heads(normal)
    unknown = sorted(set(heads or ()) - {head.name for head in found})
    if unknown:
        raise PlanError(
            f"the graph has no head {', '.join(map(repr, unknown))}",
            hint=f"its heads are {', '.join(repr(head.name) for head in found) or 'none'}; see exprune_fx.find_heads",
        )
    chosen = [head for head in found if heads is None or head.name in heads]
    seen = HeadRows.collect(normal, chosen, batches) if batches is not None and chosen else None
    entries = tuple(decide_head(normal, head, guard, seen) for head in chosen)
    if objective == "latency" and chosen:
        entries = _by_the_clock(
            normal, chosen, entries, pieces_to_time(gm, () if batches is None else batches, latency_batch)
        )
    base = plan or Plan(tuple(dense_entry(site, "its sites were not calibrated") for site in find_sites(normal)))
    examples = base.examples or (seen.examples if seen else 0)
    return replace(base, heads=entries, examples=examples)


def _by_the_clock(
    normal: fx.GraphModule, heads: Sequence[PredictionHead], entries: Sequence[HeadPlan], batches: Sequence[object]
) -> tuple[HeadPlan, ...]:
    inputs = inputs_of(normal, heads, batches)
    tensors = (tensors_of(normal, head) for head in heads)
    return tuple(
        timed_head(head, entry, *found, inputs[head.name])
        for head, entry, found in zip(heads, entries, tensors, strict=True)
    )
