"""`optimize` on a small network: what it promises holds, and interrupted work ends the same."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx

import exprune_fx as ex
from exprune_fx.calibration import calibrate
from exprune_fx.calibration.decide import dense_entry
from exprune_fx.calibration.frontier import find_frontier
from exprune_fx.calibration.observe import Data
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.request import Request
from exprune_fx.calibration.whole import Settled
from exprune_fx.errors import DataError, PlanError
from exprune_fx.guards import Calibrated
from exprune_fx.measurement import measure
from exprune_fx.tuning.budgets import BUDGETS, STAGES
from exprune_fx.tuning.optimize import Optimized
from tests.calibration.models import BATCH, batches, captured, cnn, images, mlp, vectors

CALIBRATION, SELECTION, TEST = vectors(64), vectors(160, seed=5), vectors(80, seed=7)


class Closeness:
    """One number for each example: 1 less the relative squared error of its outputs. May be interrupted."""

    def __init__(self, data: Tensor, calls: int = 1000) -> None:
        self.data, self.left, self.calls = data, calls, 0
        with torch.no_grad():
            self.expected: Tensor = mlp()(data)

    def __call__(self, model: fx.GraphModule) -> Tensor:
        if self.calls == self.left:
            raise KeyboardInterrupt
        self.calls += 1
        with torch.no_grad():
            error: Tensor = (model(self.data) - self.expected).square().sum(1) / self.expected.square().sum(1)
        return 1 - error


def run(
    evaluate: Closeness,
    max_drop: float = 0.02,
    study: Path | None = None,
    test: Closeness | None = None,
    confidence: float = 0.5,
) -> Optimized:
    given = batches(CALIBRATION)
    return ex.optimize(
        mlp(),
        (CALIBRATION[:4],),
        None,
        BATCH,
        batches=given,
        evaluate=evaluate,
        max_drop=max_drop,
        confidence=confidence,
        study=study,
        test=test,
    )


@pytest.fixture(scope="module")
def found() -> tuple[Optimized, Closeness]:
    """A search that nothing interrupts, and what it asked."""
    evaluate = Closeness(SELECTION)
    return run(evaluate, test=Closeness(TEST)), evaluate


def test_the_drop_is_held_and_what_is_reported_is_so(found: tuple[Optimized, Closeness]) -> None:
    best, evaluate = found
    report = best.report
    assert report.fraction_removed > 0.1
    assert report.fraction_removed == measure(best.graph_module, batches(CALIBRATION)).fraction_removed
    assert 0 < report.selection.drop <= 0.02
    assert report.selection.staged == pytest.approx(float(Closeness(SELECTION)(best.graph_module).mean()), abs=1e-6)
    assert report.test is not None
    assert report.test.staged == pytest.approx(float(Closeness(TEST)(best.graph_module).mean()), abs=1e-6)
    assert report.test.interval is not None
    assert report.test.interval[0] <= report.test.drop <= report.test.interval[1]
    assert report.evaluations == evaluate.calls
    holding = [trial for trial in report.trials if trial.drop <= 0.02]
    # expected with dense inputs at every site, counted with staged ones
    assert max(trial.fraction_removed for trial in holding) == pytest.approx(report.fraction_removed, abs=0.1)
    assert {trial.allocation for trial in report.trials} == {"measured"}
    assert "no fine-tuning" in str(report)
    assert report.to_dict()["front"]


def test_a_larger_drop_saves_more(found: tuple[Optimized, Closeness]) -> None:
    best = run(Closeness(SELECTION), 0.3)
    assert 0.02 < best.report.selection.drop <= 0.3
    assert best.report.fraction_removed > found[0].report.fraction_removed


def test_where_nothing_holds_the_budget_the_dense_graph_is_returned() -> None:
    class Picky(Closeness):
        def __call__(self, _: fx.GraphModule) -> Tensor:
            self.calls += 1
            return torch.tensor([1.0 if self.calls == 1 else 0.0])

    best = run(Picky(SELECTION))
    assert not best.plan.staged
    assert best.report.fraction_removed == 0.0
    with torch.no_grad():
        assert torch.equal(best.graph_module(TEST), mlp()(TEST))


def test_interrupted_work_goes_on_and_ends_with_the_same_plan(
    tmp_path: Path, found: tuple[Optimized, Closeness]
) -> None:
    path = tmp_path / "study.jsonl"
    expected, whole = found
    with pytest.raises(KeyboardInterrupt):
        run(Closeness(SELECTION, calls=4), study=path)
    rest = Closeness(SELECTION)
    again = run(rest, study=path)
    assert again.plan == expected.plan
    assert again.report.trials == expected.report.trials
    assert rest.calls == whole.calls - 4


@pytest.mark.parametrize("max_drop", [-0.1, float("nan"), float("inf")])
def test_a_drop_that_is_none_is_refused(max_drop: float) -> None:
    with pytest.raises(PlanError, match="max_drop"):
        run(Closeness(SELECTION), max_drop)


@pytest.mark.parametrize("confidence", [0.4, 1.0, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence: float) -> None:
    with pytest.raises(PlanError, match="confidence"):
        run(Closeness(SELECTION), confidence=confidence)


def test_a_confident_search_is_gentler_and_says_how_sure_it_is() -> None:
    expected, sure = run(Closeness(SELECTION)), run(Closeness(SELECTION), confidence=0.95)
    assert 0 < sure.report.fraction_removed <= expected.report.fraction_removed
    assert sure.report.expected_drop < sure.report.sure_drop <= sure.report.max_drop
    assert f"at most {sure.report.sure_drop:+.4g} with 95% confidence" in str(sure.report)
    assert "confidence" not in str(expected.report)


def test_an_evaluation_that_gives_no_numbers_is_refused() -> None:
    def fine(_: object) -> Any:
        return "fine"

    with pytest.raises(DataError, match="evaluate returned"):
        ex.optimize(mlp(), (CALIBRATION[:4],), None, BATCH, batches=batches(CALIBRATION), evaluate=fine, max_drop=0.1)


def pieces(_gm: object, _batches: object, own: object) -> list[object]:
    return ["pieces"] if own is None else [own]


def test_by_the_clock_only_what_the_budget_allows_is_timed(
    monkeypatch: pytest.MonkeyPatch, found: tuple[Optimized, Closeness]
) -> None:
    """The clock is replaced by one that likes the last way to stage each site, and one that likes none."""
    module = sys.modules["exprune_fx.tuning.optimize"]
    monkeypatch.setattr(module, "check_request", lambda _: None)  # which asks for kernels
    monkeypatch.setattr(module, "pieces_to_time", pieces)
    allowed = {entry.site: entry for entry in found[0].plan.staged}

    timed = []

    def decide(_gm: object, _groups: object, sites: Any, entries: Any, refusals: Any, given: object) -> Any:
        timed.append(given)
        assert set(entries) <= set(allowed)
        assert all(not refusals[name] for name in entries)
        return {"likes": tuple(entries[s.name][-1] if s.name in entries else dense_entry(s, "slow") for s in sites)}

    monkeypatch.setattr(module, "decide_sites", decide)
    monkeypatch.setattr(module, "settle", lambda _gm, _groups, _sites, plans, _given: Settled(plans["likes"]))

    def by_the_clock(latency_batch: object = None) -> Optimized:
        given = batches(CALIBRATION)
        return ex.optimize(
            mlp(), (CALIBRATION[:4],), None, BATCH, batches=given, evaluate=Closeness(SELECTION), max_drop=0.02,
            objective="latency", latency_batch=latency_batch,
        )  # fmt: skip

    best = by_the_clock()
    assert best.plan.objective == best.report.objective == "latency"
    assert best.plan.staged
    assert best.report.trials[-1].allocation == "clock"
    assert best.report.selection.drop <= 0.02
    monkeypatch.setattr(
        module,
        "settle",
        lambda _gm, _groups, sites, _plans, _given: Settled(tuple(dense_entry(s, "slow") for s in sites)),
    )
    mine = (CALIBRATION[:1],)
    slow = by_the_clock(mine)
    assert timed == [["pieces"], [mine]]
    assert not slow.plan.staged
    assert slow.report.fraction_removed == slow.report.expected_drop == 0.0


def test_what_slow_sites_would_have_cost_is_spent_on_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is replaced by one that likes the last of the sites that it is shown first, and no other."""
    module = sys.modules["exprune_fx.tuning.optimize"]
    monkeypatch.setattr(module, "check_request", lambda _: None)
    monkeypatch.setattr(module, "pieces_to_time", pieces)
    timed: list[dict[str, Any]] = []

    def decide(_gm: object, _groups: object, sites: Any, entries: Any, _refusals: Any, _given: object) -> Any:
        timed.append({name: some[-1] for name, some in entries.items()})
        fast = list(timed[0])[-1]
        return {"likes": tuple(entries[s.name][-1] if s.name == fast else dense_entry(s, "slow") for s in sites)}

    monkeypatch.setattr(module, "decide_sites", decide)
    monkeypatch.setattr(module, "settle", lambda _gm, _groups, _sites, plans, _given: Settled(plans["likes"]))
    best = ex.optimize(
        mlp(), (CALIBRATION[:4],), None, BATCH, batches=batches(CALIBRATION), evaluate=Closeness(SELECTION),
        max_drop=0.1, objective="latency",
    )  # fmt: skip
    first, second = timed
    assert len(first) > 1
    (fast,) = second
    assert [entry.site for entry in best.plan.staged] == [fast]
    assert best.report.selection.drop <= 0.1
    assert second[fast].guard.budget > first[fast].guard.budget


