"""NEXP: how well a channel tells inputs apart (arXiv 2512.06440)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.errors import CalibrationError
from exprune_fx.graph.running import examples_in, placeholder_values
from exprune_fx.static.axes import labels
from exprune_fx.static.criteria.base import Scene, Scores, summed
from exprune_fx.symmetry import SymmetryGroup

aten = torch.ops.aten
_ACTIVATION_NAMES = """
relu relu6 hardtanh leaky_relu elu celu selu silu gelu mish hardswish tanh square
"""
_ACTIVATIONS = {getattr(aten, name) for name in _ACTIVATION_NAMES.split()}
_GATES: dict[Any, float] = {aten.sigmoid: 0.5, aten.hardsigmoid: 0.5}  # softplus(0) is no half: it is no gate


@dataclass(frozen=True)
class Counts:
    """How often each position of each watched value was active.

    Attributes:
        examples: how many inputs were seen.
        active: value's node name -> int64 counts, of the shape of one example's value.
    """

    examples: int = 0
    active: Mapping[str, Tensor] = field(default_factory=dict)

    def __add__(self, other: Counts) -> Counts:
        """Counts over both sets of inputs, from another process too."""
        if not self.examples or not other.examples:
            return self if self.examples else other
        if {n: t.shape for n, t in self.active.items()} != {n: t.shape for n, t in other.active.items()}:
            raise CalibrationError(
                "counts of activations have different shapes", hint="give inputs that all have the same sizes"
            )
        return Counts(
            self.examples + other.examples, {name: self.active[name] + other.active[name] for name in self.active}
        )

    def disagreement(self, name: str) -> Tensor:
        """Mean pairwise disagreement at every position of a value, from 0 to about 1/2 (float64).

        With c of N inputs active, 2 c (N - c) / (N (N - 1)): the share of pairs of which exactly one is active.
        """
        active, n = self.active[name].to(torch.float64), self.examples
        return 2 * active * (n - active) / (n * (n - 1))


@dataclass(frozen=True)
class Noise:
    """Inputs drawn from the standard normal distribution, of the captured example's sizes.

    Noise needs no data, and suits networks at initialisation. A trained network it ranks otherwise than data do: give a
    few dozen real inputs where there are any.

    Attributes:
        examples: at least how many.
        seed: of the generator.
    """

    examples: int = 64
    seed: int = 0

    def batches(self, gm: fx.GraphModule) -> Iterable[tuple[Any, ...]]:
        """Batches for a captured graph with plain positional inputs.

        Raises:
            CalibrationError: an input is no floating-point tensor.
        """
        generator = torch.Generator().manual_seed(self.seed)
        values = [node.meta.get("val") for node in gm.graph.nodes if node.op == "placeholder"]
        if not values or not all(isinstance(v, Tensor) and v.is_floating_point() for v in values):
            raise CalibrationError(
                "noise can stand for floating-point inputs only, and this model takes others",
                hint="give Expressiveness a few batches of inputs",
            )
        seen = 0
        while seen < self.examples:
            made = []
            for value in values:
                shape = [s if isinstance(s, int) else int(s.node.hint) for s in value.shape]
                made.append(torch.randn(shape, generator=generator).to(value.dtype).to(value.device))
            seen += examples_in(tuple(made))
            yield tuple(made)


@dataclass(frozen=True)
class Expressiveness:
    """How well a member's activations tell inputs apart; the least expressive are redundant.

    For every input, each activation is active (above a threshold) or not. A member's score is the mean share of pairs
    of inputs on which the two differ, over the positions (pixels, tokens) and the values that show the member. Labels
    are not needed, and noise or a few inputs will do. Memory is one counter for each number of one example's
    activations, however many inputs there are.

    The values looked at are the results of the nonlinearities along the group's axis; where there are none, what linear
    layers, convolutions and products read; where there are none of these either, every value along the axis. The first
    dim of an input counts its examples.

    Attributes:
        batches: tuples of positional arguments, or pairs `(args, kwargs)`; or `Noise(...)`. With several rounds, gone
            through once in each: a list or a loader, not a generator.
        threshold: above it, an activation is active: 0 suits ReLU, and SiLU and GELU, which keep the sign; sigmoids are
            taken at 1/2.
    """

    batches: Iterable[Any] | Noise
    threshold: float = 0.0

    def scores(self, scene: Scene) -> Scores:
        """Mean pairwise disagreements.

        Raises:
            CalibrationError: fewer than two inputs, inputs of different sizes, or values that are not finite.
        """
        return self.from_counts(scene, self.count(scene))

    def count(self, scene: Scene) -> Counts:
        """Counts activations over all batches; counts of several processes may be added up."""
        names = {name for group in scene.groups for name in watched(scene, group)}
        thresholds = {
            node.name: _GATES.get(getattr(node.target, "overloadpacket", None), self.threshold)
            for node in scene.graph.graph.nodes
            if node.name in names
        }
        batches = self.batches.batches(scene.graph) if isinstance(self.batches, Noise) else self.batches
        counts = Counts()
        for batch in batches:
            flat = placeholder_values(scene.graph, batch)
            watcher = _Watcher(scene.graph, thresholds, examples_in(batch))
            with torch.no_grad():
                watcher.run(*flat, enable_io_processing=False)
            counts = counts + Counts(examples_in(batch), watcher.active)
        return counts

    @staticmethod
    def from_counts(scene: Scene, counts: Counts) -> Scores:
        """Scores from counts.

        Raises:
            CalibrationError: fewer than two inputs were counted.
        """
        if counts.examples < 2:
            raise CalibrationError(
                f"expressiveness compares inputs, and was given {counts.examples}", hint="give at least two"
            )
        return {group.name: _score(scene, group, counts) for group in scene.groups}


class _Watcher(fx.Interpreter):
    """Runs a graph and counts, per position, in how many of the examples a value is above its threshold."""

    def __init__(self, gm: fx.GraphModule, thresholds: Mapping[str, float], examples: int) -> None:
        super().__init__(gm)
        self._thresholds, self._examples = thresholds, examples
        self.active: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node, and counts if it is watched."""
        value = super().run_node(n)
        if n.name in self._thresholds:
            if value.shape[0] % self._examples:
                raise CalibrationError(
                    f"node {n.name} gives {value.shape[0]} rows for {self._examples} examples",
                    hint="the first dim of every input must count the examples",
                )
            if not bool(value.isfinite().all()):
                raise CalibrationError(f"node {n.name} is not finite on this data", hint="check the inputs")
            active = (value > self._thresholds[n.name]).unflatten(0, (self._examples, -1))
            self.active[n.name] = active.sum(0).cpu()
        return value


