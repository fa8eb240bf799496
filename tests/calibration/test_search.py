from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader, TensorDataset

from exprune_fx.calibration import calibrate
from exprune_fx.calibration.moments import VarianceObserver
from exprune_fx.calibration.observe import Data
from exprune_fx.errors import CalibrationError, GuardError, PlanError
from exprune_fx.graph.capture import capture
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.measurement import measure
from exprune_fx.passes.reorder_terms import ReorderTermsPass
from exprune_fx.pipeline import normalise, transform
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import find_sites
from tests.calibration.models import BATCH, Chain, batches, captured, cnn, images, mlp, vectors

GUARDS: list[Guard] = [Calibrated(0.02), Bound(), StatsTest(0.1), FinitePopulation(0.1), Threshold(-0.05)]


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    return captured(cnn(), images())


@pytest.fixture(scope="module")
def plan(graph: fx.GraphModule) -> Plan:
    return calibrate(graph, batches(images()))


def _staged_outputs(gm: fx.GraphModule, plan: Plan, data: Tensor) -> Tensor:
    with torch.no_grad():
        result: Tensor = transform(gm, plan, lower=False)(data)
    return result


# --- what comes out ---------------------------------------------------------------------------------------------------


def test_a_plan_has_an_entry_for_every_site_with_its_reason(graph: fx.GraphModule, plan: Plan) -> None:
    sites = find_sites(normalise(graph))
    assert [entry.site for entry in plan.sites] == [site.name for site in sites]
    assert all(entry.reason for entry in plan.sites)
    assert plan.examples == len(images())
    assert plan.staged


