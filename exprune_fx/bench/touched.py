"""What has to be read and computed: FLOPs and bytes of a graph on given inputs, counted by interpreting it.

Only what makes up the time of a compiled model counts: linear layers, convolutions, matrix products, attention and
staged sites, each with its inputs, weights and outputs read or written once. Pointwise operators are fused into these.
Of a weight that has codes, the codes are counted and the rows of nonzero units; a few more rows, which the codes leave
open, are not; where such a weight is split (`SplitWeightsPass`), of these rows what completes the codes to 24 bits.
Of a coded head one byte a weight, at a quarter of the FLOPs of a float32 product, then of the outputs
that go on the weights, or the 16 bits that complete the codes of float32 ones.
A staged linear site reads of a weight's row what its stages got to see for at least one of the call's rows; a linear
layer that alone reads a staged site's activation needs the columns of its nonzero units only (`staged_ffn`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.types import IntLikeType

from exprune_fx.calibration.head_costs import bytes_read, flops_staged
from exprune_fx.cost import SiteCost, dense_flops, evaluate, site_cost
from exprune_fx.errors import PlanError
from exprune_fx.graph.running import placeholder_values, symbol_values
from exprune_fx.pipeline import StagedRecord, record_of
from exprune_fx.plan import SitePlan
from exprune_fx.sites import Site
from exprune_fx.staging import ROLE_KEY, SITE_KEY, STAGE_KEY
from exprune_fx.staging.fewer_bits import codes_pay, rows_of, split_pays
from exprune_fx.staging.heads import HEAD_KEY, HEAD_ROLE_KEY

_LINEAR = torch.ops.aten.linear.default


@dataclass(frozen=True)
class Touched:
    """What one call touches, staged and dense.

    Attributes:
        flops: of the staged graph, tests counted.
        flops_dense: of the dense graph.
        bytes: read and written by the staged graph.
        bytes_dense: read and written by the dense graph.
        stopped_fraction: share of the staged sites' neurons that stopped.
        zero_fraction: share of the staged sites' activations that are zero.
    """

    flops: float
    flops_dense: float
    bytes: float
    bytes_dense: float
    stopped_fraction: float
    zero_fraction: float

    @property
    def flops_saved(self) -> float:
        """Share of the dense FLOPs."""
        return 1.0 - self.flops / self.flops_dense if self.flops_dense else 0.0


def count_touched(staged: fx.GraphModule, inputs: Sequence[tuple[Any, ...]]) -> Touched:
    """The mean over these calls.

    Args:
        staged: a readable staged graph, made by ``transform``.
        inputs: arguments of each call.

    Raises:
        PlanError: the graph was not made by ``transform``.
    """
    record = record_of(staged)
    if record is None:
        raise PlanError(
            "this graph was not made by transform", hint="count_touched(transform(gm, plan, lower=False), inputs)"
        )
    counts = _Count()
    with torch.no_grad():
        for args in inputs:
            values = placeholder_values(staged, args)
            _Counter(staged, record, counts, symbol_values(staged, values)).run(*values, enable_io_processing=False)
            dense = _Counter(record.dense, None, counts.dense(), symbol_values(staged, values))
            dense.run(*placeholder_values(record.dense, args), enable_io_processing=False)
            counts.flops_dense += dense.counts.flops
            counts.bytes_dense += dense.counts.bytes
    return counts.mean(len(inputs))


@dataclass
class _Count:
    """Sums over calls."""

    flops: float = 0.0
    flops_dense: float = 0.0
    bytes: float = 0.0
    bytes_dense: float = 0.0
    neurons: int = 0
    stopped: int = 0
    zero: int = 0

    @staticmethod
    def dense() -> _Count:
        """Where a dense graph's counts go."""
        return _Count()

    def mean(self, calls: int) -> Touched:
        """The sums over the number of calls, and fractions of all neurons."""
        neurons = max(self.neurons, 1)
        return Touched(
            flops=self.flops / calls,
            flops_dense=self.flops_dense / calls,
            bytes=self.bytes / calls,
            bytes_dense=self.bytes_dense / calls,
            stopped_fraction=self.stopped / neurons,
            zero_fraction=self.zero / neurons,
        )


