"""Decides each site by the clock: every candidate's fused operator against every dense form, on real activations."""

from __future__ import annotations

import platform
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from exprune_fx.calibration.data import Batches, read
from exprune_fx.calibration.decide import MARGINS, Margin, decide_by_time, dense_entry
from exprune_fx.calibration.dense_forms import dense_forms
from exprune_fx.calibration.fused_calls import FusedCall, fused_calls
from exprune_fx.calibration.observe import Data, SiteValues
from exprune_fx.graph.running import examples_in
from exprune_fx.ops import native
from exprune_fx.passes.reshape_views import ReshapeViewsPass
from exprune_fx.pipeline import StagedRecord, lowered_form, with_tensors_of
from exprune_fx.plan import Plan, SitePlan, SiteTiming
from exprune_fx.sites import Site
from exprune_fx.staging import KEPT_KEY, SITE_KEY
from exprune_fx.symmetry import SymmetryReport
from exprune_fx.timing import Rounds, Step, medians

PIECES = 4  # inputs that take turns: what stops depends on them

Measure = Callable[[Sequence[Sequence[Step]]], dict[Hashable, float]]
_SKIP = "no head, zeros skipped"


@dataclass(frozen=True, eq=False)
class Way:
    """One way to compute a site: a candidate's fused operator, or a dense form.

    Attributes:
        name: unique for the site.
        memory_format: of the input.
        run: input and residual to the result.
        dense: it is a dense form.
    """

    name: str
    memory_format: torch.memory_format
    run: Callable[[Tensor, Tensor | None], Tensor]
    dense: bool


@dataclass
class _Inputs:
    """What each site reads, for each input that is timed."""

    values: dict[str, list[tuple[Tensor, Tensor | None]]] = field(default_factory=dict)

    def __call__(self, site: Site, values: SiteValues) -> None:
        residual = None if values.residual is None else values.residual.clone()
        self.values.setdefault(site.name, []).append((values.x.clone(), residual))


def measure_walks(walks: Sequence[Sequence[Step]]) -> dict[Hashable, float]:
    """Median seconds of every step, by the clock."""
    return medians(walks, Rounds())


def decide_sites(
    gm: fx.GraphModule,
    groups: SymmetryReport,
    sites: Sequence[Site],
    candidates: Mapping[str, Sequence[SitePlan]],
    refusals: Mapping[str, str],
    batches: Sequence[object],
    measure: Measure | None = None,
) -> dict[str, tuple[SitePlan, ...]]:
    """The entry of every site, the fastest way that was measured, for each of the margins, by its name.

    Args:
        gm: the dense graph, its terms in the plan's order.
        groups: its symmetries.
        sites: its sites.
        candidates: by site, the entries to try.
        refusals: by site, why it stays dense whatever it takes ("" if it need not).
        batches: the inputs that are timed, of equal size; they take turns.
        measure: walks of steps to the median seconds of each key; `measure_walks` by default, replaced in tests.
    """
    tried = _with_zero_skipping(sites, candidates, refusals)
    named = {name: {_label(entry): entry for entry in entries} for name, entries in tried.items()}
    dense = ReshapeViewsPass()(gm).graph_module  # for it will hold packed weights
    calls, reasons = _lowered_calls(StagedRecord(Plan(), dense, tuple(sites), groups), named)
    inputs = _Inputs()
    with torch.no_grad():
        if calls:
            Data(batches).walk(gm, [site for site in sites if site.name in calls], inputs, "activations to time")
        ways = {site.name: _ways(calls[site.name], inputs.values[site.name]) for site in sites if site.name in calls}
        taken = (measure or measure_walks)(_walks(ways, inputs.values)) if ways else {}
    examples = examples_in(batches[0])

    def entry(site: Site, margin: Margin) -> SitePlan:
        if refusals.get(site.name):
            return dense_entry(site, refusals[site.name])
        if site.name not in ways:
            return dense_entry(site, reasons.get(site.name, "no kernel holds it"))
        return decide_by_time(site, named[site.name], _timing(site, ways[site.name], taken, examples), margin)

    return {margin.name: tuple(entry(site, margin) for site in sites) for margin in MARGINS}


def _with_zero_skipping(
    sites: Sequence[Site], candidates: Mapping[str, Sequence[SitePlan]], refusals: Mapping[str, str]
) -> dict[str, list[SitePlan]]:
    """The candidates, and for plain linear sites one with no head at all: it pays if the next layer skips the zeros."""
    tried = {site.name: list(candidates.get(site.name, ())) for site in sites if not refusals.get(site.name)}
    for site in sites:
        if site.name in tried and site.geometry is None and site.residual is None and not site.chain:
            tried[site.name].append(SitePlan(site.name, site.weight_shape, head="none"))
    return tried


def _label(entry: SitePlan) -> str:
    if entry.head == "none":
        return _SKIP
    if entry.head == "principal":
        return f"principal head of rank {entry.stages[0]}"
    if entry.head == "coded":
        return "coded head"
    return f"prefix stages at {', '.join(map(str, entry.stages))}"


