"""calibrate_heads: what it decides, what that rests on, and the whole way of a head through the public interface."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.export import Dim

import exprune_fx as ex
from exprune_fx.backend.options import read_options
from exprune_fx.calibration import head_latency
from exprune_fx.compiling import Runnable
from exprune_fx.ops import native
from exprune_fx.passes.stage_heads import StageHeadsPass

needs_kernels = pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
CLASSES, HIDDEN = 3000, 32


class Words(nn.Module):
    """Predicts the next of 3,000 words; weights and hidden states fall off, in one basis."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)  # biases
        generator = torch.Generator().manual_seed(0)
        turn, _ = torch.linalg.qr(torch.randn(HIDDEN, HIDDEN, generator=generator))
        fall = torch.arange(1, HIDDEN + 1) ** -1.0
        self.embed = nn.Embedding(200, HIDDEN)
        self.lm_head = nn.Linear(HIDDEN, CLASSES)
        self.embed.weight.data = (torch.randn(200, HIDDEN, generator=generator) * fall) @ turn
        self.lm_head.weight.data = (torch.randn(CLASSES, HIDDEN, generator=generator) * fall) @ turn
        self.mix = nn.Linear(HIDDEN, HIDDEN)
        self.mix.weight.data = torch.eye(HIDDEN)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.lm_head(self.mix(self.embed(ids)))[:, -1].softmax(-1).argmax(-1)
        return out