def test_a_plan_survives_json(plan: Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan


@pytest.mark.parametrize("guard", GUARDS, ids=str)
@pytest.mark.parametrize("head", ["prefix", "principal", "coded"])
def test_what_was_counted_is_what_the_staged_graph_does(graph: fx.GraphModule, guard: Guard, head: Any) -> None:
    """One staged site at a time: deeper ones see the same inputs as in calibration only if nothing else stops."""
    plan = calibrate(graph, batches(images()), guard, head=head)
    for entry in plan.staged:
        staged = transform(graph, _only(plan, entry), lower=False)
        (found,) = measure(staged, batches(images())).sites
        # batch by batch the same float operations, so the same decisions
        assert found.alive_fraction == pytest.approx(entry.alive_fraction, abs=1e-9)
        assert found.fraction_removed == pytest.approx(entry.fraction_removed, abs=1e-9)


def _only(plan: Plan, kept: SitePlan) -> Plan:
    entries = (entry if entry is kept else SitePlan(entry.site, entry.weight_shape) for entry in plan.sites)
    return Plan(tuple(entries), plan.orders)


@pytest.mark.parametrize("head", ["prefix", "principal", "coded"])
@pytest.mark.parametrize("budget", [0.0, 0.01, 0.1])
def test_no_neuron_loses_more_than_the_budget(graph: fx.GraphModule, head: Any, budget: float) -> None:
    """On the staged graph itself, against the dense activations: nothing that calibration computed is believed."""
    plan = calibrate(graph, batches(images()), Calibrated(budget), head=head)
    dense = ReorderTermsPass(plan.orders)(normalise(graph)).graph_module
    for entry in plan.staged:
        site = next(site for site in find_sites(dense) if site.name == entry.site)
        before, after = (
            _activation(dense, site.activation_node),
            _finish(transform(graph, _only(plan, entry), lower=False)),
        )
        lost = (before - after).double().square().sum((0, 2, 3))
        assert bool((lost <= budget * before.double().square().sum((0, 2, 3)) + 1e-9).all())


def _activation(gm: fx.GraphModule, node_name: str) -> Tensor:
    return _value(gm, lambda node: node.name == node_name)


def _finish(gm: fx.GraphModule) -> Tensor:
    return _value(gm, lambda node: node.meta.get("exprune_role") == "finish")


def _value(gm: fx.GraphModule, wanted: Any) -> Tensor:
    found: list[Tensor] = []

    class Keep(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if wanted(n):
                found.append(value)
            return value

    with torch.no_grad():
        Keep(gm).run(images(), enable_io_processing=False)
    return found[0]


def test_budget_zero_changes_nothing_on_the_calibration_data(graph: fx.GraphModule) -> None:
    plan = calibrate(graph, batches(images()), Calibrated(0.0))
    expected = normalise(graph)(images())
    # the order of summation differs
    torch.testing.assert_close(_staged_outputs(graph, plan, images()), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("head", ["prefix", "principal"])
def test_bound_changes_nothing_on_any_data(graph: fx.GraphModule, head: Any) -> None:
    plan = calibrate(graph, batches(images()), Bound(), head=head)
    fresh = images(seed=99) * 3
    torch.testing.assert_close(_staged_outputs(graph, plan, fresh), graph(fresh), atol=1e-4, rtol=1e-4)


def test_auto_takes_the_cheaper_head(graph: fx.GraphModule, plan: Plan) -> None:
    by_head = {head: calibrate(graph, batches(images()), head=head) for head in ("prefix", "principal")}
    for entry in plan.sites:
        removed = [by_head[head].for_site(entry.site) for head in by_head]
        assert entry.fraction_removed == pytest.approx(
            max(other.fraction_removed for other in removed if other is not None), abs=0.02
        )
        assert entry.head == "dense" or "%" in entry.reason


def test_the_batch_size_does_not_matter(graph: fx.GraphModule, plan: Plan) -> None:
    other = calibrate(graph, batches(images(), 7))
    assert other.orders == plan.orders
    for one, two in zip(plan.sites, other.sites, strict=True):
        assert (one.head, one.stages) == (two.head, two.stages)
        assert one.alive_fraction == pytest.approx(two.alive_fraction, abs=2e-3)


def test_the_same_data_give_the_same_plan(graph: fx.GraphModule, plan: Plan) -> None:
    assert calibrate(graph, batches(images())) == plan


def test_the_graph_and_the_model_are_left_as_they_are() -> None:
    model = cnn()
    gm = captured(model, images())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    code = gm.code
    calibrate(gm, batches(images()))
    assert gm.code == code
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# --- the order of terms -----------------------------------------------------------------------------------------------


def test_terms_fall_in_variance_and_the_function_stays() -> None:
    gm = captured(cnn().double(), images().double())
    plan = calibrate(gm, batches(images().double()), head="prefix")
    dense = normalise(gm)
    ordered = ReorderTermsPass(plan.orders)(dense).graph_module
    assert plan.orders
    torch.testing.assert_close(ordered(images().double()), gm(images().double()), atol=1e-10, rtol=1e-10)
    sites = [site for site in find_sites(ordered) if site.input_group in plan.orders]
    observer = VarianceObserver({site.name for site in sites})
    Data(batches(images().double())).walk(ordered, sites, observer, "test")
    assert sites
    for site in sites:  # in a chain, each group has one site
        variance = observer.term_variances(site)
        assert bool((variance.diff() <= 1e-12).all())


def test_without_reorder_nothing_is_ordered(graph: fx.GraphModule) -> None:
    assert calibrate(graph, batches(images()), reorder=False).orders == {}


# --- what stays dense -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("guard", [StatsTest(0.1), FinitePopulation(0.1), Threshold(0.0)], ids=str)
def test_guards_that_rest_on_exchangeability_leave_the_first_layer_dense(graph: fx.GraphModule, guard: Guard) -> None:
    plan = calibrate(graph, batches(images()), guard, stages=(1 / 4, 2 / 3))
    first = find_sites(normalise(graph))[0]
    assert not first.exchangeable
    assert plan.sites[0].head == "dense"
    assert first.reason in plan.sites[0].reason
    assert all(entry.head != "principal" for entry in plan.sites)


def test_a_site_that_never_stops_stays_dense_with_the_figure(graph: fx.GraphModule) -> None:
    plan = calibrate(graph, batches(images()), Threshold(float("-inf")))
    assert not plan.staged
    assert plan.orders == {}
    assert all("would cost" in entry.reason for entry in plan.sites[1:])


def test_grouped_convolutions_get_prefix_heads_only() -> None:
    torch.manual_seed(0)
    model = Chain(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1, groups=2), nn.ReLU())
    gm = captured(model.eval(), images())
    plan = calibrate(gm, batches(images()), head="principal")
    assert plan.sites[1].head in ("prefix", "dense")
    assert "grouped" in plan.sites[1].reason or "prefix" in plan.sites[1].reason


def test_coded_heads_are_where_they_may_be_and_prefixes_elsewhere(graph: fx.GraphModule) -> None:
    """The first convolution reads three channels. Nobody asked for coded heads without saying so."""
    plan = calibrate(graph, batches(images()), Calibrated(0.05), head="coded")
    assert [entry.head for entry in plan.sites[1:]] == ["coded", "coded"]
    assert [entry.stages for entry in plan.sites[1:]] == [(16,), (24,)]
    assert plan.orders == {}, "no prefix was asked for"
    first = plan.sites[0]
    assert first.head in ("prefix", "dense")
    assert first.head == "dense" or "no coded head: its 3 input channels are no multiple of 4" in first.reason
    assert all(entry.reason.startswith("coded head: ") for entry in plan.sites[1:])
    assert {entry.head for entry in calibrate(graph, batches(images()), Calibrated(0.05)).sites} <= {
        "dense", "prefix", "principal",
    }  # fmt: skip


@pytest.mark.parametrize("guard", [Bound(), StatsTest(0.1)], ids=str)
def test_a_guard_without_coded_heads_gets_prefixes(graph: fx.GraphModule, guard: Guard) -> None:
    plan = calibrate(graph, batches(images()), guard, head="coded")
    assert {entry.head for entry in plan.sites} <= {"prefix", "dense"}


def test_a_model_without_sites_gives_an_empty_plan() -> None:
    gm = captured(mlp(nn.GELU), vectors())
    plan = calibrate(gm, batches(vectors()))
    assert plan.sites == ()
    torch.testing.assert_close(transform(gm, plan, lower=False)(vectors()), gm(vectors()), atol=0, rtol=0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ReLU6])
def test_linear_layers_are_staged_too(activation: type[nn.Module]) -> None:
    gm = captured(mlp(activation), vectors())
    plan = calibrate(gm, batches(vectors()), Calibrated(0.05))
    assert len(plan.sites) == 2
    assert plan.staged
    with torch.no_grad():
        expected = gm(vectors())
    # each layer loses 5 % of its energy at most, 22 % of its norm
    assert float((_staged_outputs(gm, plan, vectors()) - expected).norm() / expected.norm()) < 0.4


# --- what is refused --------------------------------------------------------------------------------------------------


def _one_shot() -> Iterator[tuple[Tensor]]:
    yield from batches(images())


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (_one_shot(), "read only once"),
        (iter(batches(images())), "read only once"),
        ([], "no example"),
        (7, "not an iterable"),
        (images(), "not an iterable"),
        (["a"], "refuses batch 0"),
        ([(images(), torch.zeros(32))], "refuses batch 0"),
        ([(torch.zeros(4, 5, 8, 8),)], r"refuses batch 0.*4, 5, 8, 8"),
        ([(images(),), (images() * torch.nan,)], "batch 1 holds NaN"),
    ],
    ids=["generator", "iterator", "empty", "int", "tensor", "text", "labels", "shape", "nan"],
)
def test_unusable_data_are_refused(graph: fx.GraphModule, data: Any, message: str) -> None:
    with pytest.raises(CalibrationError, match=f"(?s){message}"):
        calibrate(graph, data)


