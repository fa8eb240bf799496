"""FLOPs as sympy expressions in the graph's symbolic sizes and in the fractions of neurons that stay alive.

Counted as the ExPrune paper counts (arXiv 2506.02210): 2 per multiply-add; per test of one neuron 1 (one comparison) or
2n + 6 (statistics over n terms); biases, activations, pooling and norms not at all, neither dense nor staged.

The paper has no 8-bit products. A multiply-add of 8-bit numbers, which coded heads are made of, counts a quarter of
one, half a FLOP: four of them fit in the lane of a float32 one.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise

import sympy
import torch
from sympy import Expr
from torch import fx

from exprune_fx.guards import Bound, Guard, HeadKind
from exprune_fx.sites import Site

aten = torch.ops.aten
_RIVAL_FLOPS = (
    2  # of one neuron: k - 1 comparisons and the margin's subtraction for the k of a window, one comparison each
)


def size_expr(size: int | torch.SymInt) -> Expr:
    """A size as a sympy expression: an integer, or the symbol that the export gave it."""
    return size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)


def elements_expr(node: fx.Node) -> Expr:
    """The number of elements of a node's value."""
    return reduce(operator.mul, (size_expr(size) for size in node.meta["val"].shape), sympy.Integer(1))


def _shape(arg: object) -> tuple[Expr, ...]:
    assert isinstance(arg, fx.Node)
    return tuple(size_expr(size) for size in arg.meta["val"].shape)


def _contraction(position: int) -> Callable[[fx.Node], Expr]:
    """2 * outputs * the last size of one operand."""
    return lambda node: 2 * elements_expr(node) * _shape(node.args[position])[-1]


def _convolution(node: fx.Node) -> Expr:
    return 2 * elements_expr(node) * math.prod(_shape(node.args[1])[1:])


def _transposed(node: fx.Node) -> Expr:
    """Every input element meets its group's output channels times the kernel."""
    assert isinstance(node.args[0], fx.Node)
    return 2 * elements_expr(node.args[0]) * math.prod(_shape(node.args[1])[1:])


def _attention(node: fx.Node) -> Expr:
    query, key, value = (_shape(arg) for arg in node.args[:3])
    scores = math.prod(query[:-1]) * key[-2]
    return 2 * scores * (query[-1] + value[-1])


def _einsum(node: fx.Node) -> Expr:
    """2 * every combination of the letters, for two operands; zero for what the count would not be right for."""
    equation, operands = node.args[0], node.args[1]
    assert isinstance(equation, str)
    assert isinstance(operands, list | tuple)
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    if len(terms) != 2 or "." in equation:
        return sympy.Integer(0)
    sizes = {
        letter: size
        for term, arg in zip(terms, operands, strict=True)
        for letter, size in zip(term, _shape(arg), strict=True)
    }
    return 2 * math.prod(sizes.values())


_FLOPS: dict[object, Callable[[fx.Node], Expr]] = {
    aten.linear.default: _contraction(0),
    aten.mm.default: _contraction(0),
    aten.bmm.default: _contraction(0),
    aten.matmul.default: _contraction(0),
    aten.einsum.default: _einsum,
    aten.addmm.default: _contraction(1),
    aten.baddbmm.default: _contraction(1),
    aten.conv1d.default: _convolution,
    aten.conv2d.default: _convolution,
    aten.conv3d.default: _convolution,
    aten.conv1d.padding: _convolution,
    aten.conv2d.padding: _convolution,
    aten.conv3d.padding: _convolution,
    aten.conv_transpose1d.default: _transposed,
    aten.conv_transpose2d.input: _transposed,
    aten.conv_transpose3d.input: _transposed,
    aten.scaled_dot_product_attention.default: _attention,
}


def dense_flops(node: fx.Node) -> Expr:
    """FLOPs of one dense node; zero for what is not a linear layer, convolution, matrix product or attention."""
    rule = _FLOPS.get(node.target)
    return rule(node) if rule else sympy.Integer(0)


def model_flops(gm: fx.GraphModule) -> Expr:
    """FLOPs of all dense nodes of a graph."""
    return sum((dense_flops(node) for node in gm.graph.nodes), sympy.Integer(0))