def _lowered_calls(
    record: StagedRecord, named: Mapping[str, Mapping[str, SitePlan]]
) -> tuple[dict[str, dict[str, FusedCall]], dict[str, str]]:
    """By site and candidate, what the lowered graph calls, and by site why no kernel holds it.

    One graph is lowered for the first candidates of all sites, one for the second, and so on; they share their weights.
    """
    calls: dict[str, dict[str, FusedCall]] = {}
    reasons: dict[str, str] = {}
    for index in range(max((len(entries) for entries in named.values()), default=0)):
        chosen = {name: list(entries.items())[index] for name, entries in named.items() if index < len(entries)}
        lowered = lowered_form(replace(record, plan=Plan(tuple(entry for _, entry in chosen.values()))))
        record = replace(record, dense=with_tensors_of(record.dense, lowered))
        for name, call in fused_calls(lowered).items():
            calls.setdefault(name, {})[chosen[name][0]] = call
        kept = (node for node in lowered.graph.nodes if KEPT_KEY in node.meta)
        reasons.update((node.meta[SITE_KEY], node.meta[KEPT_KEY]) for node in kept)
    return calls, reasons


def _ways(calls: Mapping[str, FusedCall], values: Sequence[tuple[Tensor, Tensor | None]]) -> list[Way]:
    """All ways to compute one site. What the fused operators have joined to it is the same for all of them."""
    first = next(iter(calls.values()))
    memory_format = torch.channels_last if first.operator == "staged_conv2d_relu" else torch.contiguous_format
    staged = [Way(name, memory_format, call, dense=False) for name, call in calls.items()]
    dense = [Way(form.name, form.memory_format, form.run, dense=True) for form in dense_forms(first, *values[0])]
    return [*dense, *staged]


def _walks(
    ways: Mapping[str, Sequence[Way]], values: Mapping[str, Sequence[tuple[Tensor, Tensor | None]]]
) -> list[list[Step]]:
    """Each walk computes every site once, in graph order, one of its ways; together they hold every way."""
    return [
        [_step(name, found[index % len(found)], values[name]) for name, found in ways.items()]
        for index in range(max(len(found) for found in ways.values()))
    ]


def _step(name: str, way: Way, values: Sequence[tuple[Tensor, Tensor | None]]) -> Step:
    def prepare(index: int) -> tuple[Any, ...]:
        """Fresh copies: a layer's input has just been written by the layer before it."""
        x, residual = values[index % len(values)]
        return _copy(x, way.memory_format), None if residual is None else _copy(residual, way.memory_format)

    return Step((name, way.name), prepare, way.run)


def _copy(value: Tensor, memory_format: torch.memory_format) -> Tensor:
    return torch.empty_like(value, memory_format=memory_format).copy_(value)


def _timing(site: Site, ways: Sequence[Way], taken: Mapping[Hashable, float], examples: int) -> SiteTiming:
    seconds = {way.name: taken[site.name, way.name] for way in ways}
    dense = min((way.name for way in ways if way.dense), key=seconds.__getitem__)
    staged = min((way.name for way in ways if not way.dense), key=seconds.__getitem__)
    return SiteTiming(
        dense_s=seconds[dense],
        dense_form=dense,
        staged_s=seconds[staged],
        staged_form=staged,
        examples=examples,
        threads=torch.get_num_threads(),
        tried=seconds,
    )


# --- inputs -----------------------------------------------------------------------------------------------------------


def pieces_to_time(gm: fx.GraphModule, batches: Batches, latency_batch: object | None = None) -> list[object]:
    """What is timed: the caller's own batch, or calibration examples in pieces as large as the captured example inputs.

    Cut is the first axis of every input; where not every input has the captured batch size there, the first calibration
    batch is taken as it is.
    """
    if latency_batch is not None:
        return [latency_batch]
    first = next(batch for batch in read(batches) if examples_in(batch) > 0)
    size = _captured_batch(gm)
    leaves = [leaf for leaf in pytree.tree_leaves(first) if isinstance(leaf, Tensor)]
    count = examples_in(first)
    if size is None or size >= count or any(leaf.dim() == 0 or leaf.shape[0] != count for leaf in leaves):
        return [first]

    def piece(start: int) -> object:
        return pytree.tree_map(lambda leaf: leaf[start : start + size] if isinstance(leaf, Tensor) else leaf, first)

    return [piece(start) for start in range(0, min(count - size + 1, PIECES * size), size)]


def _captured_batch(gm: fx.GraphModule) -> int | None:
    """The first size of the example inputs, if it is symbolic and the same for all of them."""
    values = [node.meta["val"] for node in gm.graph.nodes if node.op == "placeholder" and node.users]
    if not values or not all(isinstance(value, Tensor) and value.dim() > 0 for value in values):
        return None
    sizes = [value.shape[0] for value in values]
    if not all(isinstance(size, torch.SymInt) and size.node.has_hint() for size in sizes):
        return None
    return int(sizes[0].node.hint) if len({size.node.expr for size in sizes}) == 1 else None


def machine_text() -> str:
    """The machine in words: processor, instruction set of the kernels, torch."""
    return f"{_processor()}, {native.isa()} kernels, torch {torch.__version__}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
