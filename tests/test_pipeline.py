"""transform: what it must not change, what it must zero, and what it must refuse."""

from __future__ import annotations

import copy
import functools
import math

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.errors import PlanError
from exprune_fx.graph.verify import verify
from exprune_fx.guards import Bound, Calibrated, Guard, Threshold
from exprune_fx.measurement import measure
from exprune_fx.pass_manager import Pass
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.passes.skip_gated_rows import SkipGatedRowsPass
from exprune_fx.passes.stage_sites import StageSitesPass
from exprune_fx.pipeline import NORMALISE, normalise, record_of, transform
from exprune_fx.plan import Plan
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import SymmetryGroup, symmetries
from tests.passes.staging import EVERY_GUARD, GatedNet, ResidualNet, SquaredNet, captured, plan_for, randomised

# float64 sums of at most a few hundred products in another order
assert_equal = functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-10)
MODELS = [(ResidualNet, (3, 8, 8)), (GatedNet, (7, 6)), (SquaredNet, (7, 6))]


def _model(kind: type[nn.Module], shape: tuple[int, ...]) -> tuple[nn.Module, torch.fx.GraphModule, Tensor]:
    model = randomised(kind())
    gm, x = captured(model, *shape)
    return model, gm, x


@pytest.mark.parametrize(("kind", "shape"), MODELS)
def test_normalise_equals_the_model(kind: type[nn.Module], shape: tuple[int, ...]) -> None:
    model, gm, x = _model(kind, shape)
    assert_equal(normalise(gm)(x), model(x))


@pytest.mark.parametrize(("kind", "shape"), MODELS)
@pytest.mark.parametrize("principal", [False, True])
@pytest.mark.parametrize("guard", [Calibrated(0.0), Bound()], ids=str)
def test_never_stopping_and_bound_equal_dense(
    kind: type[nn.Module], shape: tuple[int, ...], principal: bool, guard: Guard
) -> None:
    model, gm, x = _model(kind, shape)
    staged = transform(gm, plan_for(normalise(gm), guard, threshold=-math.inf, principal=principal), lower=False)
    assert measure(staged, [(x,)]).sites, "nothing was staged"
    assert_equal(staged(x), model(x))


