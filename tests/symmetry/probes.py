"""Small functional models for symmetry tests, and the numeric check that all of them share."""

from __future__ import annotations

import copy
import functools
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn
from torch._subclasses import FakeTensorMode
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from exprune_fx.graph.capture import capture
from exprune_fx.symmetry import SymmetryReport, symmetries

Shape = tuple[int, ...]

# float64: an exact symmetry changes only the order of summation, 1e-16 times a few hundred terms; one misplaced weight
# changes the outputs by about 1e-2.
TOLERANCE = 1e-10


class Probe(nn.Module):
    """Random parameters of given shapes (positive where the name starts with `var`), constants, and a function."""

    def __init__(
        self, shapes: Mapping[str, Shape], function: Callable[..., Any], constants: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in shapes.items():
            value = torch.randn(shape, dtype=torch.float64, generator=generator)
            self.register_parameter(name, nn.Parameter(value.abs() + 0.3 if name.startswith("var") else value))
        for name, constant in constants.items():
            self.register_buffer(name, constant, persistent=False)
        self.function = function

    def forward(self, *args: torch.Tensor) -> Any:
        return self.function(self, *args)


@dataclass(frozen=True)
class Case:
    """A probe with its inputs and its free groups as `(size, repeats)`, sorted.

    With `raw`, the function calls overloads of aten, which are recorded as they are; else it goes through capture.
    """

    name: str
    shapes: Mapping[str, Shape]
    function: Callable[..., Any]
    args: tuple[torch.Tensor, ...]
    free: tuple[tuple[int, int], ...]
    raw: bool = False
    constants: Mapping[str, torch.Tensor] = field(default_factory=dict)

    def graph(self) -> fx.GraphModule:
        """Traced once; nobody writes into it."""
        return self._traced

    @functools.cached_property
    def _traced(self) -> fx.GraphModule:
        probe = Probe(self.shapes, self.function, self.constants).eval()
        return trace_raw(probe, self.args) if self.raw else capture(probe, self.args)


def trace_raw(module: nn.Module, args: tuple[torch.Tensor, ...]) -> fx.GraphModule:
    """The function's own calls as a graph, with fake values."""
    graph = _Tracer(len(args)).trace(module)
    gm = fx.GraphModule(module, graph)
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        FakeTensorProp(gm, mode).propagate(*args)
    return gm


class _Tracer(fx.Tracer):
    """Expands `*args` to a fixed number of inputs."""

    proxy_buffer_attributes = True

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def create_args_for_root(
        self,
        root_fn: Callable[..., Any],
        is_module: bool,  # noqa: ARG002 (overrides)
        concrete_args: Any = None,  # noqa: ARG002 (overrides)
    ) -> tuple[Callable[..., Any], list[Any]]:
        inputs = [self.create_proxy("placeholder", f"x{i}", (), {}) for i in range(self._count)]
        return root_fn, [self.root, *inputs]


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def outputs(gm: fx.GraphModule, args: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        return [leaf for leaf in pytree.tree_leaves(gm(*args)) if isinstance(leaf, torch.Tensor)]


def assert_invariant(gm: fx.GraphModule, report: SymmetryReport, args: tuple[torch.Tensor, ...]) -> None:
    """Random elements of every free group leave the outputs as they are."""
    wanted = outputs(gm, args)
    generator = torch.Generator().manual_seed(2)
    for group in report.free:
        for _ in range(2):
            permuted = copy.copy(gm)
            group.apply_(permuted, group.random_element(generator))
            for got, want in zip(outputs(permuted, args), wanted, strict=True):
                scale = float(want.abs().max()) + 1.0
                assert float((got - want).abs().max()) < TOLERANCE * scale, (group.name, group.reason)


def free_sizes(report: SymmetryReport) -> tuple[tuple[int, int], ...]:
    return tuple(sorted(Counter((group.size, group.repeats) for group in report.free).elements()))


def check(case: Case) -> SymmetryReport:
    """The case's free groups are those expected, and leave its outputs unchanged."""
    gm = case.graph()
    report = symmetries(gm)
    listed = "\n".join(f"{g.name} {g.size} x{g.repeats} free={g.free}: {g.reason}" for g in report)
    assert free_sizes(report) == tuple(sorted(case.free)), listed
    assert_invariant(gm, report, case.args)
    return report
