"""Settles by the clock which plan a model runs by: whole, compiled graphs against the compiled dense one.

A site that gains when it is timed alone may lose in a compiled graph, which joins dense layers to what stands around
them. So the plans that the sites' own times suggest are compiled and run, and the fastest graph is taken, the dense one
too.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import fx, nn

from exprune_fx.calibration.decide import dense_entry
from exprune_fx.compiling import Runnable, compiled
from exprune_fx.errors import ExpruneError
from exprune_fx.graph.running import as_call, examples_in
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.pipeline import StagedRecord, lowered_form, with_tensors_of
from exprune_fx.plan import Plan, SitePlan, SiteTiming
from exprune_fx.sites import Site
from exprune_fx.symmetry import SymmetryReport
from exprune_fx.timing import Rounds, Step, medians

_log = logging.getLogger(__name__)
SETTINGS = ("inductor_freezing", "inductor_max_autotune")
GAIN = 0.02  # what a whole graph must win: less is within what two runs of one graph differ by
_ROUNDS = Rounds(most=41, budget_s=30.0, least=7)

Compile = Callable[..., Runnable]
Measure = Callable[[Sequence[Sequence[Step]]], dict[Hashable, float]]


@dataclass(frozen=True)
class Settled:
    """What was settled.

    Attributes:
        sites: the entries to run by.
        timing: what the whole graphs took; None where there was nothing to choose from, or none could be compiled.
    """

    sites: tuple[SitePlan, ...]
    timing: SiteTiming | None = None


def measure_graphs(walks: Sequence[Sequence[Step]]) -> dict[Hashable, float]:
    """Median seconds of every graph, by the clock."""
    return medians(walks, _ROUNDS)


def settle(
    gm: fx.GraphModule,
    groups: SymmetryReport,
    sites: Sequence[Site],
    plans: Mapping[str, tuple[SitePlan, ...]],
    batches: Sequence[object],
    compile_graph: Compile | None = None,
    measure: Measure | None = None,
) -> Settled:
    """The plan whose compiled graph is the fastest, or a dense one.

    The dense graph is compiled with parameters frozen, and with max-autotune on top; the staged graphs in the setting
    that served the dense one best.

    Args:
        gm: the dense graph, its terms in the plans' order.
        groups: its symmetries.
        sites: its sites.
        plans: the entries of all sites, by the name of the plan; equal plans are tried once. Of those that cannot be
            told apart, because nothing can be compiled here, the last is taken.
        batches: the inputs that are timed, of equal size; they take turns.
        compile_graph: `exprune_fx.compiling.compiled` by default, replaced in tests.
        measure: walks of steps to the median seconds of each key; `measure_graphs` by default, replaced in tests.
    """
    distinct = _distinct(plans)
    if not distinct:
        return Settled(list(plans.values())[-1])
    calls = [as_call(batch) for batch in batches]
    compile_graph, measure = compile_graph or compiled, measure or measure_graphs
    try:
        dense = [compile_graph(gm, f"the dense graph ({name})", name, *calls[0]) for name in SETTINGS]
        alone = measure([[_step(runnable, calls)] for runnable in dense])
        best = min(range(len(dense)), key=lambda index: alone[dense[index].name])
        graphs = _lowered(StagedRecord(Plan(), ReshapeViewsPass()(gm).graph_module, tuple(sites), groups), distinct)
        staged = {name: compile_graph(graph, name, SETTINGS[best], *calls[0]) for name, graph in graphs.items()}
    except ExpruneError as error:
        name = next(reversed(distinct))
        _log.warning("whole graphs could not be compared, %s are staged on their own times: %s", name, error)
        return Settled(distinct[name])
    taken = measure([[_step(runnable, calls)] for runnable in (dense[best], *staged.values())])
    fastest = min(distinct, key=taken.__getitem__)
    if _wins(taken, fastest, dense[best]):  # it has to win twice: a noisy minute is not a faster graph
        taken |= measure([[_step(runnable, calls)] for runnable in (dense[best], staged[fastest])])
    timing = SiteTiming(
        dense_s=taken[dense[best].name],
        dense_form=dense[best].name,
        staged_s=taken[fastest],
        staged_form=fastest,
        examples=examples_in(batches[0]),
        threads=torch.get_num_threads(),
        tried={str(name): seconds for name, seconds in {**alone, **taken}.items()},
    )
    if _wins(taken, fastest, dense[best]):
        return Settled(distinct[fastest], timing)
    return Settled(_all_dense(sites, distinct[fastest], timing), timing)


def _wins(taken: Mapping[Hashable, float], staged: str, dense: Runnable) -> bool:
    return taken[staged] < taken[dense.name] * (1 - GAIN)


def _distinct(plans: Mapping[str, tuple[SitePlan, ...]]) -> dict[str, tuple[SitePlan, ...]]:
    """The plans that change something, each once, by the name of the last that makes it."""
    by_choice = {tuple((entry.head, entry.stages) for entry in entries): name for name, entries in plans.items()}
    return {name: plans[name] for choice, name in by_choice.items() if any(head != "dense" for head, _ in choice)}


def _lowered(record: StagedRecord, plans: Mapping[str, tuple[SitePlan, ...]]) -> dict[str, nn.Module]:
    """The graphs of all plans; they share their weights."""
    graphs: dict[str, nn.Module] = {}
    for name, entries in plans.items():
        graph = lowered_form(replace(record, plan=Plan(entries)))
        record = replace(record, dense=with_tensors_of(record.dense, graph))
        graphs[name] = graph
    return graphs


def _step(runnable: Runnable, calls: Sequence[tuple[tuple[object, ...], dict[str, object]]]) -> Step:
    def run(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        with torch.no_grad():
            return runnable.call(*args, **kwargs)

    return Step(runnable.name, partial(_turn, calls), run)


def _turn(
    calls: Sequence[tuple[tuple[object, ...], dict[str, object]]], index: int
) -> tuple[tuple[object, ...], dict[str, object]]:
    return calls[index % len(calls)]


def _all_dense(sites: Sequence[Site], entries: Sequence[SitePlan], timing: SiteTiming) -> tuple[SitePlan, ...]:
    words = f"the whole compiled graph took {1e3 * timing.staged_s:.3g} ms staged, {1e3 * timing.dense_s:.3g} ms dense"
    return tuple(
        entry if entry.head == "dense" else replace(dense_entry(site, words), timing=entry.timing)
        for site, entry in zip(sites, entries, strict=True)
    )
