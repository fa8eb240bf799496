"""What there is to say about a graph, gathered as plain data; how it looks is another module's business."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import sympy
import torch
from torch import fx

from exprune_fx.cost import dense_flops, model_flops, size_expr
from exprune_fx.errors import PlanError
from exprune_fx.guards import Guard
from exprune_fx.measurement import Measurement, SiteMeasurement
from exprune_fx.plan import SitePlan, SiteTiming
from exprune_fx.sites import Site
from exprune_fx.staging import KEPT_KEY, ROLE_KEY
from exprune_fx.staging.arguments import arguments_of
from exprune_fx.wording import count_text

Flops: TypeAlias = float | str
"""FLOPs of one example: a number, or a formula in the symbolic sizes that are left."""

Decision = Literal["staged", "dense", "possible"]


@dataclass(frozen=True)
class SiteFacts:
    """One site.

    Attributes:
        name: module path of its reduction.
        kind: linear or convolution.
        activation: what its pre-activation meets.
        terms: K, the summands of one pre-activation.
        block: input features in one term.
        neurons: of one pixel or row.
        exchangeable: the terms are exchangeable.
        exchangeability: why, or why not.
        decision: staged, dense (planned or forced), or possible (no plan yet).
        reason: why it was decided so.
        head: what the guard looks at ("" unless staged).
        stages: terms seen at each test, or the rank.
        guard: the stop rule in words.
        claim: what the saving rests on, in words.
        alive_fraction: share of neurons that go on after each stage; measured, else as calibration expects.
        measured: the figures are measured ones.
        flops_dense: dense FLOPs of one example.
        flops_staged: of head and tail, of one example; None without a measurement.
        flops_overhead: of the tests, of one example; None without a measurement.
        fraction_removed: share of the site's dense FLOPs saved, tests counted; measured, else expected.
        fraction_of_model: the site's share of the model's dense FLOPs; None where that depends on symbolic sizes.
        operator: the fused operator that computes it, without its namespace; "" if none does.
        code_bytes: what its weights take up once more, in fewer bits, by which the operator reads less; 0 without.
        pools: the operator takes the max pool behind the site too.
        kept_readable: why no fused operator does, in a graph that was lowered; else "".
        timing: what calibration measured; None if it did not.
    """

    name: str
    kind: str
    activation: str
    terms: int
    block: int
    neurons: int
    exchangeable: bool
    exchangeability: str
    decision: Decision
    reason: str
    head: str
    stages: tuple[int, ...]
    guard: str
    claim: str
    alive_fraction: tuple[float, ...]
    measured: bool
    flops_dense: Flops
    flops_staged: float | None
    flops_overhead: float | None
    fraction_removed: float | None
    fraction_of_model: float | None
    operator: str = ""
    code_bytes: int = 0
    pools: bool = False
    kept_readable: str = ""
    timing: SiteTiming | None = None


@dataclass(frozen=True)
class OtherFacts:
    """A matrix product or convolution that is no site: where, which operator, its share of the FLOPs, and why not."""

    name: str
    operator: str
    fraction_of_model: float | None
    reason: str


@dataclass(frozen=True)
class TotalFacts:
    """The whole model, FLOPs of one example.

    Attributes:
        examples: how many were measured; 0 if none.
        calibration_examples: how many the plan was calibrated on; 0 if none.
        flops_dense: of the dense model.
        flops_staged: of the staged model without the tests; None without a measurement.
        flops_overhead: of the tests; None without a measurement.
        fraction_removed: share of all FLOPs saved, tests counted; measured, else expected; None if neither.
    """

    examples: int
    calibration_examples: int
    flops_dense: Flops
    flops_staged: float | None
    flops_overhead: float | None
    fraction_removed: float | None


def _guard_text(entry: SitePlan) -> str:
    """The stop rule, and the windows in which neurons are rivals."""
    return f"{entry.guard}, rivals in {'x'.join(map(str, entry.window))}" if entry.window else str(entry.guard)


def claim_text(guard: Guard, calibration_examples: int) -> str:
    """What a guard's savings rest on: a proof, an estimate with its alpha, or a measurement on examples."""
    if guard.claim == "proved":
        return "proved"
    if guard.claim == "measured":
        return f"measured on {count_text(calibration_examples, 'example')}"
    alpha = getattr(guard, "alpha", None)
    return f"estimated, alpha {alpha:g}" if alpha is not None else "estimated, no alpha"