def test_by_the_clock_coded_heads_are_timed_whatever_their_flops(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["exprune_fx.tuning.optimize"]
    monkeypatch.setattr(module, "check_request", lambda _: None)  # which asks for kernels
    monkeypatch.setattr(module, "pieces_to_time", pieces)
    timed: list[dict[str, set[str]]] = []

    def decide(_gm: object, _groups: object, sites: Any, entries: Any, _refusals: Any, _given: object) -> Any:
        timed.append({name: {entry.head for entry in some} for name, some in entries.items()})
        coded = {name: next((e for e in some if e.head == "coded"), None) for name, some in entries.items()}
        return {"likes": tuple(coded.get(site.name) or dense_entry(site, "slow") for site in sites)}

    monkeypatch.setattr(module, "decide_sites", decide)
    monkeypatch.setattr(module, "settle", lambda _gm, _groups, _sites, plans, _given: Settled(plans["likes"]))
    data, other = images(48), images(32, seed=5)
    with torch.no_grad():
        expected = cnn()(other)

    def evaluate(model: Any) -> Tensor:
        with torch.no_grad():
            closeness: Tensor = 1 - (model(other) - expected).square().sum(1) / expected.square().sum(1)
        return closeness

    best = ex.optimize(
        cnn(), (data[:4],), None, BATCH, batches=batches(data), evaluate=evaluate, max_drop=0.05, objective="latency"
    )
    assert any(len(heads) > 1 and "coded" in heads for heads in timed[0].values())
    assert {entry.head for entry in best.plan.staged} == {"coded"}
    assert best.report.trials[-1].allocation == "clock"
    assert best.report.trials[-1].fraction_removed > 0
    assert best.report.selection.drop <= 0.05


# --- the frontier -----------------------------------------------------------------------------------------------------


def test_the_frontier_says_what_calibrate_finds_at_each_budget() -> None:
    """One pass for all budgets against one calibration for one: thresholds differ by the width of a bin at most."""
    gm = captured(cnn(), images(64))
    data = Data(batches(images(64)))
    request = Request(Calibrated(BUDGETS[-1]), STAGES, "principal")
    frontier = find_frontier(Prepared.of(gm), data, request, BUDGETS)
    assert frontier.examples == 64
    budget = BUDGETS[10]
    plan = calibrate(gm, batches(images(64)), Calibrated(budget), head="principal", reorder=False)
    for entry in plan.staged:
        same = [
            o for o in frontier.options[entry.site] if o.entry.stages == entry.stages and o.entry.guard == entry.guard
        ]
        for option in same:
            assert option.energy_lost <= budget
            # a bin holds a two-hundredth of what a neuron spreads over, and calibrate's own are narrower
            assert option.entry.alive_fraction[0] == pytest.approx(entry.alive_fraction[0], abs=0.03)
            assert option.entry.fraction_removed == pytest.approx(entry.fraction_removed, abs=0.03)
    assert any(len(found) > 3 for found in frontier.options.values())
    assert not any(frontier.coded.values())
    for found in frontier.options.values():
        removed, lost = [o.flops_removed for o in found], [o.energy_lost for o in found]
        assert removed == sorted(set(removed))
        assert lost == sorted(lost)


@pytest.mark.parametrize(("head", "objective"), [("coded", "flops"), ("auto", "latency"), ("auto", "flops")])
def test_the_frontier_keeps_every_coded_head_for_the_clock(head: Any, objective: Any) -> None:
    gm = captured(cnn(), images(32))
    request = Request(Calibrated(BUDGETS[-1]), STAGES, head, objective)
    frontier = find_frontier(Prepared.of(gm), Data(batches(images(32))), request, BUDGETS)
    asked = (head, objective) != ("auto", "flops")
    assert {name: len(found) for name, found in frontier.coded.items()} == {
        "0": 0, "3": asked * len(BUDGETS), "6": asked * len(BUDGETS),
    }  # fmt: skip
    for found in frontier.coded.values():
        assert {option.entry.head for option in found} <= {"coded"}
        assert [option.energy_lost for option in found] == sorted(option.energy_lost for option in found)
    heads = {option.entry.head for option in frontier.options["3"]}
    assert ("coded" in heads) <= asked
    assert ("prefix" in heads or "principal" in heads) == (head == "auto")
