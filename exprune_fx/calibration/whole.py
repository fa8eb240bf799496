"""Settles by the clock which plan a model runs by: whole, compiled graphs against the compiled dense one.

A site that gains when it is timed alone may lose in a compiled graph, which joins dense layers to what stands around
them. So the plans that the sites' own times suggest are compiled and run, and the fastest graph is taken, the dense one
too. On a shared machine the times of one graph move by more than what graphs differ by: so in every round each staged
graph has its turn next to the dense one, and what decides is the ratio of these two.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import torch
from torch import fx, nn

from exprune_fx.calibration.decide import dense_entry
from exprune_fx.compiling import UNCOMPILED, Runnable, compiled
from exprune_fx.errors import ExpruneError
from exprune_fx.graph.running import as_call, examples_in
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.pipeline import StagedRecord, lowered_form, with_tensors_of
from exprune_fx.plan import Plan, SitePlan, SiteTiming
from exprune_fx.sites import Site
from exprune_fx.symmetry import SymmetryReport
from exprune_fx.timing import Pair, Rounds, Step, medians, sample
from exprune_fx.wording import milliseconds_text

_log = logging.getLogger(__name__)
SETTINGS = ("inductor_freezing", "inductor_max_autotune")
GAIN = 0.02  # what a whole graph must win: less is within what two runs of one graph differ by
ROUNDS_WON = 2 / 3  # share of the rounds in which it must be the faster one
_AS_IT_IS = ", called as it is"
_ROUNDS = Rounds(most=41, budget_s=30.0, least=7)

Compile = Callable[..., Runnable]
Measure = Callable[[Sequence[Sequence[Step]]], dict[Hashable, float]]
Sample = Callable[[Sequence[Sequence[Step]]], Mapping[Hashable, Sequence[float]]]
Calls = Sequence[tuple[tuple[object, ...], dict[str, object]]]


@dataclass(frozen=True)
class Settled:
    """What was settled.

    Attributes:
        sites: the entries to run by.
        timing: what the whole graphs took, staged ones as the dense seconds times their median ratio to these; None
            where there was nothing to choose from, or none could be compiled.
    """

    sites: tuple[SitePlan, ...]
    timing: SiteTiming | None = None


def measure_graphs(walks: Sequence[Sequence[Step]]) -> dict[Hashable, float]:
    """Median seconds of every graph, by the clock."""
    return medians(walks, _ROUNDS)


def sample_graphs(walks: Sequence[Sequence[Step]]) -> Mapping[Hashable, Sequence[float]]:
    """Seconds of every graph, round by round."""
    return sample(walks, _ROUNDS)


def settle(
    gm: fx.GraphModule,
    groups: SymmetryReport,
    sites: Sequence[Site],
    plans: Mapping[str, tuple[SitePlan, ...]],
    batches: Sequence[object],
    compile_graph: Compile | None = None,
    samples: Sample | None = None,
    *,
    as_it_is: bool = False,
) -> Settled:
    """The plan whose compiled graph is the fastest, or a dense one.

    The dense graph is compiled with parameters frozen, and with max-autotune on top; the staged graphs in the setting
    that served the dense one best of these. A staged graph wins if the median over the rounds of its time over the
    dense one's is below ``1 - GAIN``, and it was faster in `ROUNDS_WON` of them, twice.

    Args:
        gm: the dense graph, its terms in the plans' order.
        groups: its symmetries.
        sites: its sites.
        plans: the entries of all sites, by the name of the plan; equal plans are tried once. Of those that cannot be
            told apart, because nothing can be compiled here, the last is taken.
        batches: the inputs that are timed, of equal size; they take turns.
        compile_graph: `exprune_fx.compiling.compiled` by default, replaced in tests.
        samples: walks of steps to the seconds of each key, round by round; `sample_graphs` by default, replaced in
            tests.
        as_it_is: graphs may also be called as they are, without ``torch.compile``, the dense one too: for who can do
            so. A form that is called so is named ``<plan>, called as it is``.
    """
    distinct = _distinct(plans)
    if not distinct:
        return Settled(list(plans.values())[-1])
    calls = [as_call(batch) for batch in batches]
    compile_graph, samples = compile_graph or compiled, samples or sample_graphs
    try:
        dense = _best_dense(gm, calls, compile_graph, samples, as_it_is=as_it_is)
        graphs = _lowered(StagedRecord(Plan(), ReshapeViewsPass()(gm).graph_module, tuple(sites), groups), distinct)
        ways = {name: (name, dense.setting) for name in graphs}
        if as_it_is:
            ways |= {f"{name}{_AS_IT_IS}": (name, UNCOMPILED) for name in graphs}
        staged = {way: compile_graph(graphs[name], way, how, *calls[0]) for way, (name, how) in ways.items()}
    except ExpruneError as error:
        name = next(reversed(distinct))
        _log.warning("whole graphs could not be compared, %s are staged on their own times: %s", name, error)
        return Settled(distinct[name])
    pairs = _paired(dense.form, list(staged.values()), calls, samples)
    fastest = min(pairs, key=lambda name: (not _wins(pairs[name]), pairs[name].ratio))
    if _wins(pairs[fastest]):  # it has to win twice: a noisy minute is not a faster graph
        pairs |= _paired(dense.form, [staged[fastest]], calls, samples)
    pair = pairs[fastest]
    dense_s = median(pair.base)
    timing = SiteTiming(
        dense_s=dense_s,
        dense_form=dense.form.name,
        staged_s=dense_s * pair.ratio,
        staged_form=fastest,
        examples=examples_in(batches[0]),
        threads=torch.get_num_threads(),
        tried=dense.tried | {dense.form.name: dense_s} | {name: dense_s * each.ratio for name, each in pairs.items()},
    )
    if _wins(pair):
        return Settled(distinct[ways[fastest][0]], timing)
    return Settled(_all_dense(sites, distinct[ways[fastest][0]], timing, pair), timing)


@dataclass(frozen=True)
class _Dense:
    """The dense form that staged graphs have to beat.

    Attributes:
        form: what is called.
        setting: of `SETTINGS`, which served the dense graph best.
        tried: median seconds of all its forms, by their names.
    """

    form: Runnable
    setting: str
    tried: dict[str, float]


def _best_dense(gm: fx.GraphModule, calls: Calls, compile_graph: Compile, samples: Sample, *, as_it_is: bool) -> _Dense:
    """The fastest of the compiled dense graphs, and of the one that is called as it is."""
    frozen, autotuned = (compile_graph(gm, f"the dense graph ({name})", name, *calls[0]) for name in SETTINGS)
    (pair,) = _paired(frozen, [autotuned], calls, samples).values()
    form, setting = (autotuned, SETTINGS[1]) if pair.ratio < 1 else (frozen, SETTINGS[0])
    tried = {frozen.name: median(pair.base), autotuned.name: median(pair.rival)}
    if as_it_is:
        plain = compile_graph(gm, f"the dense graph{_AS_IT_IS}", UNCOMPILED, *calls[0])
        (pair,) = _paired(form, [plain], calls, samples).values()
        tried[plain.name] = median(pair.rival)
        form = plain if pair.ratio < 1 else form
    return _Dense(form, setting, tried)


def _paired(base: Runnable, rivals: Sequence[Runnable], calls: Calls, samples: Sample) -> dict[str, Pair]:
    """Each rival beside the base, which has a turn next to every one of them; by the rivals' names."""
    turns = [(way, (rival.name, side)) for rival in rivals for side, way in (("base", base), ("rival", rival))]
    taken = samples([[_step(way, key, calls)] for way, key in turns])
    return {way.name: Pair(tuple(taken[way.name, "base"]), tuple(taken[way.name, "rival"])) for way in rivals}


def _wins(pair: Pair) -> bool:
    return pair.ratio < 1 - GAIN and pair.rounds_faster >= ROUNDS_WON * len(pair.base)


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


def _step(runnable: Runnable, key: Hashable, calls: Calls) -> Step:
    def run(args: tuple[object, ...], kwargs: dict[str, object]) -> object:
        with torch.no_grad():
            return runnable.call(*args, **kwargs)

    return Step(key, partial(_turn, calls), run)


def _turn(calls: Calls, index: int) -> tuple[tuple[object, ...], dict[str, object]]:
    return calls[index % len(calls)]


def _all_dense(
    sites: Sequence[Site], entries: Sequence[SitePlan], timing: SiteTiming, pair: Pair
) -> tuple[SitePlan, ...]:
    words = (
        f"the whole graph took {milliseconds_text(timing.staged_s)} staged, {milliseconds_text(timing.dense_s)} dense, "
        f"and was faster staged in {pair.rounds_faster} of {len(pair.base)} rounds"
    )
    return tuple(
        entry if entry.head == "dense" else replace(dense_entry(site, words), timing=entry.timing)
        for site, entry in zip(sites, entries, strict=True)
    )
