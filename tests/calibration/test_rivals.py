"""Thresholds and margins of rivals: against brute force, and what calibration makes of them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from exprune_fx.calibration import calibrate
from exprune_fx.calibration.frontier import find_frontier
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import HeadChoice, Request
from exprune_fx.calibration.rivals import Choice, RivalHistogram, RivalRange, Windows, pooled_error
from exprune_fx.guards import Bound, Calibrated
from exprune_fx.measurement import measure
from exprune_fx.ops import reference
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan, SitePlan
from tests.calibration.models import Chain, batches, captured, images

NEURONS = 3


def _data(images_: int = 40, seed: int = 0, size: tuple[int, int] = (8, 6)) -> tuple[Tensor, Tensor]:
    """What a head foretells, and the activation: [images, 3, *size], of different scales."""
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor([0.01, 1.0, 30.0]).reshape(1, NEURONS, 1, 1)
    known = torch.randn(images_, NEURONS, *size, generator=generator) * scale
    noise = torch.randn(images_, NEURONS, *size, generator=generator) * scale
    return known, (known + 0.5 * noise - 0.3 * scale).relu()


def _stopped(known: Tensor, limits: Tensor, window: tuple[int, int], before: Tensor | None = None) -> Tensor:
    thresholds, margins = (row.reshape(-1, 1, 1) for row in limits)
    return reference.guard_pooled(known, None, thresholds, margins, list(window), before)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    window=st.sampled_from([(2, 2), (2, 3), (4, 1), (3, 4)]),
    threshold=st.floats(-1, 1),
    margin=st.integers(0, 32).map(lambda part: part / 32),  # what it leaves of eighths is exact
    later=st.booleans(),
)
def test_what_stopping_loses_is_a_sum_over_neurons(
    seed: int, window: tuple[int, int], threshold: float, margin: float, later: bool
) -> None:
    """Whatever is stopped by a threshold and a margin: the losses of the stopped add up to the pool's squared error."""
    known, activation = _data(6, seed)
    known = (known * 8).round() / 8  # ties
    before = torch.rand(known.shape, generator=torch.Generator().manual_seed(seed)) < 0.3 if later else None
    limits = torch.tensor([[threshold] * NEURONS, [margin] * NEURONS])
    stopped = _stopped(known, limits, window, before)
    gone = stopped if before is None else stopped | before
    windows = Windows.of(known, activation, window, before)
    dropped = (windows.known < threshold) | (windows.gap > margin)
    found = (windows.loss * (dropped & windows.going)).sum()
    whole, wrong = pooled_error(activation, ~gone, window)
    _, wrong_before = pooled_error(activation, torch.ones_like(gone) if before is None else ~before, window)
    assert float(found) == pytest.approx(wrong - wrong_before, rel=1e-9, abs=1e-12 * whole)
    inside = math.prod(window) * (8 // window[0]) * (6 // window[1]) * 6 * NEURONS
    assert windows.known.numel() == inside
    assert int((windows.going & ~dropped).sum()) == int((~gone).sum()), "and the same go on"


def _fit(known: Tensor, activation: Tensor, budget: float, window: tuple[int, int], parts: int = 1) -> Choice:
    ranges = RivalRange(NEURONS, known.device)
    pieces = [Windows.of(k, a, window) for k, a in zip(known.chunk(parts), activation.chunk(parts), strict=True)]
    for piece in pieces:
        ranges.update(piece)
    histogram = RivalHistogram(ranges.intervals(budget, budget))
    for piece in pieces:
        histogram.update(piece)
    return histogram.choose(budget * histogram.energy)


def _best_alive(known: Tensor, activation: Tensor, budget: float, window: tuple[int, int]) -> list[int]:
    """By trying 60 margins, each with the largest threshold that the budget then leaves: nearly the fewest."""
    windows = Windows.of(known, activation, window)
    found = []
    for h, gap, loss in zip(windows.known, windows.gap, windows.loss, strict=True):
        allowed, best = budget * loss.sum(), h.numel()
        for margin in torch.quantile(gap, torch.linspace(0, 1, 60, dtype=torch.float64)):
            left = gap <= margin
            spare = allowed - loss[~left].sum()
            if spare < 0:
                continue
            order = h[left].argsort()
            best = min(best, int(left.sum()) - int((loss[left][order].cumsum(0) <= spare).sum()))
        found.append(best)
    return found


@pytest.mark.parametrize("budget", [0.002, 0.02, 0.2])
@pytest.mark.parametrize("window", [(2, 2), (4, 3)])
def test_the_pair_keeps_the_budget_and_stops_nearly_as_many_as_can_be(window: tuple[int, int], budget: float) -> None:
    known, activation = _data()
    choice = _fit(known, activation, budget, window)
    stopped = _stopped(known, choice.limits, window)
    best = _best_alive(known, activation, budget, window)
    for j in range(NEURONS):
        one = slice(j, j + 1)
        whole, lost = pooled_error(activation[:, one], ~stopped[:, one], window)
        assert lost <= budget * whole * (1 + 1e-9)
        assert lost <= float(choice.lost[j]) * (1 + 1e-9)
        going = int((~stopped[:, j]).sum())
        assert going <= int(choice.alive[j]), "rounding stops nobody whom the histogram lets go on"
        # bins are given up whole or not at all, and neither they nor the 60 margins are as fine as can be
        assert abs(going - best[j]) <= 0.05 * best[j] + 0.01 * known[:, j].numel()


def test_rivalry_stops_more_than_thresholds_alone() -> None:
    known, activation = _data()
    choice = _fit(known, activation, 0.01, (2, 2))
    alone = choice.limits.clone()
    alone[1] = torch.finfo(torch.float32).max
    with_margins, without = (
        float((~_stopped(known, limits, (2, 2))).double().mean()) for limits in (choice.limits, alone)
    )
    assert with_margins < 0.85 * without


def test_streaming_equals_one_batch() -> None:
    known, activation = _data()
    whole, parts = (_fit(known, activation, 0.02, (2, 2), parts) for parts in (1, 8))
    torch.testing.assert_close(parts.limits, whole.limits, rtol=1e-6, atol=0)
    assert torch.equal(parts.alive, whole.alive)


def test_a_neuron_that_no_window_needs_stops_wherever_it_was_seen() -> None:
    known, activation = _data()
    activation[:, 1] = 0.0
    choice = _fit(known, activation, 0.02, (2, 2))
    assert bool(_stopped(known, choice.limits, (2, 2))[:, 1].all())
    assert int(choice.alive[1]) == 0
    assert not bool(_stopped(known + 1e3, choice.limits, (2, 2))[:, 1].all()), "beyond there is no evidence"


# --- calibrate --------------------------------------------------------------------------------------------------------


def _network(pool: nn.Module) -> nn.Module:
    """16 -> 24 channels, and what reads them."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), pool]
    return Chain(*layers, nn.Conv2d(24, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))


def _captured(pool: nn.Module) -> tuple[fx.GraphModule, Tensor]:
    model, data = _network(pool).eval(), images(96)
    with torch.no_grad():
        model(data[:2])
    return captured(model, data), data


def _only(plan: Plan, name: str) -> Plan:
    """All but one site dense, so that it reads what calibration read."""
    return replace(plan, sites=tuple(e if e.site == name else SitePlan(e.site, e.weight_shape) for e in plan.sites))


def _without_margins(plan: Plan) -> Plan:
    return replace(plan, sites=tuple(replace(entry, margins=None, window=()) for entry in plan.sites))


@pytest.fixture(scope="module")
def pooled() -> tuple[fx.GraphModule, Tensor]:
    return _captured(nn.MaxPool2d(2))


@pytest.mark.parametrize("head", ["principal", "prefix", "coded"])
def test_calibrate_makes_rivals_and_expects_what_is_measured(
    pooled: tuple[fx.GraphModule, Tensor], head: HeadChoice
) -> None:
    gm, data = pooled
    plan = calibrate(gm, batches(data), Calibrated(0.05), (1 / 8, 1 / 2), head=head)
    entry = plan.for_site("2")
    assert entry is not None
    assert entry.window == (2, 2)
    assert entry.margins is not None
    assert entry.margins.shape == (len(entry.stages), 24)
    assert all(other.window == () for other in plan.sites if other is not entry)
    plan = _only(plan, "2")
    measured = measure(transform(gm, plan, lower=False), batches(data))
    (site,) = measured.sites
    assert site.alive_fraction == pytest.approx(entry.alive_fraction, abs=1e-3)
    assert site.fraction_removed == pytest.approx(entry.fraction_removed, abs=1e-3)
    without = measure(transform(gm, _without_margins(plan), lower=False), batches(data))
    assert measured.fraction_removed > without.fraction_removed + 0.01
    assert Plan.from_dict(plan.to_dict()) == plan


def test_the_pools_output_loses_no_more_than_the_budget(pooled: tuple[fx.GraphModule, Tensor]) -> None:
    gm, data = pooled
    budget = 0.05
    plan = calibrate(gm, batches(data), Calibrated(budget), (1 / 2,))
    dense, staged = (transform(gm, _only(plan, name)) for name in ("none", "2"))
    pools = [_at_pool(graph, data) for graph in (dense, staged)]
    energy = pools[0].square().sum((0, 2, 3))
    error = (pools[0] - pools[1]).square().sum((0, 2, 3))
    assert bool((error <= budget * energy * (1 + 1e-4)).all())  # the fused sums are in another order
    assert float(error.sum()) > 0.2 * budget * float(energy.sum()), "and the budget is used"


def _at_pool(graph: fx.GraphModule, data: Tensor) -> Tensor:
    class Watch(fx.Interpreter):
        def run_node(self, n: fx.Node) -> object:
            value = super().run_node(n)
            if str(n.target) in ("aten.max_pool2d.default", "exprune.staged_conv2d_relu.default"):  # which pools itself
                self.seen = value
            return value

    watch = Watch(graph)
    with torch.no_grad():
        watch.run(data, enable_io_processing=False)
    seen: Tensor = watch.seen
    return seen.double()


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2), nn.MaxPool2d(2, padding=1), nn.AvgPool2d(2)], ids=str)
def test_other_pools_make_no_rivals(pool: nn.Module) -> None:
    gm, data = _captured(pool)
    plan = calibrate(gm, batches(data), Calibrated(0.05), (1 / 2,))
    assert plan.staged
    assert all(entry.window == () and entry.margins is None for entry in plan.sites)


def test_other_guards_make_no_rivals(pooled: tuple[fx.GraphModule, Tensor]) -> None:
    gm, data = pooled
    plan = calibrate(gm, batches(data), Bound(), (1 / 2,))
    assert all(entry.window == () and entry.margins is None for entry in plan.sites)


def test_the_frontier_expects_what_is_measured(pooled: tuple[fx.GraphModule, Tensor]) -> None:
    gm, data = pooled
    budgets = (0.01, 0.05)
    request = Request(Calibrated(0.05), (1 / 4, 1 / 2), "auto")
    given = Data(batches(data))
    graph, orders = Prepared.of(gm).ordered(given, request)
    options = find_frontier(graph, given, request, budgets).options["2"]
    assert len(options) > 2
    for option in options[1:]:
        assert option.entry.window == (2, 2)
        entries = tuple(option.entry if s.name == "2" else SitePlan(s.name, s.weight_shape) for s in graph.sites)
        measured = measure(transform(gm, Plan(entries, orders), lower=False), batches(data))
        (site,) = measured.sites
        assert site.alive_fraction == pytest.approx(option.entry.alive_fraction, abs=1e-3)
        removed = measured.flops_dense - measured.flops_staged - measured.flops_overhead
        assert removed / measured.examples == pytest.approx(option.flops_removed, rel=1e-2)


def test_sequential_calibration_makes_margins_again(pooled: tuple[fx.GraphModule, Tensor]) -> None:
    gm, data = pooled
    plan = calibrate(gm, batches(data), Calibrated(0.1), (1 / 2,), sequential=True)
    entry = plan.for_site("2")
    assert entry is not None
    assert entry.window == (2, 2)
    assert "thresholds on staged inputs" in entry.reason
    x = data[:8]
    torch.testing.assert_close(transform(gm, plan)(x), transform(gm, plan, lower=False)(x), rtol=1e-3, atol=1e-4)


def test_pixels_in_no_window_stop_and_do_not_matter() -> None:
    """7 x 7 pixels under windows of 2 x 2: the last row and column are never read."""
    torch.manual_seed(0)
    model = Chain(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 24, 2, padding=1), nn.ReLU(), nn.MaxPool2d(2))
    data = images(64)
    gm = captured(model.eval(), data)
    plan = calibrate(gm, batches(data), Calibrated(1e-6), (1 / 2,), head="prefix")
    entry = plan.for_site("2")
    assert entry is not None
    assert entry.alive_fraction[0] < 36 / 49
    with torch.no_grad():
        dense = F.max_pool2d(model[:4](data), 2)
        assert float((transform(gm, plan)(data) - dense).square().sum()) <= 1e-4 * float(dense.square().sum())
