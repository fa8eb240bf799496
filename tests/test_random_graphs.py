"""Properties that hold for every model, tried on random small ones (tests/strategies.py).

Each example is captured once; every property of it is one function of the captured `Case`. Outputs are compared in
float64: an exact rewrite or symmetry only changes the order of summation, 1e-10 of the largest output is far above
the rounding of a few hundred terms and far below the effect of a wrong one. `EXPRUNE_RANDOM_GRAPHS=500 pytest` tries
more, which a change of the rules, of the passes or of capture is worth.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, event, given, note, seed, settings
from torch import fx

from exprune_fx.graph import copy_graph_module
from exprune_fx.graph.capture import capture
from exprune_fx.guards import Bound, Calibrated, Guard
from exprune_fx.pass_manager import Pass
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import NORMALISE, normalise, transform
from exprune_fx.plan import Array, Plan, SitePlan
from exprune_fx.sites import Site, find_sites
from exprune_fx.staging import ROLE_KEY
from exprune_fx.symmetry import SymmetryReport, symmetries
from tests.strategies import Program, RandomModel, programs
from tests.symmetry.architectures.common import randomise

TOLERANCE = 1e-10
EXAMPLES = int(os.environ.get("EXPRUNE_RANDOM_GRAPHS", "100"))
SHARDS = 10


@dataclass(frozen=True)
class Case:
    """One random model, captured, with an input of another batch size than the example's and what it gives there."""

    model: RandomModel
    gm: fx.GraphModule
    groups: SymmetryReport
    normalised: fx.GraphModule
    sites: tuple[Site, ...]
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
    normalised = normalise(gm)
    return Case(model, gm, symmetries(gm), normalised, tuple(find_sites(normalised)), x, model(x))


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


def plan_everything(case: Case, guard: Guard, threshold: float = 0.0) -> Plan:
    """Stages every site that can be staged, after a third and two thirds of its terms; Calibrated at `threshold`."""
    entries = []
    for site in case.sites:
        stages = tuple(sorted({max(1, site.terms // 3), 2 * site.terms // 3} & set(range(1, site.terms))))
        if site.obstacle or not stages:
            entries.append(SitePlan(site.name, site.weight_shape))
            continue
        thresholds = Array.of(torch.full((len(stages), site.out_features), threshold))
        entries.append(
            SitePlan(
                site.name,
                site.weight_shape,
                head="prefix",
                guard=guard,
                stages=stages,
                thresholds=thresholds if isinstance(guard, Calibrated) else None,
            )
        )
    return Plan(tuple(entries))


class Finishes(fx.Interpreter):
    """Runs a staged graph and keeps what its sites give."""

    def __init__(self, gm: fx.GraphModule) -> None:
        super().__init__(gm)
        self.kept: list[torch.Tensor] = []

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        if n.meta.get(ROLE_KEY) == "finish":
            assert isinstance(value, torch.Tensor)
            self.kept.append(value)
        return value


def check_transform(case: Case) -> None:
    """A guard that is proved changes nothing, through the whole pipeline."""
    event("sites", len(case.sites) if len(case.sites) < 3 else "3 or more")
    assert_same_outputs(case, transform(case.gm, plan_everything(case, Bound())), "transform with Bound")


def check_always_stopping(case: Case) -> None:
    """A stopped neuron is exactly zero."""
    plan = plan_everything(case, Calibrated(0.1), math.inf)
    if plan.staged:
        finishes = Finishes(StageSitesPass(plan)(case.normalised).graph_module)
        finishes.run(case.x)
        assert len(finishes.kept) == len(plan.staged)
        assert all((value == 0).all() for value in finishes.kept), "a stopped neuron is not exactly zero"


def check_passes(case: Case) -> None:
    """With a guard that never stops every pass keeps the outputs; its second run changes nothing."""
    gm = case.gm
    plan = plan_everything(case, Calibrated(0.1), -math.inf)
    steps: tuple[Pass, ...] = (*NORMALISE, ReorderTermsPass(plan.orders), StageSitesPass(plan), SkipGatedRowsPass())
    for step in steps:
        gm = step(gm).graph_module
        second = step(gm)
        assert not second.changed, f"the second run of {step.name} changed something"
        assert second.edits == 0
        assert second.graph_module is gm
        assert_same_outputs(case, gm, step.name)


CHECKS = (check_capture, check_free_groups, check_transform, check_always_stopping, check_passes)


@pytest.mark.parametrize("shard", range(SHARDS))
def test_properties_of_random_graphs(shard: int) -> None:
    """In shards, each with a seed of its own, so that worker processes can share the work."""

    @seed(shard)
    @settings(
        max_examples=EXAMPLES // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(programs())
    def properties(program: Program) -> None:
        case = make_case(program)
        with torch.no_grad():
            for check in CHECKS:
                check(case)

    properties()