class _Counter(fx.Interpreter):
    """Runs a graph once and adds up what its nodes touch; without a record, every node is dense."""

    def __init__(
        self, gm: fx.GraphModule, record: StagedRecord | None, counts: _Count, sizes: dict[sympy.Expr, int]
    ) -> None:
        super().__init__(gm)
        self.counts = counts
        self.sizes = sizes
        self.record = record
        self.stopped: dict[tuple[str, int], Tensor] = {}
        self.sites = {site.name: site for site in record.sites} if record else {}
        skipping = {entry.site for entry in record.plan.skipping} if record else set()
        self.skipping = {site.activation_node for site in self.sites.values() if site.name in skipping}

    def run_node(self, n: fx.Node) -> Any:
        """Runs the node, and counts it."""
        value = super().run_node(n)
        role = n.meta.get(ROLE_KEY)
        if self.record is not None and role == "stopped":
            self.stopped[n.meta[SITE_KEY], n.meta[STAGE_KEY]] = value
        elif self.record is not None and role == "finish":
            self._site(n, value)
        elif n.meta.get(HEAD_ROLE_KEY) == "after":
            self._head(n, value)
        elif role != "gated":
            self._plain(n, value)
        return value

    def _head(self, n: fx.Node, after: Tensor) -> None:
        """A prediction head, by when its classes stopped: each call reads for all rows what one of them needs."""
        assert self.record is not None
        entry = next(each for each in self.record.plan.heads if each.head == n.meta[HEAD_KEY])
        x, weight = (self.env[arg] for arg in n.args[:2])  # type: ignore[index] # nodes
        rows, stages = after.reshape(-1, after.shape[-1]), range(len(entry.stages))
        share = [float((rows > stage).double().mean()) for stage in stages]
        anywhere = [float((rows > stage).any(0).double().mean()) for stage in stages]
        self.counts.flops += len(rows) * flops_staged(entry, share)
        self.counts.bytes += bytes_read(entry, weight.element_size(), anywhere) + _bytes(x)
        self.counts.neurons += rows.numel()
        self.counts.stopped += int((rows < len(entry.stages)).sum())

    def _plain(self, n: fx.Node, value: Any) -> None:
        flops = evaluate(dense_flops(n), self.sizes) if n.op == "call_function" else 0.0
        if flops == 0:
            return
        args, _ = self.fetch_args_kwargs_from_env(n)
        tensors = [arg for arg in torch.utils._pytree.tree_leaves(args) if isinstance(arg, Tensor)]
        touched = sum(_bytes(tensor) for tensor in (*tensors, value))
        if n.target is _LINEAR and self._skips_zeros(n):
            x, weight = tensors[0], tensors[1]
            nonzero = x != 0
            flops *= int(nonzero.sum()) / x.numel()
            read = int(_anywhere(nonzero, -1).sum())
            size = 3 if split_pays(weight, self._rows(n)) else weight.element_size()
            touched -= (x.shape[-1] * weight.element_size() - read * size) * weight.shape[0]
        self.counts.flops += flops
        self.counts.bytes += touched

    def _rows(self, n: fx.Node) -> IntLikeType:
        """Rows of a linear layer's input, as far as the graph knows them."""
        assert isinstance(n.args[0], fx.Node)
        return rows_of(n.args[0].meta["val"])

    def _skips_zeros(self, n: fx.Node) -> bool:
        """A linear layer that alone reads a site's activation, or its gated product, and was joined with it."""
        value = n.args[0]
        if self.record is None or not isinstance(value, fx.Node) or len(value.users) != 1:
            return False
        staged = value.meta.get(ROLE_KEY) in ("finish", "gated") and "linear" in str(value.target)
        return staged or value.name in self.skipping

    def _site(self, n: fx.Node, value: Tensor) -> None:
        assert self.record is not None
        name = n.meta[SITE_KEY]
        site, entry = self.sites[name], self.record.plan.for_site(name)
        assert entry is not None
        masks = [self.stopped[name, stage] for stage in range(len(entry.stages))]
        alive = [1.0 - int(mask.sum()) / max(mask.numel(), 1) for mask in masks]
        nonzero = value != 0
        work, overhead = _cost(self.record, site, entry).at(alive, int(nonzero.sum()) / max(value.numel(), 1))
        self.counts.flops += evaluate(work + overhead, self.sizes)
        self.counts.neurons += value.numel()
        self.counts.stopped += int(masks[-1].sum())
        self.counts.zero += value.numel() - int(nonzero.sum())
        x = self.env[n.args[0]] if isinstance(n.args[0], fx.Node) else value
        axis = -1 if site.geometry is None else 1
        rows = [site.out_features, *(int(_anywhere(~mask, axis).sum()) for mask in masks)]
        needed = int(_anywhere(nonzero, axis).sum())
        known = self._rows(n) if site.geometry is None else x.shape[0]
        weight_bytes = _weight_bytes(site, entry, rows, needed, x, known)
        if site.gated is not None:
            weight_bytes += needed * x.shape[-1] * x.element_size()
        self.counts.bytes += _bytes(x) + _bytes(value) + weight_bytes


