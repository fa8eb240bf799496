"""FLOPs as the ExPrune paper's reference implementation counts them, by running the readable staged graph.

What it counts, as read in its published code, and what is counted here:

- convolutions and linear layers: 2 for each multiply-add with a weight that is not zero (static masks), so that a
  pruned weight costs nothing, dense or staged;
- a neuron that is stopped after n terms: only the multiply-adds of those n terms;
- a test: ``2n + 6`` for StatsTest, 1 for Threshold (and for ours), for every neuron that is tested;
- 3 for each element that a batch norm makes, 1 for each element of a bias of a convolution, of a ReLU, of an embedding,
  of a residual sum, of a message that is scaled or added up. These are the same dense and staged, under 1 % of a CNN;
- principal heads, which the paper does not have: both factors of the head, 2 for each multiply-add, then a neuron that
  goes on is computed whole;
- coded heads, which the paper does not have either: half a FLOP for each 8-bit multiply-add, as `exprune_fx.cost`
  counts, then as behind a principal head;
- matrix products of two activations and attention: 2 for each multiply-add.

Pooling and softmax are not counted. ``Tally.fraction_removed`` is 1 - staged / dense of these sums.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
from torch import Tensor, fx

from exprune_fx.cost import dense_flops, elements_expr, evaluate
from exprune_fx.errors import CalibrationError, PlanError
from exprune_fx.graph.edits import tensor_at
from exprune_fx.graph.running import placeholder_values, symbol_values
from exprune_fx.guards import StatsTest
from exprune_fx.pipeline import readable_form, record_of
from exprune_fx.plan import SitePlan
from exprune_fx.sites import Site
from exprune_fx.staging import ROLE_KEY, SITE_KEY, STAGE_KEY

aten = torch.ops.aten

_CONVOLUTIONS = (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default)
_LAYERS = (aten.linear.default, *_CONVOLUTIONS)
_PER_ELEMENT: dict[object, int] = {
    aten.batch_norm.default: 3,
    aten.relu.default: 1,
    aten.relu_.default: 1,
    aten.embedding.default: 1,
    aten.add.Tensor: 1,
    aten.add_.Tensor: 1,
    aten.mul.Tensor: 1,
    aten.index_add.default: 1,
}


@dataclass(frozen=True)
class Tally:
    """FLOPs over some examples.

    Attributes:
        dense: of the model as it was captured.
        staged: of the staged model, tests counted.
        overhead: of the tests.
        alive_fraction: by site, the share of neurons that no stage stopped.
    """

    dense: float
    staged: float
    overhead: float
    alive_fraction: Mapping[str, float]

    @property
    def fraction_removed(self) -> float:
        """Share of all FLOPs saved, tests counted; negative where staging costs more."""
        return 1.0 - self.staged / self.dense if self.dense else 0.0


@dataclass(frozen=True, eq=False)
class _Layer:
    """What one output of a layer costs.

    Attributes:
        terms: [out, K], float64: multiply-adds of each term that count.
    """

    terms: Tensor

    @property
    def whole(self) -> Tensor:
        """FLOPs of one neuron of each output channel, [out]."""
        return 2 * self.terms.sum(1)

    @classmethod
    def of(cls, gm: fx.GraphModule, node: fx.Node, terms: int | None, sparse: bool) -> _Layer | None:
        """None where the weight is no parameter."""
        weight = node.args[1]
        if not (isinstance(weight, fx.Node) and weight.op == "get_attr"):
            return None
        value = tensor_at(gm, str(weight.target)).detach()
        counted = (value != 0).double() if sparse else torch.ones_like(value, dtype=torch.float64)
        counted = counted.reshape(len(value), terms or value.shape[1], -1).sum(2)
        return cls(counted)


class _Counter(fx.Interpreter):
    """Runs a readable staged graph; counts stopped neurons by output channel, and the elements of dense layers."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.alive: dict[tuple[str, int], Tensor] = {}
        self.neurons: dict[str, int] = {}
        self._dense: dict[str, int] = {}

    def neurons_of(self, node: str, sites: Mapping[str, Site]) -> int:
        """Of one output channel of a layer that is not staged, or staged with a guard that the plan does not know."""
        found = self._dense.get(node)
        return self.neurons[next(s.name for s in sites.values() if s.node == node)] if found is None else found

    def run_node(self, n: fx.Node) -> Any:
        """Runs the node and counts."""
        value = super().run_node(n)
        role = n.meta.get(ROLE_KEY)
        if role == "stopped":
            going = ~value
            channel = 1 if n.meta["exprune_conv"] else going.dim() - 1
            kept = going.sum([d for d in range(going.dim()) if d != channel]).double()
            self.alive[n.meta[SITE_KEY], n.meta[STAGE_KEY]] = kept
            self.neurons[n.meta[SITE_KEY]] = value.numel() // len(kept)
        elif n.target in _LAYERS and role is None:
            weight = n.args[1]
            assert isinstance(weight, fx.Node)
            self._dense[n.name] = value.numel() // int(weight.meta["val"].shape[0])
        return value