class Sizes:
    """Brings FLOPs to one example: one entry along the first axis of the first input tensor."""

    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._names: dict[sympy.Symbol, sympy.Symbol] = {}
        for size in (size for node in gm.graph.nodes if node.op == "placeholder" for size in _shape(node)):
            self._note(size_expr(size))
        shapes = (_shape(node) for node in gm.graph.nodes if node.op == "placeholder")
        self.batch: sympy.Expr = next((size_expr(shape[0]) for shape in shapes if shape), sympy.Integer(1))
        self.model = model_flops(gm)

    def _note(self, size: sympy.Expr) -> None:
        """Names symbols s0, s1, ... in order of appearance, as the printed graph does."""
        for symbol in sorted(size.free_symbols - self._names.keys(), key=str):
            self._names[symbol] = sympy.Symbol(f"s{len(self._names)}", **symbol.assumptions0)

    def per_example(self, flops: sympy.Expr) -> Flops:
        """FLOPs of one example: a number, or a formula."""
        each = sympy.expand(flops / self.batch)
        return float(each) if each.is_number else str(each.xreplace(self._names))

    def fraction(self, flops: sympy.Expr) -> float | None:
        """The share of the model's dense FLOPs; None where it depends on symbolic sizes."""
        if self.model == 0:
            return None
        share = sympy.cancel(flops / self.model)
        return float(share) if share.is_number else None


def _shape(node: fx.Node) -> tuple[int | torch.SymInt, ...]:
    value = node.meta.get("val")
    return tuple(value.shape) if isinstance(value, torch.Tensor) else ()


def site_flops(gm: fx.GraphModule, site: Site) -> sympy.Expr:
    """Dense FLOPs of a site, with the branch that it gates."""
    nodes = {site.node, site.gated.node} if site.gated else {site.node}
    return sum((dense_flops(node) for node in gm.graph.nodes if node.name in nodes), sympy.Integer(0))


def check_measurement(measurement: Measurement, staged: Mapping[str, SitePlan]) -> None:
    """Refuses a measurement of another graph.

    Raises:
        PlanError: the measured sites are not the staged ones.
    """
    measured = {site.name for site in measurement.sites}
    if measured != staged.keys():
        raise PlanError(
            f"this measurement is of another graph: it has sites {sorted(measured)}, the graph stages {sorted(staged)}",
            hint="explain(staged, measure(staged, batches))",
        )


def site_facts(site: Site, flops: sympy.Expr, sizes: Sizes, entry: SitePlan | None, examples: int) -> SiteFacts:
    """A site as planned (``entry``) on ``examples`` calibration examples, or as found."""
    staged = entry is not None and entry.is_staged
    guard = entry.guard if entry is not None and staged else None
    decision: Decision = "staged" if staged else "dense" if entry is not None or site.obstacle else "possible"
    return SiteFacts(
        name=site.name,
        kind=site.kind,
        activation=site.activation,
        terms=site.terms,
        block=site.block,
        neurons=site.out_features,
        exchangeable=site.exchangeable,
        exchangeability=site.reason,
        decision=decision,
        reason=site.obstacle or (entry.reason if entry is not None else ""),
        head=entry.head if entry is not None and staged else "",
        stages=entry.stages if entry is not None else (),
        guard=_guard_text(entry) if entry is not None and guard is not None else "",
        claim=claim_text(guard, examples) if guard is not None else "",
        alive_fraction=entry.alive_fraction if entry is not None else (),
        measured=False,
        flops_dense=sizes.per_example(flops),
        flops_staged=None,
        flops_overhead=None,
        fraction_removed=entry.fraction_removed if entry is not None and staged else None,
        fraction_of_model=sizes.fraction(flops),
        timing=entry.timing if entry is not None else None,
    )


_IN_FEWER_BITS = ("codes", "code_rest", "out_codes", "out_rest")


def with_form(facts: SiteFacts, node: fx.Node | None) -> SiteFacts:
    """The same site with how a graph computes it; ``node`` is the one that gives its activation, if it is staged."""
    if node is None:
        return facts
    if node.meta[ROLE_KEY] == "fused":
        assert isinstance(node.target, torch._ops.OpOverload)
        given = arguments_of(node)
        held = sum(given[name].meta["val"].nbytes for name in _IN_FEWER_BITS if given.get(name) is not None)
        pools = bool(given.get("pools"))
        return replace(facts, operator=node.target._schema.name.partition("::")[2], code_bytes=held, pools=pools)
    return replace(facts, kept_readable=str(node.meta.get(KEPT_KEY, "")))


def with_measurement(facts: SiteFacts, site: SiteMeasurement, examples: int) -> SiteFacts:
    """The same site with what it really did."""
    return replace(
        facts,
        alive_fraction=site.alive_fraction,
        measured=True,
        flops_dense=site.flops_dense / examples,
        flops_staged=site.flops_staged / examples,
        flops_overhead=site.flops_overhead / examples,
        fraction_removed=site.fraction_removed,
    )