def _weight_bytes(
    site: Site, entry: SitePlan, rows: Sequence[int], needed: int, x: Tensor, known_rows: IntLikeType
) -> int:
    """Bytes of a weight that are read; of one with codes (`CodeWeightsPass`), at least.

    Args:
        site: the site.
        entry: its plan.
        rows: see `_weight_elements`.
        needed: outputs that are not zero.
        x: the input.
        known_rows: of a linear layer's input, as far as the graph knows them.
    """
    size = x.element_size()
    weight = torch.empty(site.weight_shape, dtype=x.dtype, device="meta")
    if entry.head == "coded":
        return (site.out_features + rows[-1] * 2) * site.elements  # of 16-bit weights, or to complete codes
    if site.geometry is not None or not codes_pay(weight, x.numel() // x.shape[-1]):
        return _weight_elements(site, entry, rows) * size
    head_by_codes = entry.head == "prefix" and entry.guard is not None and not entry.guard.needs_squares
    whole = rows[-1] * site.elements  # of these rows a prefix head has seen a part
    codes = _weight_elements(site, entry, rows) if head_by_codes else whole
    head = 0 if head_by_codes else (_weight_elements(site, entry, rows) - whole) * size
    squares = entry.guard is not None and entry.guard.needs_squares
    splits = split_pays(weight, known_rows) and not squares
    return head + codes + needed * site.elements * (2 if splits else size)


def _weight_elements(site: Site, entry: SitePlan, rows: Sequence[int]) -> int:
    """Elements of the weight (and of a principal head's factors) that are read.

    Args:
        site: the site.
        entry: its plan.
        rows: outputs of which something has to be read before the first stage, and after each.
    """
    if entry.head == "prefix":
        ends = pairwise((0, *entry.stages, site.terms))
        return site.elements_per_term * sum(
            alive * (last - first) for alive, (first, last) in zip(rows, ends, strict=True)
        )
    rank, terms = entry.stages[0], site.weight_shape[1]
    return rank * terms + site.out_features * rank * (site.elements // terms) + rows[-1] * site.elements


def _cost(record: StagedRecord, site: Site, entry: SitePlan) -> SiteCost:
    assert entry.guard is not None
    return site_cost(record.dense, site, entry.looks_at, entry.stages, entry.guard, entry.window)


def _anywhere(mask: Tensor, axis: int) -> Tensor:
    """[size of the axis]: True where the mask is, at any other index."""
    return mask.movedim(axis, 0).flatten(1).any(1) if mask.dim() > 1 else mask


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
