"""The paper's count of FLOPs: by hand, against `measure`, and with weights that are zero."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.export import Dim

import exprune_fx as ex
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.errors import CalibrationError, PlanError
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.studies.paper.counting import Counting
from exprune_fx.studies.paper.guards import PUBLISHED, GuardName, GuardSpace, heads_of, plan_with
from exprune_fx.tuning.guard_space import mean_quantiles
from exprune_fx.tuning.template import Template, record_to_stage
from tests.studies.paper.tiny import images, tiny_network, tiny_subject

# Batch norm 3 and ReLU 1 for each of 8*36; bias and ReLU of the second convolution, 12*9 each; 16 ReLUs.
FIXED = 4 * 8 * 36 + 12 * 9 + 16
BIAS = 12 * 9
WORK = 2 * (8 * 27 * 36 + 12 * 72 * 9 + 12 * 16 + 16 * 4)


def captured(model: nn.Module) -> torch.fx.GraphModule:
    return ex.capture(model, (images(2, 0),), dynamic_shapes=({0: Dim.AUTO},))


def test_dense_model_by_hand() -> None:
    gm = captured(tiny_network())
    sites = ex.find_sites(ex.transform(gm, plan_with(ex.find_sites(gm), {}, lambda _: None), lower=False))
    plan = plan_with(sites, {}, lambda _: None)
    tally = Counting(gm, sparse=False).tally(ex.transform(gm, plan, lower=False), [(images(5, 1),)])
    assert tally.dense == tally.staged == 5 * (WORK + FIXED + BIAS)
    assert tally.overhead == 0
    assert tally.fraction_removed == 0


@pytest.mark.parametrize("guard", [ex.StatsTest(0.3), ex.Threshold(0.0), ex.Calibrated(0.05)])
def test_saves_what_measure_says(guard: ex.Guard) -> None:
    gm = captured(tiny_network())
    batches = [(images(5, 1),), (images(3, 2),)]
    plan = ex.calibrate(gm, batches, guard=guard, stages=(0.25, 0.5), objective="flops")
    assert plan.staged
    staged = ex.transform(gm, plan, lower=False)
    tally, measured = Counting(gm, sparse=False).tally(staged, batches), ex.measure(staged, batches)
    assert tally.dense - tally.staged == pytest.approx(
        measured.flops_dense - measured.flops_staged - measured.flops_overhead
    )
    assert tally.overhead == pytest.approx(measured.flops_overhead)
    assert tally.alive_fraction == pytest.approx(measured.alive_fraction)


def test_principal_heads_cost_what_measure_says() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 24), nn.ReLU(), nn.Linear(24, 2)).eval()
    x = torch.randn(400, 12) @ torch.diag(torch.linspace(2, 0.05, 12))
    gm = ex.capture(model, (x[:3],), dynamic_shapes=({0: Dim.AUTO},))
    plan = ex.calibrate(gm, [(x,)], guard=ex.Calibrated(0.2), stages=(0.25,), head="principal", objective="flops")
    assert {entry.head for entry in plan.staged} == {"principal"}
    staged = ex.transform(gm, plan, lower=False)
    tally, measured = Counting(gm, sparse=True).tally(staged, [(x,)]), ex.measure(staged, [(x,)])
    assert tally.dense - tally.staged == pytest.approx(
        measured.flops_dense - measured.flops_staged - measured.flops_overhead
    )


def test_coded_heads_cost_what_measure_says() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU()).eval()
    x = torch.randn(40, 4, 9, 9)
    gm = ex.capture(model, (x[:3],), dynamic_shapes=({0: Dim.AUTO},))
    plan = ex.calibrate(gm, [(x,)], guard=ex.Calibrated(0.2), head="coded", objective="flops")
    assert {entry.head for entry in plan.sites} == {"coded"}
    staged = ex.transform(gm, plan, lower=False)
    tally, measured = Counting(gm, sparse=False).tally(staged, [(x,)]), ex.measure(staged, [(x,)])
    assert tally.dense - tally.staged == pytest.approx(
        measured.flops_dense - measured.flops_staged - measured.flops_overhead
    )
    assert tally.overhead == measured.flops_overhead


def test_weights_that_are_zero_cost_nothing() -> None:
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.ReLU(), nn.Linear(6, 3, bias=False), nn.ReLU())
    model.append(nn.Linear(3, 2, bias=False)).eval()
    weight = torch.tensor([[1.0, 0, 2, 0, 0, 1], [0.0, 0, 0, 0, 0, 5], [-1.0, -1, 1, 1, 1, 1]])
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1.0)
        model.get_parameter("2.weight").copy_(weight)
        model.get_parameter("4.weight").fill_(1.0)
    gm = ex.capture(model, (torch.ones(2, 4),), dynamic_shapes=({0: Dim.AUTO},))
    guards = {"2": ex.StatsTest(0.49)}
    plan = Plan(
        tuple(
            SitePlan(site.name, site.weight_shape, "prefix", "", guards[site.name], (2,))
            if site.name in guards
            else SitePlan(site.name, site.weight_shape)
            for site in ex.find_sites(gm)
        )
    )
    tally = Counting(gm, sparse=True).tally(ex.transform(gm, plan, lower=False), [(torch.ones(1, 4),)])
    relus = 6 + 3
    dense = 2 * (24 + 3 + 1 + 6 + 6) + relus
    assert tally.dense == dense
    # After two terms neuron 0 has seen a mean of 2, neuron 1 two zeros, neuron 2 a mean of -4 without variance: only
    # it stops, before its last four weights. The test costs 2 for each term with a weight, and 6.
    assert tally.overhead == (2 * 1 + 6) + (0 + 6) + (2 * 2 + 6)
    assert tally.staged == dense - 2 * 4 + tally.overhead
    assert tally.alive_fraction == {"2": pytest.approx(2 / 3)}


def test_refuses_what_it_cannot_count() -> None:
    gm = captured(tiny_network())
    counting = Counting(gm, sparse=False)
    with pytest.raises(PlanError, match="not made by transform"):
        counting.tally(gm, [(images(2, 0),)])
    staged = ex.transform(gm, plan_with(ex.find_sites(gm), {}, lambda _: None), lower=False)
    with pytest.raises(CalibrationError, match="no batches"):
        counting.tally(staged, [])


@pytest.mark.parametrize("guard", PUBLISHED)
@pytest.mark.parametrize("setting", [(0.3, 0.4), (0.35, 0.0)])
def test_a_template_is_what_transform_makes(guard: GuardName, setting: tuple[float, float]) -> None:
    subject = tiny_subject()
    gm = captured(subject.model)
    prepared = Prepared.of(gm)
    heads = heads_of(prepared.sites, 2, dict.fromkeys((site.name for site in prepared.sites), 1.0))
    quantiles = mean_quantiles(prepared, Data(subject.calibration), heads)
    space = GuardSpace(guard, prepared.sites, heads, quantiles)
    template = Template(record_to_stage(prepared.gm), space.plan, space.diagonal[-1])
    staged = ex.transform(gm, space.plan(setting), lower=False)
    counting = Counting(gm, sparse=False)
    template.readable((0.1, 0.1))  # numbers of an earlier setting do not stay
    batches = [(images(6, 5),)]
    assert counting.tally(template.readable(setting), batches) == counting.tally(staged, batches)
    for graph in (template.model(setting), template.readable(setting)):
        # Kernels add up in another order; nobody here is within rounding of a threshold.
        torch.testing.assert_close(graph(*batches[0]), staged(*batches[0]), rtol=1e-4, atol=1e-4)
