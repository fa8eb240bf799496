"""`calibrate`: finds, on data, how each site is best staged under one guard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from torch import fx

from exprune_fx.calibration import latency
from exprune_fx.calibration.counting import Outcome, count_outcomes
from exprune_fx.calibration.data import Batches, check_batches, check_latency_batch
from exprune_fx.calibration.decide import decide_by_flops, dense_entry, staged_entry
from exprune_fx.calibration.fit import Thresholds, fit_thresholds
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.propose import make_candidates
from exprune_fx.calibration.request import (
    HeadChoice,
    Request,
    check_alone,
    check_objective,
    check_request,
    check_stages,
)
from exprune_fx.calibration.sequential import refit
from exprune_fx.calibration.whole import Settled, settle
from exprune_fx.guards import Calibrated, Guard
from exprune_fx.plan import Plan

DEFAULT_GUARD = Calibrated(0.02)


def calibrate(
    gm: fx.GraphModule,
    batches: Batches,
    guard: Guard = DEFAULT_GUARD,
    stages: Sequence[float] = (1 / 8, 1 / 4, 1 / 2),
    objective: str = "flops",
    *,
    head: HeadChoice = "auto",
    reorder: bool = True,
    sequential: bool = False,
    latency_batch: object | None = None,
    progress: bool = False,
) -> Plan:
    """Decides on data how each site is staged, and leaves dense what staging would not make cheaper.

    Streams the batches several times and holds one at a time: once for the order of terms, once for the principal
    bases, one more than there are stages for `Calibrated` thresholds, once to count. Terms of free groups are ordered
    by falling variance, summed over the sites on the group with their share of the FLOPs. The same data give the same
    plan, however they are cut into batches, up to rounding.

    Args:
        gm: a captured graph; it is left as it is.
        batches: re-iterable (a list, a DataLoader, a function that returns an iterator); each item a tuple of
            positional arguments or a pair ``(args, kwargs)``.
        guard: the stop rule for every site.
        stages: increasing fractions of a site's terms, each strictly between 0 and 1, at which a prefix head is tested.
        objective: "flops" keeps for each site the candidate with the fewest, tests counted. "latency" times, on this
            machine and with torch's present number of threads, the fused operator of every candidate (shorter lists of
            stages and feed-forwards without a head among them) against every dense form, Inductor's included, and
            keeps the fastest; then it compiles the whole graph, dense and by what the sites' times suggest, and keeps
            the fastest of these. It needs the native kernels, and a minute or two.
        head: what the guard looks at: "prefix", "principal" (of rank 1/16, 1/8 or 1/4 of the features), "coded" (every
            pre-activation estimated in 8 bits, at a quarter of the FLOPs; for convolutions in two dimensions without
            groups whose input channels are a multiple of 4, and ``Calibrated``), or "auto", the cheapest for each site
            of the first two, and for "latency" of all three. Where a guard or a site allows no such head, a prefix is
            used.
        reorder: put the terms of free groups into the better order; the plan holds it. Guards that take the prefix for
            a random sample of the terms (those that need exchangeability) keep the order that training left: the first
            terms by variance are no random sample.
        sequential: make the thresholds of `Calibrated` again, site after site, on the inputs that staged sites before
            it give each: three more passes for every site of one stage. For "flops" only.
        latency_batch: what "latency" times, in the form of a batch: give one as large as those that you will run.
            Default: calibration examples, as many at a time as the graph was captured with.
        progress: draw a progress bar on stderr.

    Returns:
        The plan, with one entry for each site of the normalised graph; empty if there is none.

    Raises:
        GuardError: the stages are not increasing fractions, or ``guard`` is no guard.
        PlanError: an unknown head or objective, "latency" without native kernels, with ``sequential`` or under
            ``torchrun``, or a graph that is staged already.
        CalibrationError: batches that can be read once only, are empty, not finite, or that the model refuses; a
            ``latency_batch`` that it refuses.
    """
    check_stages(stages)
    aim = check_objective(objective)
    request = Request(guard, tuple(stages), head, aim)
    check_request(request)
    check_batches(batches)
    check_alone(aim, sequential)
    check_latency_batch(gm, latency_batch)
    graph = Prepared.of(gm)
    data = Data(batches, progress)
    if not graph.chosen(request):
        return Plan(tuple(dense_entry(site, request.refusal(site)) for site in graph.sites), objective=aim)
    graph, orders = graph.ordered(data, request) if reorder else (graph, {})
    candidates = make_candidates(data, graph.gm, graph.chosen(request), request)
    thresholds = fit_thresholds(data, graph.gm, candidates)
    outcomes: defaultdict[str, list[Outcome]] = defaultdict(list)
    for outcome in count_outcomes(data, graph.gm, candidates, thresholds).values():
        outcomes[outcome.candidate.site.name].append(outcome)
    if aim == "flops":
        entries = tuple(decide_by_flops(site, request, outcomes[site.name], thresholds) for site in graph.sites)
        whole = None
    else:
        given = latency.pieces_to_time(gm, batches, latency_batch)
        settled = _by_time(graph, request, outcomes, thresholds, given)
        entries, whole = settled.sites, settled.timing
    machine = latency.machine_text() if aim == "latency" else ""
    staged = any(entry.is_staged for entry in entries)
    plan = Plan(entries, orders if staged else {}, aim, data.examples, machine, whole)
    return refit(graph, data, plan) if sequential else plan


def _by_time(
    graph: Prepared,
    request: Request,
    outcomes: Mapping[str, Sequence[Outcome]],
    thresholds: Thresholds,
    batches: Sequence[object],
) -> Settled:
    entries = {
        name: [staged_entry(outcome, thresholds) for outcome in found] for name, found in outcomes.items() if found
    }
    refusals = {site.name: request.refusal(site) for site in graph.sites}
    plans = latency.decide_sites(graph.gm, graph.groups, graph.sites, entries, refusals, batches)
    return settle(graph.gm, graph.groups, graph.sites, plans, batches)