def test_a_function_that_gives_one_iterator_twice_is_caught(graph: fx.GraphModule) -> None:
    once = iter(batches(images()))
    with pytest.raises(CalibrationError, match=r"hold no example|saw 32 examples"):
        calibrate(graph, lambda: once)


def test_data_loaders_and_functions_are_read(graph: fx.GraphModule, plan: Plan) -> None:
    loader = DataLoader(TensorDataset(images()), batch_size=16)
    assert calibrate(graph, loader) == plan
    assert calibrate(graph, lambda: (batch for batch in batches(images()))) == plan
    assert calibrate(graph, [((batch,), {}) for (batch,) in batches(images())]) == plan


def test_a_batch_of_none_says_nothing(graph: fx.GraphModule, plan: Plan) -> None:
    assert calibrate(graph, [(images()[:0],), *batches(images())]) == plan
    with pytest.raises(CalibrationError, match="hold no example"):
        calibrate(graph, [(images()[:0],)])


def test_keyword_arguments_are_read() -> None:
    model = mlp()
    gm = capture(model, (), {"x": vectors()[:4]}, dynamic_shapes=BATCH)
    plan = calibrate(gm, [((), {"x": batch}) for (batch,) in batches(vectors())])
    assert plan.examples == len(vectors())


def test_a_pre_activation_that_overflows_names_its_node() -> None:
    model = mlp()
    with torch.no_grad():
        model[0].weight.mul_(1e25)  # type: ignore[index]
    gm = captured(model, vectors())
    with pytest.raises(CalibrationError, match=r"site '0' \(node 'linear.*pre-activation.*NaN or infinity"):
        calibrate(gm, batches(vectors() * 1e20))


@pytest.mark.parametrize("stages", [(), (0.5, 0.25), (0.5, 0.5), (0.0,), (1.0,), (-0.1, 0.5)])
def test_stages_must_increase_inside_the_unit_interval(graph: fx.GraphModule, stages: tuple[float, ...]) -> None:
    with pytest.raises(GuardError, match="not increasing fractions"):
        calibrate(graph, batches(images()), stages=stages)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"objective": "joules"}, "unknown objective"),
        ({"head": "tail"}, "unknown head"),
    ],
)
def test_what_this_release_cannot_do_is_refused(graph: fx.GraphModule, arguments: dict[str, Any], error: str) -> None:
    with pytest.raises(PlanError, match=error):
        calibrate(graph, batches(images()), **arguments)


def test_a_guard_must_be_one(graph: fx.GraphModule) -> None:
    with pytest.raises(GuardError, match="float"):
        calibrate(graph, batches(images()), 0.02)  # type: ignore[arg-type]


def test_progress_goes_to_stderr_only(graph: fx.GraphModule, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate(graph, batches(images()), progress=True)
    assert capsys.readouterr().out == ""
