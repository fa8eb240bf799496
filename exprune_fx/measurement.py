"""Counts what a staged graph really did on given inputs, by interpreting it: the graph that users run pays nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import sympy
import torch
from torch import fx

from exprune_fx.calibration.head_costs import flops_staged, head_test_flops
from exprune_fx.cost import SiteCost, dense_flops, evaluate, model_flops, site_cost
from exprune_fx.errors import CalibrationError, PlanError
from exprune_fx.graph.running import examples_in, placeholder_values, symbol_values
from exprune_fx.pipeline import StagedRecord, readable_form, record_of
from exprune_fx.plan import HeadPlan
from exprune_fx.sites import find_heads
from exprune_fx.staging import ROLE_KEY, SITE_KEY, STAGE_KEY
from exprune_fx.staging.heads import HEAD_KEY, HEAD_ROLE_KEY


@dataclass(frozen=True)
class SiteMeasurement:
    """What one staged site did.

    Attributes:
        name: the site.
        alive_fraction: share of neurons that went on, after each stage.
        flops_dense: of the dense site, over all inputs.
        flops_staged: of head and tail, without the tests.
        flops_overhead: of the tests.
    """

    name: str
    alive_fraction: tuple[float, ...]
    flops_dense: float
    flops_staged: float
    flops_overhead: float

    @property
    def stopped_fraction(self) -> float:
        """Share of neurons that were stopped by any stage."""
        return 1.0 - self.alive_fraction[-1]

    @property
    def fraction_removed(self) -> float:
        """Share of the site's dense FLOPs saved, overhead counted; negative where staging costs more."""
        return 1.0 - (self.flops_staged + self.flops_overhead) / self.flops_dense if self.flops_dense else 0.0


@dataclass(frozen=True)
class Measurement:
    """What a staged graph did on some examples.

    Attributes:
        examples: how many (the first size of each batch's first tensor).
        flops_dense: of the whole dense model, over all examples.
        flops_staged: of the whole staged model without the tests.
        flops_overhead: of the tests.
        sites: one entry for each staged site.
        heads: one entry for each staged prediction head, whose neurons are its classes.
    """

    examples: int
    flops_dense: float
    flops_staged: float
    flops_overhead: float
    sites: tuple[SiteMeasurement, ...] = field(default_factory=tuple)
    heads: tuple[SiteMeasurement, ...] = field(default_factory=tuple)

    @property
    def fraction_removed(self) -> float:
        """Share of all FLOPs saved, overhead counted."""
        return 1.0 - (self.flops_staged + self.flops_overhead) / self.flops_dense if self.flops_dense else 0.0

    @property
    def alive_fraction(self) -> dict[str, float]:
        """Share of neurons that no stage stopped, by site."""
        return {site.name: site.alive_fraction[-1] for site in self.sites}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, derived fractions included."""
        data = asdict(self)
        data["fraction_removed"] = self.fraction_removed
        for entry, site in zip((*data["sites"], *data["heads"]), (*self.sites, *self.heads), strict=True):
            entry["alive_fraction"] = list(site.alive_fraction)
            entry["fraction_removed"] = site.fraction_removed
        return data


class _Counter(fx.Interpreter):
    """Runs a staged graph once and counts who stopped where."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.stopped: dict[tuple[str, int], tuple[int, int]] = {}
        self.nonzero: dict[str, float] = {}
        self.after: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs the node, and counts if a stage or a site ends here."""
        value = super().run_node(n)
        role = n.meta.get(ROLE_KEY)
        if role == "stopped":
            self.stopped[n.meta[SITE_KEY], n.meta[STAGE_KEY]] = int(value.sum()), value.numel()
        elif role == "finish":
            self.nonzero[n.meta[SITE_KEY]] = float(torch.count_nonzero(value)) / max(value.numel(), 1)
        elif n.meta.get(HEAD_ROLE_KEY) == "after":
            self.after[n.meta[HEAD_KEY]] = value
        return value


@dataclass
class _Tally:
    """Sums for one site over batches."""

    alive: list[float]
    neurons: float = 0.0
    dense: float = 0.0
    staged: float = 0.0
    overhead: float = 0.0

    def add(self, cost: SiteCost, counter: _Counter, name: str, sizes: dict[sympy.Expr, int]) -> None:
        """Adds one batch: counts, and the cost at this batch's own sizes and fractions."""
        neurons = counter.stopped[name, 0][1]
        going = [neurons - counter.stopped[name, stage][0] for stage in range(len(self.alive))]
        work, overhead = cost.at([count / max(neurons, 1) for count in going], counter.nonzero[name])
        self.alive = [old + new for old, new in zip(self.alive, going, strict=True)]
        self.neurons += neurons
        self.dense += evaluate(cost.dense, sizes)
        self.staged += evaluate(work, sizes)
        self.overhead += evaluate(overhead, sizes)

    def result(self, name: str) -> SiteMeasurement:
        """The sums as fractions."""
        alive = tuple(count / max(self.neurons, 1) for count in self.alive)
        return SiteMeasurement(name, alive, self.dense, self.staged, self.overhead)


