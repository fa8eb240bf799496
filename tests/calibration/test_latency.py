"""Deciding by the clock: the logic on invented times, and one smoke run on the real clock that checks no time."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import pytest
import torch
from torch import Tensor, fx, nn

from exprune_fx.calibration import calibrate, latency, search
from exprune_fx.calibration.decide import CLEAR_GAIN, EVERY_GAIN, pays
from exprune_fx.calibration.latency import decide_sites, pieces_to_time
from exprune_fx.calibration.whole import Settled
from exprune_fx.errors import CalibrationError, PlanError
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.ops import native
from exprune_fx.pipeline import lowered_form, normalise, record_of, transform
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import symmetries
from exprune_fx.timing import Step
from tests.calibration.models import Chain, batches, captured, cnn, images, mlp, vectors
from tests.passes.fused import need_operators
from tests.passes.staging import plan_for

pytestmark = pytest.mark.usefixtures("_operators")
Walks = Sequence[Sequence[Step]]
Seconds = Callable[[str, str], float]


@pytest.fixture(autouse=True)
def _operators(monkeypatch: pytest.MonkeyPatch) -> None:
    need_operators()
    monkeypatch.setattr(native, "available", lambda: True)
    monkeypatch.setattr(native, "isa", lambda: "some")


def fake(seconds: Seconds, seen: list[Walks] | None = None) -> Callable[[Walks], dict[Hashable, float]]:
    """A measuring function: every step runs once, and takes what is invented for it."""

    def measure(walks: Walks) -> dict[Hashable, float]:
        if seen is not None:
            seen.append(walks)
        for walk in walks:
            for step in walk:
                step.run(*step.prepare(0))
        keys = {step.key for walk in walks for step in walk}
        return {key: seconds(*key) for key in keys}  # type: ignore[misc] # a key is a pair of names

    return measure


def decided(gm: fx.GraphModule, x: Tensor, seconds: Seconds, seen: list[Walks] | None = None) -> dict[str, SitePlan]:
    """Every site with two prefix heads to choose from, on invented times."""
    dense = normalise(gm)
    groups = symmetries(dense)
    sites = find_sites(dense, groups)
    tried = {
        site.name: [
            entry
            for count in (1, 2)
            for entry in [plan_for(dense, Calibrated(0.1), count=count).for_site(site.name)]
            if entry
        ]
        for site in sites
    }
    refusals = {site.name: site.obstacle for site in sites}
    plans = decide_sites(dense, groups, sites, tried, refusals, [(x[:3],), (x[3:6],)], fake(seconds, seen))
    return {entry.site: entry for entry in plans[CLEAR_GAIN.name]}


def test_the_fastest_candidate_wins_and_what_was_measured_is_kept() -> None:
    times = {"conv2d": 9e-3, "conv2d, channels-last": 5e-3, "oneDNN convolution": 4e-3}
    found = decided(captured(cnn(), images()), images(), lambda site, way: times.get(way, 3e-3 if "," in way else 2e-3))
    entry = found["3"]
    assert (entry.head, entry.stages) == ("prefix", (8,))
    assert entry.reason.startswith(f"prefix stages at 8: 2 ms, {entry.timing and entry.timing.dense_form}: ")
    assert entry.timing is not None
    assert entry.timing.staged_s == 2e-3
    assert entry.timing.staged_form == "prefix stages at 8"
    assert entry.timing.tried[entry.timing.dense_form] == entry.timing.dense_s
    assert set(entry.timing.tried) >= {
        "conv2d",
        "conv2d, channels-last",
        "prefix stages at 8",
        "prefix stages at 5, 10",
    }
    assert (entry.timing.examples, entry.timing.threads) == (3, torch.get_num_threads())


@pytest.mark.parametrize(("staged_s", "head"), [(0.8e-3, "dense"), (1.2e-3, "dense"), (0.7e-3, "prefix")])
def test_what_does_not_beat_the_best_dense_form_by_the_margin_stays_dense(staged_s: float, head: str) -> None:
    slow = {"conv2d": 5e-3, "conv2d, channels-last": 1e-3, "oneDNN convolution": 2e-3}
    found = decided(captured(cnn(), images()), images(), lambda site, way: slow.get(way, staged_s))
    entry = found["3"]
    assert entry.head == head
    assert entry.timing is not None
    assert entry.timing.dense_form == "conv2d, channels-last"
    if head == "dense":
        opening = "dense: conv2d, channels-last: 1 ms, the fastest way to stage it, prefix stages at "
        assert entry.reason.startswith(opening)
        assert " ms (3 examples, " in entry.reason


def test_a_gain_of_less_than_the_calls_that_a_compiler_saves_is_none() -> None:
    assert not pays(10e-6, 29e-6, CLEAR_GAIN)
    assert pays(10e-6, 31e-6, CLEAR_GAIN)
    assert not pays(0.8, 1.0, CLEAR_GAIN)
    assert pays(0.8, 1.0, EVERY_GAIN)


def test_a_feed_forward_may_keep_all_neurons_and_skip_the_zeros() -> None:
    gm, x = captured(mlp(), vectors()), vectors()
    found = decided(gm, x, lambda site, way: 1e-4 if way == "no head, zeros skipped" else 1e-3)
    assert {name: entry.head for name, entry in found.items()} == {"0": "dense", "2": "none"}
    assert found["0"].timing is not None
    assert "no head, zeros skipped" not in found["0"].timing.tried, "its second layer is a site of its own"
    plan = Plan(tuple(found.values()), objective="latency")
    assert not plan.staged
    lowered = transform(gm, plan)
    (fused,) = [node for node in lowered.graph.nodes if "staged_ffn" in str(node.target)]
    assert fused.args[7] == "none"
    with torch.no_grad():
        torch.testing.assert_close(lowered(x), gm(x), rtol=1e-5, atol=1e-5)  # float32 sums in another order


def test_each_walk_computes_every_site_once_in_graph_order_and_all_ways_occur() -> None:
    seen: list[Walks] = []
    found = decided(captured(cnn(), images()), images(), lambda site, way: 1.0, seen)
    (walks,) = seen
    for walk in walks:
        assert [step.key[0] for step in walk] == ["0", "3", "6"]  # type: ignore[index] # a key is a pair
    for name, entry in found.items():
        assert entry.timing is not None
        ways = {step.key[1] for walk in walks for step in walk if step.key[0] == name}  # type: ignore[index]
        assert ways == set(entry.timing.tried)


def test_inputs_take_turns_and_every_way_gets_its_own_layout() -> None:
    seen: list[Walks] = []
    decided(captured(cnn(), images()), images(), lambda site, way: 1.0, seen)
    first = {step.key[1]: step for walk in seen[0] for step in walk if step.key[0] == "3"}  # type: ignore[index]
    x, residual = first["conv2d"].prepare(0)
    other, _ = first["conv2d"].prepare(1)
    again, _ = first["conv2d, channels-last"].prepare(2)
    assert residual is None
    assert x.is_contiguous()
    assert again.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(x, other)
    assert torch.equal(x, again)


@pytest.mark.parametrize(
    ("model", "data"), [(cnn(), images()), (mlp(), vectors()), (mlp(nn.ReLU6), vectors())], ids=["cnn", "mlp", "relu6"]
)
def test_all_ways_compute_the_same(model: nn.Module, data: Tensor) -> None:
    """With thresholds that stop nobody, the fused operators and the dense forms agree."""
    gm = normalise(captured(model, data))
    groups = symmetries(gm)
    sites = find_sites(gm, groups)
    plans = [plan_for(gm, Calibrated(0.1), count=1, threshold=-torch.inf, coded=coded) for coded in (False, True)]
    tried = {
        site.name: list({entry.head: entry for plan in plans if (entry := plan.for_site(site.name))}.values())
        for site in sites
    }
    seen: list[Walks] = []
    decide_sites(gm, groups, sites, tried, {}, [(data[:2],)], fake(lambda site, way: 1.0, seen))
    results: dict[object, list[Tensor]] = {}
    with torch.no_grad():
        for step in {step.key: step for walk in seen[0] for step in walk}.values():
            value = step.run(*step.prepare(0))
            assert isinstance(value, Tensor)
            results.setdefault(step.key[0], []).append(value)  # type: ignore[index] # a key is a pair
    for values in results.values():
        assert len(values) > 2
        for value in values:
            torch.testing.assert_close(value, values[0], rtol=1e-4, atol=1e-4)  # float32 sums in another order


def test_what_no_kernel_holds_stays_dense_and_says_why() -> None:
    found = decided(captured(mlp().double(), vectors().double()), vectors().double(), lambda site, way: 1.0)
    assert {entry.reason for entry in found.values()} == {"dense: its weight is float64, which no kernel computes in"}
    assert all(entry.timing is None for entry in found.values())


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_pieces_are_as_large_as_the_captured_example() -> None:
    gm = captured(mlp(), vectors())  # captured with four examples
    pieces = pieces_to_time(gm, [(vectors()[:30],), (vectors()[30:],)])
    assert [piece[0].shape[0] for piece in pieces] == [4, 4, 4, 4]  # type: ignore[index]
    assert torch.equal(pieces[1][0], vectors()[4:8])  # type: ignore[index]
    assert len(pieces_to_time(gm, [(vectors()[:9],)])) == 2
    assert pieces_to_time(gm, [(vectors()[:3],)])[0][0].shape[0] == 3  # type: ignore[index]


def test_empty_batches_are_passed_over_and_a_fixed_size_is_taken_as_it_is() -> None:
    gm = capture(mlp(), (vectors()[:6],))
    (piece,) = pieces_to_time(gm, [(vectors()[:0],), (vectors()[:6],)])
    assert torch.equal(piece[0], vectors()[:6])  # type: ignore[index]


class _Graph(Chain):
    def forward(self, x: Tensor, index: Tensor | None = None) -> Tensor:
        assert index is not None
        return super().forward(x[index])


def test_inputs_of_different_lengths_are_not_cut() -> None:
    model = _Graph(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    x, index = vectors()[:6], torch.tensor([0, 5, 1, 2])
    dynamic = {"x": {0: torch.export.Dim.DYNAMIC}, "index": {0: torch.export.Dim.DYNAMIC}}
    gm = capture(model, (x, index), dynamic_shapes=dynamic)
    batch = (vectors()[:50], torch.arange(40))
    assert pieces_to_time(gm, [batch]) == [batch]


# --- calibrate --------------------------------------------------------------------------------------------------------


def _by_their_own_times(*given: object) -> Settled:
    """Without compiling whole graphs."""
    plans = given[3]
    assert isinstance(plans, dict)
    return Settled(plans[CLEAR_GAIN.name])


def test_calibrate_times_the_shorter_lists_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "settle", _by_their_own_times)
    monkeypatch.setattr(
        latency, "measure_walks", fake(lambda site, way: 1e-4 if way == "prefix stages at 4, 8" else 1e-3)
    )
    gm = captured(mlp(), vectors())
    plan = calibrate(gm, batches(vectors()), Calibrated(0.02), objective="latency")
    assert plan.objective == "latency"
    assert "some kernels, torch 2" in plan.machine
    entry = plan.for_site("2")
    assert entry is not None
    assert entry.timing is not None
    assert (entry.stages, entry.timing.examples) == ((4, 8), 4)
    assert {name for name in entry.timing.tried if "prefix" in name or "rank" in name} == {
        *("prefix stages at 4", "prefix stages at 8", "prefix stages at 4, 8", "prefix stages at 4, 8, 16"),
        *("principal head of rank 2", "principal head of rank 4", "principal head of rank 8"),
    }
    assert Plan.from_dict(plan.to_dict()) == plan


def test_coded_heads_are_timed_where_they_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "settle", _by_their_own_times)
    monkeypatch.setattr(latency, "measure_walks", fake(lambda site, way: 1e-4 if way == "coded head" else 1e-3))
    gm = captured(cnn(), images())
    plan = calibrate(gm, batches(images()), Calibrated(0.02), objective="latency")
    tried = {entry.site: entry.timing.tried for entry in plan.sites if entry.timing}
    assert ["coded head" in tried[name] for name in ("0", "3", "6")] == [False, True, True]
    assert [entry.head for entry in plan.sites] == ["dense", "coded", "coded"]
    assert all(any("rank" in way for way in found) for found in tried.values()), "the others are tried beside it"
    assert Plan.from_dict(plan.to_dict()) == plan


def test_a_batch_to_time_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "settle", _by_their_own_times)
    monkeypatch.setattr(latency, "measure_walks", fake(lambda site, way: 1.0))
    gm = captured(mlp(), vectors())
    plan = calibrate(gm, batches(vectors()), objective="latency", latency_batch=(vectors()[:7],))
    assert {entry.timing and entry.timing.examples for entry in plan.sites} == {7}


@pytest.mark.parametrize("given", [1, vectors()[:7], (vectors()[:7, 1:],)], ids=["a number", "no tuple", "narrow"])
def test_what_cannot_be_timed_is_refused_before_anything_is_calibrated(given: object) -> None:
    def unread() -> list[object]:
        raise AssertionError("calibrated first")

    with pytest.raises(CalibrationError, match="refuses latency_batch"):
        calibrate(captured(mlp(), vectors()), unread, objective="latency", latency_batch=given)


def test_a_smoke_run_on_the_real_clock() -> None:
    gm = captured(cnn(), images())
    plan = calibrate(gm, batches(images()), objective="latency", stages=(1 / 4,))
    assert all(entry.timing is None or min(entry.timing.tried.values()) > 0 for entry in plan.sites)
    record = record_of(transform(gm, plan, lower=False))
    assert record is not None
    with torch.no_grad():
        readable, lowered = transform(gm, plan, lower=False)(images()), lowered_form(record)(images())
    torch.testing.assert_close(
        lowered, readable, rtol=1e-3, atol=1e-3
    )  # a neuron may lie within rounding of its threshold


def test_without_kernels_the_objective_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(PlanError, match=r"timing native kernels, and there are none(.|\n)*EXPRUNE_KERNELS=native"):
        calibrate(captured(mlp(), vectors()), batches(vectors()), objective="latency")