def watched(scene: Scene, group: SymmetryGroup) -> tuple[str, ...]:
    """Names of the values that show a group's members."""
    along = [node for node in scene.graph.graph.nodes if _dim_along(scene, node, group) is not None]
    chosen = [node for node in along if getattr(node.target, "overloadpacket", None) in _ACTIVATIONS]
    chosen = chosen or [node for node in along if _is_read(scene, node, group)] or along
    return tuple(node.name for node in chosen)


def _dim_along(scene: Scene, node: fx.Node, group: SymmetryGroup) -> int | None:
    """The one dim, not the first, along which a node's value has the group."""
    if node.op != "call_function" or not isinstance(node.meta.get("val"), Tensor):
        return None
    axes = scene.report.analysis.axes.get(node.name)
    if not isinstance(axes, tuple) or not node.meta["val"].is_floating_point():
        return None
    wanted, unifier = set(group.atoms), scene.report.analysis.unifier
    dims = [dim for dim, layout in enumerate(axes) if wanted & unifier.leaves(layout)]
    if len(dims) != 1 or dims[0] == 0 or not labels(scene.report, axes, group, dims[0]):
        return None
    return dims[0]


def _is_read(scene: Scene, node: fx.Node, group: SymmetryGroup) -> bool:
    """Whether something sums over the group's axis of the value."""
    users = {user.name for user in node.users}
    unifier = scene.report.analysis.unifier
    return any(
        event.node in users and any(set(group.atoms) & unifier.leaves(event.letters[m]) for s in event.mixed for m in s)
        for event in scene.report.analysis.state.events
    )


def _score(scene: Scene, group: SymmetryGroup, counts: Counts) -> Tensor:
    total = torch.zeros(group.repeats * group.size, dtype=torch.float64)
    seen = torch.zeros_like(total)
    nodes = {node.name: node for node in scene.graph.graph.nodes}
    for name in watched(scene, group):
        dim = _dim_along(scene, nodes[name], group)
        assert dim is not None
        figures = counts.disagreement(name)
        sums, numbers = torch.zeros_like(total), torch.zeros_like(total)
        for points in labels(scene.report, scene.report.analysis.axes[name], group, dim):
            sums += summed(figures, points, len(total))
            numbers += summed(torch.ones_like(figures), points, len(total))
        shown = numbers > 0
        total[shown] += sums[shown] / numbers[shown]
        seen += shown
    return (total / seen.clamp(min=1)).reshape(group.repeats, group.size)
