"""Random small models (tests/strategies.py), lowered: what the fused operators give is what the readable form gives.

In float32, whose sums err by about 1e-7 of their largest term; what a few layers of them differ by is compared with the
largest output. `EXPRUNE_RANDOM_GRAPHS` says how many, as for tests/test_random_graphs.py.
"""

from __future__ import annotations

import math
import os

import pytest
import torch
from hypothesis import HealthCheck, event, given, note, seed, settings
from hypothesis import strategies as st
from torch import Tensor, fx

from exprune_fx.graph.capture import capture
from exprune_fx.guards import Bound, Calibrated, Guard, Threshold
from exprune_fx.ops import native
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import find_sites
from exprune_fx.staging import KEPT_KEY, ROLE_KEY
from tests.passes.fused import need_operators
from tests.passes.staging import plan_for
from tests.strategies import Program, RandomModel, programs
from tests.symmetry.architectures.common import randomise

TOLERANCE = 1e-3
EXAMPLES = 2 * int(os.environ.get("EXPRUNE_RANDOM_GRAPHS", "100")) // 5
SHARDS = 4
# Rules that no rounding can turn: never, always, and only what is proved.
RULES: tuple[tuple[Guard, float], ...] = (
    (Calibrated(0.1), -math.inf),
    (Calibrated(0.1), math.inf),
    (Threshold(-math.inf), 0.0),
    (Threshold(math.inf), 0.0),
    (Bound(), 0.0),
)


@pytest.fixture(autouse=True)
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)


def skipping(gm: fx.GraphModule) -> Plan:
    """Nothing staged, but zeros skipped wherever a feed-forward is there."""
    sites = find_sites(gm)
    heads = ["none" if site.kind == "linear" and not site.obstacle else "dense" for site in sites]
    return Plan(tuple(SitePlan(s.name, s.weight_shape, head) for s, head in zip(sites, heads, strict=True)))  # type: ignore[arg-type]


def without(plan: Plan, names: set[str]) -> Plan:
    """The plan with these sites left dense."""
    return Plan(tuple(SitePlan(e.site, e.weight_shape) if e.site in names else e for e in plan.sites))


def assert_close(got: tuple[Tensor, ...], expected: tuple[Tensor, ...], what: str) -> None:
    for number, (a, b) in enumerate(zip(got, expected, strict=True)):
        assert a.shape == b.shape
        scale = max(float(b.abs().max()), 1e-3)
        error = float((a - b).abs().max()) / scale
        assert error < TOLERANCE, f"{what}: output {number} differs by {error:.1e} of its largest value"


@torch.no_grad()
def check(program: Program, guard: Guard, threshold: float, head: str) -> None:
    generator = torch.Generator().manual_seed(0)
    model = RandomModel(program)
    randomise(model, generator)
    example, x = (torch.randn(batch, *program.input_shape, generator=generator) for batch in (2, 3))
    note(str(model))
    gm = capture(model.float(), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    normalised = normalise(gm)
    sites = find_sites(normalised)
    principal = head == "principal"
    plan = plan_for(normalised, guard, threshold=threshold, principal=principal, coded=head == "coded")
    if principal:
        plan = without(plan, {site.name for site in sites if site.geometry and site.geometry.groups > 1})
    lowered = transform(gm, plan)
    fused = sum(node.meta.get(ROLE_KEY) == "fused" for node in lowered.graph.nodes)
    event("coded", sum(entry.head == "coded" for entry in plan.sites))
    event("fused", fused if fused < 3 else "3 or more")
    assert fused + sum(KEPT_KEY in node.meta for node in lowered.graph.nodes) == len(plan.staged)
    assert_close(lowered(x), transform(gm, plan, lower=False)(x), "staged")
    assert_close(transform(gm, skipping(normalised))(x), gm(x), "zeros skipped")


@pytest.mark.parametrize("shard", range(SHARDS))
def test_lowered_random_graphs_equal_readable_ones(shard: int) -> None:
    """In shards, each with a seed of its own, so that worker processes can share the work."""

    @seed(shard)
    @settings(
        max_examples=EXAMPLES // SHARDS,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(programs(), st.sampled_from(RULES), st.sampled_from(["prefix", "principal", "coded"]))
    def property_of(program: Program, rule: tuple[Guard, float], head: str) -> None:
        guard, threshold = rule
        check(program, guard, threshold, head if head in guard.heads else "prefix")

    property_of()