@pytest.mark.parametrize(("kind", "shape"), MODELS)
@pytest.mark.parametrize("principal", [False, True])
def test_always_stopping_gives_exact_zeros(kind: type[nn.Module], shape: tuple[int, ...], principal: bool) -> None:
    _, gm, x = _model(kind, shape)
    staged = transform(
        gm, plan_for(normalise(gm), Calibrated(0.5), threshold=math.inf, principal=principal), lower=False
    )
    values: dict[str, Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            if n.meta.get("exprune_role") == "finish":
                values[n.meta["exprune_site"]] = value
            return value

    Keep(staged).run(x)
    assert set(values) == {site.name for site in find_sites(normalise(gm))}
    assert all(torch.equal(value, torch.zeros_like(value)) for value in values.values())
    assert all(fraction == 0.0 for fraction in measure(staged, [(x,)]).alive_fraction.values())


@pytest.mark.parametrize("guard", EVERY_GUARD, ids=str)
def test_survivors_are_exact_and_the_stopped_are_zero(guard: Guard) -> None:
    """Against a re-computation from the dense pre-activations, by hand, site by site."""
    _, gm, x = _model(SquaredNet, (7, 6))
    dense = normalise(gm)
    staged = transform(gm, plan_for(dense, guard), lower=False)
    seen: dict[str, Tensor] = {}

    class Keep(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            value = super().run_node(n)
            role = n.meta.get("exprune_role")
            if role is not None:
                seen[role] = value
            elif n.op == "call_function":
                seen[n.name] = value
            return value

    Keep(staged).run(x)
    hidden = seen["linear"]
    weight, bias = dense.get_parameter("fc2.weight"), dense.get_parameter("fc2.bias")
    z = hidden @ weight.T + bias
    expected = torch.where(seen["stopped"], 0.0, z.relu() ** 2)
    assert_equal(seen["finish"], expected)
    assert 0 < int(seen["stopped"].sum()) < seen["stopped"].numel()


@pytest.mark.parametrize("guard", EVERY_GUARD, ids=str)
def test_stopping_depends_on_the_input_alone(guard: Guard) -> None:
    """The same for one input alone, in a batch of seven, and with one or two threads."""
    _, gm, _ = _model(ResidualNet, (3, 8, 8))
    staged = transform(gm, plan_for(normalise(gm), guard), lower=False)
    batch = torch.randn(7, 3, 8, 8, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    threads = torch.get_num_threads()

    def stops(x: Tensor) -> list[Tensor]:
        found = []

        class Keep(torch.fx.Interpreter):
            def run_node(self, n: torch.fx.Node) -> object:
                value = super().run_node(n)
                if n.meta.get("exprune_role") == "stopped":
                    found.append(value)
                return value

        Keep(staged).run(x)
        return found

    try:
        torch.set_num_threads(1)
        together = stops(batch)
        alone = [stops(batch[i : i + 1]) for i in range(7)]
        torch.set_num_threads(2)
        threaded = stops(batch)
    finally:
        torch.set_num_threads(threads)
    assert together
    for site, stopped in enumerate(together):
        assert torch.equal(stopped, threaded[site])
        assert torch.equal(stopped, torch.cat([one[site] for one in alone]))


def test_inputs_are_untouched_and_the_second_run_changes_nothing() -> None:
    model, gm, x = _model(ResidualNet, (3, 8, 8))
    before, text = copy.deepcopy(model.state_dict()), gm.print_readable(print_output=False)
    order = {group.name: tuple(reversed(range(group.size))) for group in _orderable(gm)}
    plan = plan_for(normalise(gm), Calibrated(0.1))
    plan = Plan(plan.sites, order)
    staged = transform(gm, plan, lower=False)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert gm.print_readable(print_output=False) == text
    record = record_of(staged)
    assert record is not None
    for step in _all_passes(plan):
        again = step(staged)
        assert not again.changed
        assert again.graph_module is staged
    assert_equal(record.dense(x), model(x))
    verify(staged)


def _orderable(gm: torch.fx.GraphModule) -> list[SymmetryGroup]:
    return [group for group in symmetries(normalise(gm)) if group.free and group.repeats == 1]


def _all_passes(plan: Plan) -> list[Pass]:
    return [*NORMALISE, ReorderTermsPass(plan.orders), StageSitesPass(plan), SkipGatedRowsPass()]


def test_nothing_planned_is_an_equal_graph() -> None:
    model, gm, x = _model(GatedNet, (7, 6))
    dense = normalise(gm)
    plan = Plan(tuple(type(e)(e.site, e.weight_shape, reason="no") for e in plan_for(dense, Calibrated(0.1)).sites))
    staged = transform(gm, plan, lower=False)
    assert_equal(staged(x), model(x))
    report = measure(staged, [(x,)])
    assert report.fraction_removed == 0.0
    assert report.flops_dense == report.flops_staged > 0


def test_a_plan_for_another_model_is_refused_with_the_differences() -> None:
    _, gm, _ = _model(GatedNet, (7, 6))
    _, other, _ = _model(SquaredNet, (7, 6))
    with pytest.raises(PlanError, match=r"another model(.|\n)*'fc2' is in the plan(.|\n)*'gate' is in the model"):
        transform(gm, plan_for(normalise(other), Calibrated(0.1)), lower=False)
    with pytest.raises(PlanError, match="the plan is a dict"):
        transform(gm, {"sites": []}, lower=False)  # type: ignore[arg-type]


def test_threshold_at_infinity_stops_all_and_at_minus_infinity_none() -> None:
    _, gm, x = _model(SquaredNet, (7, 6))
    dense = normalise(gm)
    for threshold, alive in ((math.inf, 0.0), (-math.inf, 1.0)):
        found = measure(transform(gm, plan_for(dense, Threshold(threshold)), lower=False), [(x,)])
        assert found.alive_fraction == {"fc2": alive}