@dataclass
class _Sums:
    """FLOPs so far, and by site the neurons that went on, of all."""

    dense: float = 0.0
    work: float = 0.0
    overhead: float = 0.0
    alive: dict[str, float] = field(default_factory=dict)
    neurons: dict[str, float] = field(default_factory=dict)

    def add(self, cost: float) -> None:
        """What is the same dense and staged."""
        self.dense, self.work = self.dense + cost, self.work + cost

    def add_staged(self, site: Site, plan: SitePlan, layer: _Layer, counter: _Counter) -> None:
        """One staged site on one batch."""
        whole, done, tests = _staged(site, plan, layer, counter)
        self.dense, self.work, self.overhead = self.dense + whole, self.work + done + tests, self.overhead + tests
        going = float(counter.alive[site.name, len(plan.stages) - 1].sum())
        self.alive[site.name] = self.alive.get(site.name, 0.0) + going
        self.neurons[site.name] = self.neurons.get(site.name, 0.0) + counter.neurons[site.name] * len(layer.terms)

    def result(self) -> Tally:
        """The sums, if there was anything.

        Raises:
            CalibrationError: there were no batches.
        """
        if not self.dense:
            raise CalibrationError("there are no batches to count on", hint="give at least one batch")
        alive = {name: going / self.neurons[name] for name, going in self.alive.items()}
        return Tally(self.dense, self.work, self.overhead, alive)


class Counting:
    """Counts staged graphs of one captured model."""

    def __init__(self, captured: fx.GraphModule, sparse: bool) -> None:
        self._sparse = sparse
        self._fixed = sum(
            (factor * elements_expr(node) for node in captured.graph.nodes if (factor := _per_element(node))),
            sympy.Integer(0),
        )

    def tally(self, staged: fx.GraphModule, batches: Iterable[object]) -> Tally:
        """Runs a staged graph, in its readable form, on some batches.

        Raises:
            PlanError: the graph was not made by ``transform`` of this model, or has gated feed-forwards.
            CalibrationError: there are no batches.
        """
        record = record_of(staged)
        if record is None:
            raise PlanError("this graph was not made by transform", hint="count transform(gm, plan)")
        if any(site.gated is not None for site in record.sites):
            raise PlanError("gated feed-forwards are not in the paper's count", hint="count with measure")
        readable = readable_form(staged)
        sites = {site.name: site for site in record.sites}
        plans = {entry.site: entry for entry in record.plan.staged}
        _mark_convolutions(readable, sites)
        layers = self._layers(record.dense, sites)
        sums = _Sums()
        for batch in batches:
            flat = placeholder_values(readable, batch)
            sizes = symbol_values(readable, flat)
            counter = _Counter(readable)
            with torch.no_grad():
                counter.run(*flat, enable_io_processing=False)
            sums.add(evaluate(self._fixed, sizes) + self._products(record.dense, sizes))
            for node_name, layer in layers.items():
                site = next((s for s in sites.values() if s.node == node_name and s.name in plans), None)
                if site is None:
                    sums.add(_plain(layer, counter.neurons_of(node_name, sites)))
                else:
                    sums.add_staged(site, plans[site.name], layer, counter)
        return sums.result()

    def _layers(self, dense: fx.GraphModule, sites: Mapping[str, Site]) -> dict[str, _Layer]:
        by_node = {site.node: site for site in sites.values()}
        found = {}
        for node in dense.graph.nodes:
            if node.target in _LAYERS:
                terms = by_node[node.name].terms if node.name in by_node else None
                layer = _Layer.of(dense, node, terms, self._sparse)
                if layer is not None:
                    found[node.name] = layer
        return found

    def _products(self, dense: fx.GraphModule, sizes: dict[sympy.Expr, int]) -> float:
        """Matrix products and attention: what has no weights of its own."""
        return sum(evaluate(dense_flops(node), sizes) for node in dense.graph.nodes if node.target not in _LAYERS)