def ids(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(200, (rows, 5), generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def graph() -> fx.GraphModule:
    return ex.capture(Words().eval(), (ids(2),), dynamic_shapes=({0: Dim.AUTO},))


@pytest.fixture(scope="module")
def plan(graph: fx.GraphModule) -> ex.Plan:
    return ex.calibrate_heads(graph, [(ids(32, seed),) for seed in range(3)])


def test_the_sound_guard_agrees_and_reads_less(graph: fx.GraphModule, plan: ex.Plan) -> None:
    (entry,) = plan.heads
    assert (entry.head, entry.weight_shape, entry.winners) == ("lm_head", (CLASSES, HIDDEN), 1)
    assert (entry.guard.claim, set(entry.reach), entry.agreement) == ("proved", {1.0}, 1.0)
    assert entry.fraction_read < 0.4  # the codes alone are a quarter
    assert entry.alive_fraction[-1] < 0.01
    assert plan.examples == 96
    model = Words().eval()
    for lower in (False, True):
        assert torch.equal(ex.transform(graph, plan, lower=lower)(ids(300, 9)), model(ids(300, 9)))


def test_without_data_one_stage_reads_the_codes_as_they_are(graph: fx.GraphModule) -> None:
    (entry,) = ex.calibrate_heads(graph).heads
    assert (entry.stages, entry.reach, entry.center, entry.basis) == ((HIDDEN,), (1.0,), None, None)
    assert (entry.agreement, entry.alive_fraction) == (None, ())
    staged = ex.transform(graph, ex.calibrate_heads(graph))
    assert torch.equal(staged(ids(50, 3)), Words().eval()(ids(50, 3)))


def test_the_statistical_guard_says_so_and_reads_less_still(graph: fx.GraphModule, plan: ex.Plan) -> None:
    (entry,) = ex.calibrate_heads(graph, [(ids(64),)], ex.Dominance(0.05)).heads
    assert entry.guard.claim == "estimated"
    assert any(share < 1 for share in entry.reach)
    assert entry.fraction_read <= plan.heads[0].fraction_read * 1.05
    assert entry.agreement is not None
    assert entry.agreement > 0.9


@pytest.mark.parametrize("alpha", [0.02, 0.1, 0.3])
def test_new_examples_lose_their_winner_no_more_often_than_alpha_says(graph: fx.GraphModule, alpha: float) -> None:
    (entry,) = ex.calibrate_heads(graph, [(ids(200, 1),)], ex.Dominance(alpha)).heads
    staged = StageHeadsPass((entry,))(ex.normalise(graph)).graph_module
    lost = (staged(ids(1000, 2)) != Words().eval()(ids(1000, 2))).double().mean()
    # four standard deviations of a share of 1,000 new and of 500 calibration examples
    assert lost <= alpha + 4 * (alpha * (1 - alpha) * (1 / 1000 + 1 / 500)) ** 0.5


def test_too_few_examples_for_an_alpha_take_the_whole_bound(graph: fx.GraphModule) -> None:
    (entry,) = ex.calibrate_heads(graph, [(ids(4),)], ex.Dominance(0.01)).heads
    assert set(entry.reach) == {1.0}


def test_a_plan_of_sites_is_kept(graph: fx.GraphModule) -> None:
    base = ex.calibrate(graph, [(ids(16),)])
    both = ex.calibrate_heads(graph, [(ids(16),)], plan=base)
    assert (both.sites, both.orders) == (base.sites, base.orders)
    assert len(both.heads) == 1


def test_it_does_not_depend_on_how_data_are_cut(graph: fx.GraphModule) -> None:
    whole = ex.calibrate_heads(graph, [(ids(64),)]).heads[0]
    parts = ex.calibrate_heads(graph, lambda: iter([(part,) for part in ids(64).split(7)])).heads[0]
    assert (whole.stages, whole.reach) == (parts.stages, parts.reach)


def test_refusals(graph: fx.GraphModule, plan: ex.Plan) -> None:
    with pytest.raises(ex.PlanError, match=r"no head 'other'\n.*its heads are 'lm_head'"):
        ex.calibrate_heads(graph, heads=("other",))
    with pytest.raises(ex.PlanError, match="staged already"):
        ex.calibrate_heads(ex.transform(graph, plan))
    with pytest.raises(ex.CalibrationError, match="no batches"):
        ex.calibrate_heads(graph, [])
    with pytest.raises(ex.GuardError, match="is for prediction heads"):
        ex.calibrate(graph, [(ids(4),)], ex.Dominance())
    with pytest.raises(ex.GuardError, match="is for prediction heads"):
        read_options({"guard": ex.Dominance()})
    with pytest.raises(ex.GuardError, match="takes its reach from examples"):
        ex.calibrate_heads(graph, guard=ex.Dominance(0.1))
    with pytest.raises(ex.GuardError, match="Bound"):
        ex.calibrate_heads(graph, guard=ex.Bound())  # type: ignore[arg-type] # that is the test


# --- by the clock -----------------------------------------------------------------------------------------------------


@needs_kernels
@pytest.mark.parametrize("staged_s", [0.001, 0.0099, 0.02])
def test_by_the_clock_a_head_that_does_not_gain_stays_dense(
    graph: fx.GraphModule, plan: ex.Plan, staged_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock and the compiler are replaced; the ways that are timed choose what the dense layer chooses."""
    shapes: list[torch.Size] = []

    def measure(walks: Any) -> dict[Any, float]:
        (expected, *others) = [step.run(*step.prepare(1)) for (step,) in walks]
        assert all(torch.equal(other, expected) for other in others)
        shapes.append(expected.shape)
        return {step.key: staged_s if step.key == head_latency.STAGED else 0.01 for (step,) in walks}

    monkeypatch.setattr(head_latency, "measure_graphs", measure)
    monkeypatch.setattr(head_latency, "compiled", lambda model, name, _setting, _args: Runnable(name, model))
    timed = ex.calibrate_heads(graph, [(ids(32, seed),) for seed in range(3)], objective="latency")
    assert shapes == [(2, 5)]  # as many examples as the graph was captured with, five positions each
    (entry,), (untimed,) = timed.heads, plan.heads
    assert entry.timing is not None
    assert (entry.timing.staged_s, entry.timing.dense_s, entry.timing.examples) == (staged_s, 0.01, 10)
    assert entry.is_staged == (staged_s == 0.001)  # 1 % is within what two runs differ by
    if entry.is_staged:
        assert (entry.stages, entry.reach, entry.basis) == (untimed.stages, untimed.reach, untimed.basis)
        assert "10.00 times as fast" in entry.reason
    assert ex.Plan.from_dict(timed.to_dict()) == timed
    staged = ex.transform(graph, timed)
    assert torch.equal(staged(ids(20, 4)), Words().eval()(ids(20, 4)))
    (facts,) = ex.explain(staged).heads
    assert facts.decision == ("staged" if entry.is_staged else "dense")
    assert "ms staged" in facts.reason
    given = ex.calibrate_heads(graph, objective="latency", latency_batch=(ids(7),))
    assert shapes[1:] == [(7, 5)]
    assert given.heads[0].timing is not None


def test_what_cannot_be_timed_is_refused(graph: fx.GraphModule, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ex.PlanError, match="unknown objective"):
        ex.calibrate_heads(graph, objective="time")
    monkeypatch.setattr(native, "available", lambda: True)
    with pytest.raises(ex.PlanError, match="nothing to time"):
        ex.calibrate_heads(graph, objective="latency")
    monkeypatch.setattr(native, "available", lambda: False)
    with pytest.raises(ex.PlanError, match="native kernels"):
        ex.calibrate_heads(graph, [(ids(4),)], objective="latency")


# --- the whole way ----------------------------------------------------------------------------------------------------


def test_a_plan_survives_its_file(plan: ex.Plan, tmp_path: Path) -> None:
    plan.save(tmp_path / "plan.json")
    assert ex.Plan.load(tmp_path / "plan.json") == plan


def test_save_and_load(graph: fx.GraphModule, plan: ex.Plan, tmp_path: Path) -> None:
    staged = ex.transform(graph, plan)
    ex.save(staged, tmp_path / "staged.pt")
    loaded = ex.load(Words().eval(), tmp_path / "staged.pt")
    assert torch.equal(loaded(ids(20, 4)), staged(ids(20, 4)))
    assert ex.python_text(loaded) == ex.python_text(staged)


@pytest.mark.parametrize("lower", [False, pytest.param(True, marks=needs_kernels)])
def test_export_program(graph: fx.GraphModule, plan: ex.Plan, lower: bool) -> None:
    program = ex.export_program(ex.transform(graph, plan, lower=lower))
    names = {str(node.target) for node in program.graph.nodes if "exprune." in str(node.target)}
    assert names == ({"exprune.staged_argmax.default"} if lower else set())
    assert torch.equal(program.module()(ids(20, 4)), Words().eval()(ids(20, 4)))


@needs_kernels
def test_the_backend_stages_planned_heads_where_parameters_are_frozen(plan: ex.Plan) -> None:
    model = Words().eval()
    seen: list[str] = []

    def inner(gm: fx.GraphModule, _: object) -> fx.GraphModule:
        seen.extend(str(node.target) for node in gm.graph.nodes if "exprune." in str(node.target))
        return gm

    torch._dynamo.reset()
    options: Any = {"plan": plan, "freeze": True, "inner": inner}
    unfrozen: Any = {"plan": plan, "inner": inner}
    with torch.no_grad():
        compiled = torch.compile(model, backend="exprune", options=options)
        assert torch.equal(compiled(ids(20, 4)), model(ids(20, 4)))
        assert seen == ["exprune.staged_argmax.default"]
        model.lm_head.weight.normal_()  # its codes are made again
        assert torch.equal(compiled(ids(20, 4)), model(ids(20, 4)))
        seen.clear()
        torch._dynamo.reset()
        live = torch.compile(model, backend="exprune", options=unfrozen)
        assert torch.equal(live(ids(20, 4)), model(ids(20, 4)))
    assert seen == []


def test_measure_and_explain_name_the_head_and_its_claim(graph: fx.GraphModule, plan: ex.Plan) -> None:
    staged = ex.transform(graph, plan)
    measurement = ex.measure(staged, [(ids(30, 5),), (ids(10, 6),)])
    (head,) = measurement.heads
    assert head.name == "lm_head"
    assert head.flops_dense == 40 * 5 * 2 * CLASSES * HIDDEN  # of all five positions, of which one is looked at
    assert 0.5 < head.fraction_removed < 1
    assert measurement.flops_staged == pytest.approx(measurement.flops_dense - head.flops_dense + head.flops_staged)
    said = ex.explain(staged, measurement)
    (facts,) = said.heads
    assert (facts.decision, facts.claim, facts.fraction_removed) == ("staged", "proved", head.fraction_removed)
    assert all(other.name != "lm_head" for other in said.others)
    line = next(line for line in str(said).splitlines() if line.startswith("lm_head "))
    assert "Dominance(0)" in line
    assert "proved" in line
    assert ("exprune.staged_argmax" in line) == native.available()
    assert ex.explain(graph).heads[0].decision == "possible"