@dataclass(frozen=True)
class SiteCost:
    """FLOPs of one site.

    Attributes:
        dense: of the reduction (and of the gated branch) as it stands.
        work: of head and tail when staged, in ``alive`` and ``gate_nonzero``.
        overhead: of the tests, in ``alive``.
        alive: one symbol per stage: the fraction of all neurons that go on after it.
        gate_nonzero: the fraction of the activation that is not zero (a gated branch reads those rows only).
    """

    dense: Expr
    work: Expr
    overhead: Expr
    alive: tuple[sympy.Symbol, ...]
    gate_nonzero: sympy.Symbol

    def at(self, alive: Sequence[float], gate_nonzero: float = 1.0) -> tuple[Expr, Expr]:
        """Work and overhead at these fractions, exactly: floats would sum up in whatever order sympy holds them."""
        given = {**dict(zip(self.alive, alive, strict=True)), self.gate_nonzero: gate_nonzero}
        values = {symbol: sympy.Rational(value) for symbol, value in given.items()}
        return self.work.subs(values), self.overhead.subs(values)


def _norm_flops(value: fx.Node, site: Site, pixels_out: Expr, features: int) -> Expr:
    """One norm of a site's inputs over some of its features (channels): squares and sums, then a box sum."""
    if site.geometry is None:
        return 2 * pixels_out * features
    pixels_in = elements_expr(value) / _shape(value)[1]
    return site.geometry.groups * (2 * pixels_in * features + pixels_out * math.prod(site.weight_shape[2:]))


def _prefix_work(site: Site, outputs: Expr, stages: Sequence[int], alive: Sequence[Expr]) -> Expr:
    going = [sympy.Integer(1), *alive]
    ends = [0, *stages, site.terms]
    terms = sum(share * (last - first) for share, (first, last) in zip(going, pairwise(ends), strict=True))
    return 2 * site.elements_per_term * outputs * terms


def _principal_work(node: fx.Node, site: Site, outputs: Expr, rank: int, alive: Expr) -> Expr:
    value = node.args[0]
    assert isinstance(value, fx.Node)
    down = 2 * rank * elements_expr(value)
    up = 2 * rank * math.prod(site.weight_shape[2:]) * outputs
    return down + up + alive * 2 * site.elements * outputs


def _coded_work(site: Site, outputs: Expr, alive: Expr) -> Expr:
    products = site.elements * outputs
    return products / 2 + alive * 2 * products


def site_cost(
    gm: fx.GraphModule,
    site: Site,
    head: HeadKind,
    stages: Sequence[int],
    guard: Guard,
    window: Sequence[int] = (),
) -> SiteCost:
    """What a site costs dense and staged.

    Args:
        gm: the normalised, not yet staged graph (its shapes are read).
        site: a site of that graph.
        head: what the guard looks at.
        stages: terms seen at each test, or the rank, or all terms of a coded head.
        guard: the stop rule.
        window: of the max pool in which neurons are rivals; empty where they are none.
    """
    node = next(n for n in gm.graph.nodes if n.name == site.node)
    outputs = elements_expr(node)
    pixels = outputs / site.out_features
    alive = tuple(sympy.Symbol(f"alive_{i}", nonnegative=True) for i in range(1, len(stages) + 1))
    nonzero = sympy.Symbol("gate_nonzero", nonnegative=True)
    value = node.args[0]
    assert isinstance(value, fx.Node)
    if head == "prefix":
        work = _prefix_work(site, outputs, stages, alive)
    elif head == "coded":
        work = _coded_work(site, outputs, alive[0])
    else:
        work = _principal_work(node, site, outputs, stages[0], alive[0])
    overhead: Expr = sympy.Integer(0)
    previous = 0
    for share, seen in zip([sympy.Integer(1), *alive], stages, strict=False):
        terms_new = seen - previous if head == "prefix" else seen
        overhead += share * outputs * (guard.test_flops(terms_new) + (_RIVAL_FLOPS if window else 0))
        if isinstance(guard, Bound) and head == "prefix":
            overhead += _norm_flops(value, site, pixels, (site.terms - seen) * site.block)
        previous = seen
    if isinstance(guard, Bound):  # and the norm of the whole input, once
        overhead += _norm_flops(value, site, pixels, site.terms * site.block)
    dense = dense_flops(node)
    if site.gated is not None:
        branch = dense_flops(next(n for n in gm.graph.nodes if n.name == site.gated.node))
        dense, work = dense + branch, work + nonzero * branch
    return SiteCost(dense, work, overhead, alive, nonzero)


def evaluate(expression: Expr, sizes: Mapping[Expr, int]) -> float:
    """An expression's value at concrete sizes.

    Raises:
        TypeError: a size that the expression needs is not given.
    """
    return float(expression.subs(sizes))
