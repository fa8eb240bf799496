"""Properties that hold for every model, tried on random small ones (tests/strategies.py).

Each example is captured once; every property of it is one function of the captured `Case`. Outputs are compared in
float64: an exact rewrite or symmetry only changes the order of summation, 1e-10 of the largest output is far above
the rounding of a few hundred terms and far below the effect of a wrong one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, event, given, note, settings
from torch import fx

from exprune_fx.graph import copy_graph_module
from exprune_fx.graph.capture import capture
from exprune_fx.symmetry import symmetries
from tests.strategies import Program, RandomModel, programs
from tests.symmetry.architectures.common import randomise

TOLERANCE = 1e-10
EXAMPLES = 500


@dataclass(frozen=True)
class Case:
    """One random model, captured, with an input of another batch size than the example's and what it gives there."""

    model: RandomModel
    gm: fx.GraphModule
    groups: tuple[Any, ...]
    x: torch.Tensor
    dense: tuple[torch.Tensor, ...]


@torch.no_grad()
def make_case(program: Program) -> Case:
    generator = torch.Generator().manual_seed(0)
    model = RandomModel(program)
    randomise(model, generator)
    example, x = (
        torch.randn(batch, *program.input_shape, dtype=torch.float64, generator=generator) for batch in (2, 3)
    )
    note(str(model))
    gm = capture(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    return Case(model, gm, tuple(symmetries(gm)), x, model(x))


@torch.no_grad()
def assert_same_outputs(case: Case, gm: fx.GraphModule, what: str) -> None:
    """`gm` gives what the model gives, to the order of summation."""
    for number, (got, dense) in enumerate(zip(gm(case.x), case.dense, strict=True)):
        assert got.shape == dense.shape
        # Values of the first layer's size count as scale too: an output may cancel to zero.
        scale = max(float(dense.abs().max()), 1e-3)
        error = float((got - dense).abs().max()) / scale
        assert error < TOLERANCE, f"{what}: output {number} differs by {error:.1e} of its largest value"


def check_capture(case: Case) -> None:
    assert_same_outputs(case, case.gm, "capture")


def check_free_groups(case: Case) -> None:
    """Every free group leaves the outputs unchanged, alone and composed with the others."""
    generator = torch.Generator().manual_seed(1)
    composed = copy_graph_module(case.gm)
    free = [group for group in case.groups if group.free and group.size > 1]
    event("free groups", len(free) if len(free) < 4 else "4 or more")
    for group in free:
        element = group.random_element(generator)
        permuted = copy_graph_module(case.gm)
        group.apply_(permuted, element)
        members = ", ".join(f"{m.target}:{m.dim}" for m in group.members)
        assert_same_outputs(case, permuted, f"group {group.name} of {group.size} x {group.repeats} on {members}")
        group.apply_(composed, element)
    assert_same_outputs(case, composed, "all groups composed")


CHECKS = (check_capture, check_free_groups)


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
@given(programs())
def test_properties_of_random_graphs(program: Program) -> None:
    case = make_case(program)
    for check in CHECKS:
        check(case)