def _per_element(node: fx.Node) -> int:
    """FLOPs for each element of a result beside those of weights: of what was captured, before batch norms fold."""
    if not isinstance(node.meta.get("val"), Tensor):
        return 0
    if node.target in _CONVOLUTIONS:
        return int(len(node.args) > 2 and node.args[2] is not None)
    return _PER_ELEMENT.get(node.target, 0)


def _mark_convolutions(gm: fx.GraphModule, sites: Mapping[str, Site]) -> None:
    """Where the channels of a test's result are: not to be told from its shape."""
    for node in gm.graph.nodes:
        if node.meta.get(ROLE_KEY) == "stopped":
            node.meta["exprune_conv"] = sites[node.meta[SITE_KEY]].geometry is not None


def _plain(layer: _Layer, positions: int) -> float:
    return positions * float(layer.whole.sum())


def _staged(site: Site, plan: SitePlan, layer: _Layer, counter: _Counter) -> tuple[float, float, float]:
    """Dense, staged and test FLOPs of one staged site on one batch."""
    positions = counter.neurons[site.name]
    whole = positions * float(layer.whole.sum())
    going = [torch.full((len(layer.terms),), float(positions), dtype=torch.float64)]
    going += [counter.alive[site.name, stage] for stage in range(len(plan.stages))]
    if plan.head == "principal":
        rank = plan.stages[0]
        kernel = math.prod(site.weight_shape[2:]) if site.geometry else 1
        inputs = _input_positions(site, positions)
        head = 2 * rank * (inputs * site.terms * site.block + positions * len(layer.terms) * kernel)
        tests = positions * len(layer.terms)
        return whole, head + float((going[1] * layer.whole).sum()), float(tests)
    if plan.head == "coded":
        products = float(positions) * len(layer.terms) * site.elements
        return whole, 0.5 * products + float((going[1] * layer.whole).sum()), float(positions * len(layer.terms))
    done, tests_sum, before = 0.0, 0.0, 0
    for share, end in zip(going, (*plan.stages, site.terms), strict=True):
        terms = layer.terms[:, before:end]
        done += 2 * float((share * terms.sum(1)).sum())
        if end < site.terms:
            tests_sum += float((share * _test_flops(plan, terms)).sum())
        before = end
    return whole, done, tests_sum


def _input_positions(site: Site, positions: int) -> float:
    """Pixels of a convolution's input; rows of a linear layer's."""
    if site.geometry is None:
        return positions
    return positions * math.prod(site.geometry.stride)


def _test_flops(plan: SitePlan, terms: Tensor) -> Tensor:
    """FLOPs of one test of each output channel, [out]: terms without any weight are not among the samples."""
    assert plan.guard is not None
    seen = (terms > 0).sum(1)
    if isinstance(plan.guard, StatsTest):
        return 2.0 * seen + 6
    return torch.full((len(terms),), float(plan.guard.test_flops(1)), dtype=torch.float64)