@dataclass
class _HeadTally(_Tally):
    """Sums for one prediction head over batches."""

    def add_head(self, entry: HeadPlan, after: torch.Tensor, dense: float) -> None:
        """Adds one batch: after which stage each class of each row stopped, and the dense layer's FLOPs."""
        classes = entry.weight_shape[0]
        rows = after.numel() // classes
        going = [float((after > stage).sum()) for stage in range(len(self.alive))]
        share = [count / max(after.numel(), 1) for count in going]
        overhead = classes * head_test_flops(entry, share)
        self.alive = [old + new for old, new in zip(self.alive, going, strict=True)]
        self.neurons += after.numel()
        self.dense += dense
        self.staged += rows * (flops_staged(entry, share) - overhead)
        self.overhead += rows * overhead


def _site_costs(record: StagedRecord) -> dict[str, SiteCost]:
    sites = {site.name: site for site in record.sites}
    costs = {}
    for entry in record.plan.staged:
        assert entry.guard is not None
        site = sites[entry.site]
        costs[entry.site] = site_cost(record.dense, site, entry.looks_at, entry.stages, entry.guard, entry.window)
    return costs


def measure(
    staged: fx.GraphModule, batches: Iterable[object], on_output: Callable[[Any], None] | None = None
) -> Measurement:
    """Counts FLOPs and stopped neurons of a staged graph on inputs.

    A lowered graph is counted in its readable form, which decides the same but for pre-activations within rounding of a
    threshold.

    Args:
        staged: what ``transform`` returned.
        batches: tuples of positional arguments, or pairs ``(args, kwargs)``.
        on_output: gets what the model returned for each batch, so that accuracy needs no second run.

    Raises:
        PlanError: the graph was not made by ``transform``.
        CaptureError: a batch for which the graph was not captured.
        CalibrationError: there are no batches.
    """
    record = record_of(staged)
    if record is None:
        raise PlanError("this graph was not made by transform", hint="measure(transform(gm, plan), batches)")
    staged = readable_form(staged)
    costs = _site_costs(record)
    tallies = {name: _Tally([0.0] * len(cost.alive)) for name, cost in costs.items()}
    heads = {entry.head: _HeadTally([0.0] * len(entry.stages)) for entry in record.plan.staged_heads}
    dense_heads = {head.name: head.node for head in find_heads(record.dense)} if heads else {}
    layers = {node.name: dense_flops(node) for node in record.dense.graph.nodes if node.name in dense_heads.values()}
    total_expr = model_flops(record.dense)
    examples, total = 0, 0.0
    for batch in batches:
        flat = placeholder_values(staged, batch)
        sizes = symbol_values(staged, flat)
        counter = _Counter(staged)
        with torch.no_grad():
            output = counter.run(*flat, enable_io_processing=False)
        if on_output is not None:
            on_output(staged.graph.process_outputs(output))
        for name, tally in tallies.items():
            tally.add(costs[name], counter, name, sizes)
        for entry in record.plan.staged_heads:
            layer = evaluate(layers[dense_heads[entry.head]], sizes)
            heads[entry.head].add_head(entry, counter.after[entry.head], layer)
        total += evaluate(total_expr, sizes)
        examples += examples_in(batch)
    if examples == 0:
        raise CalibrationError("there are no batches to measure on", hint="give at least one batch")
    sites = tuple(tally.result(name) for name, tally in tallies.items())
    chosen = tuple(tally.result(name) for name, tally in heads.items())
    saved = sum(each.flops_dense - each.flops_staged for each in (*sites, *chosen))
    return Measurement(
        examples, total, total - saved, sum(each.flops_overhead for each in (*sites, *chosen)), sites, chosen
    )
