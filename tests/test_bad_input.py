"""What is refused, how, and that the model is untouched: each mistake gets one error that says what to do."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, fx, nn

import exprune_fx as ex

BATCH = torch.export.Dim("batch")


class Net(nn.Module):
    """Two sites, dropout and a frozen parameter, so that flags have something to lose."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 16), nn.ReLU())
        self.head = nn.Linear(16, 4)
        self.head.weight.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.head(self.body(x)))


def make_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Net()


def data(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class State:
    """All of a module that a library could spoil."""

    tensors: dict[str, Tensor]
    addresses: dict[str, int]
    training: list[bool]
    requires_grad: list[bool]
    hooks: list[int]
    attributes: list[list[str]]


def state_of(model: nn.Module) -> State:
    held = model.state_dict(keep_vars=True)
    return State(
        {name: tensor.detach().clone() for name, tensor in held.items()},
        {name: tensor.data_ptr() for name, tensor in held.items()},
        [module.training for module in model.modules()],
        [parameter.requires_grad for parameter in model.parameters()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks) for m in model.modules()],
        [sorted(vars(module)) for module in model.modules()],
    )


def assert_untouched(model: nn.Module, before: State) -> None:
    now = state_of(model)
    assert now.tensors.keys() == before.tensors.keys()
    assert all(torch.equal(tensor, before.tensors[name]) for name, tensor in now.tensors.items())
    for part in ("addresses", "training", "requires_grad", "hooks", "attributes"):
        assert getattr(now, part) == getattr(before, part), part


@dataclass(frozen=True)
class Bench:
    """What a mistake is made with."""

    model: nn.Module
    gm: fx.GraphModule
    plan: ex.Plan
    staged: fx.GraphModule
    folder: Path

    def calibrate(self, batches: Any, **options: Any) -> ex.Plan:
        return ex.calibrate(self.gm, batches, **options)

    def load(self, text: str) -> ex.Plan:
        path = self.folder / "plan.json"
        path.write_text(text)
        return ex.Plan.load(path)

    def load_changed(self, change: Callable[[dict[str, Any]], object]) -> fx.GraphModule:
        plan = json.loads(json.dumps(self.plan.to_dict()))
        change(plan)
        return ex.transform(self.gm, self.load(json.dumps(plan)))


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    model = make_net()
    before = state_of(model)
    gm = ex.capture(model, (data(2, 8),), dynamic_shapes=({0: BATCH},))
    plan = ex.calibrate(gm, [(data(64, 8),)])
    assert len(plan.staged) == 2
    yield Bench(model, gm, plan, ex.transform(gm, plan), tmp_path_factory.mktemp("plans"))
    assert_untouched(model, before)  # after every mistake below


def not_finite(value: float) -> Tensor:
    x = data(4, 8)
    x[1, 2] = value
    return x


def other_model() -> ex.Plan:
    other = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4))
    return ex.calibrate(ex.capture(other, (data(2, 8),), dynamic_shapes=({0: BATCH},)), [(data(8, 8),)])


Mistake = tuple[str, Callable[[Bench], object], type[ex.ExpruneError], str]

CAPTURE: Sequence[Mistake] = [
    ("a function", lambda b: ex.capture(cast(Any, data), (data(2, 8),)), ex.CaptureError, "pass an nn.Module"),
    ("a class", lambda b: ex.capture(cast(Any, Net), (data(2, 8),)), ex.CaptureError, "not an instance"),
    ("a tensor for args", lambda b: ex.capture(b.model, cast(Any, data(2, 8))), ex.CaptureError, "must be a tuple"),
    ("no arguments", lambda b: ex.capture(b.model), ex.CaptureError, "missing a required argument"),
    ("a wrong size", lambda b: ex.capture(b.model, (data(2, 7),)), ex.CaptureError, "could not be exported"),
    ("a wrong dtype", lambda b: ex.capture(b.model, (data(2, 8).double(),)), ex.CaptureError, "different dtypes"),
    ("integers", lambda b: ex.capture(b.model, (data(2, 8).long(),)), ex.CaptureError, r"int64\[2, 8\], float32"),
    (
        "a size that is fixed",
        lambda b: ex.capture(b.model, (data(2, 8),), dynamic_shapes=({1: torch.export.Dim("width")},)),
        ex.CaptureError,
        "make dynamic_shapes agree",
    ),
]
UNCAPTURED: Sequence[Mistake] = [
    ("symmetries", lambda b: ex.symmetries(cast(Any, b.model)), ex.CaptureError, "capture first"),
    ("find_sites", lambda b: ex.find_sites(cast(Any, b.model)), ex.CaptureError, "capture first"),
    ("normalise", lambda b: ex.normalise(cast(Any, b.model)), ex.CaptureError, "capture first"),
    ("calibrate", lambda b: ex.calibrate(cast(Any, b.model), [(data(2, 8),)]), ex.CaptureError, "capture first"),
    ("transform", lambda b: ex.transform(cast(Any, b.model), b.plan), ex.CaptureError, "capture first"),
    ("measure", lambda b: ex.measure(cast(Any, b.model), [(data(2, 8),)]), ex.PlanError, "not made by transform"),
    ("measure dense", lambda b: ex.measure(b.gm, [(data(2, 8),)]), ex.PlanError, "not made by transform"),
    (
        "traced only",
        lambda b: ex.calibrate(fx.symbolic_trace(b.model), [(data(2, 8),)]),
        ex.VerifyError,
        r"capture\(model, args\)",
    ),
    ("staged already", lambda b: ex.calibrate(b.staged, [(data(2, 8),)]), ex.PlanError, "staged already"),
]
DATA: Sequence[Mistake] = [
    ("NaN", lambda b: b.calibrate([(not_finite(float("nan")),)]), ex.CalibrationError, "batch 0 holds NaN"),
    ("infinity", lambda b: b.calibrate([(data(2, 8),), (not_finite(float("inf")),)]), ex.CalibrationError, "batch 1"),
    ("no batches", lambda b: b.calibrate([]), ex.CalibrationError, "at least one batch"),
    ("empty batches", lambda b: b.calibrate([(data(0, 8),)]), ex.CalibrationError, "at least one batch"),
    ("an iterator", lambda b: b.calibrate(iter([(data(2, 8),)])), ex.CalibrationError, "read only once"),
    ("one tensor", lambda b: b.calibrate(data(2, 8)), ex.CalibrationError, "not an iterable of batches"),
    ("tensors", lambda b: b.calibrate([data(2, 8)]), ex.CalibrationError, "a batch is a tuple"),
    ("labels", lambda b: b.calibrate([(data(2, 8), data(2))]), ex.CalibrationError, "without labels"),
    ("a wrong size", lambda b: b.calibrate([(data(2, 7),)]), ex.CalibrationError, "must be 8"),
    ("a wrong dtype", lambda b: b.calibrate([(data(2, 8).double(),)]), ex.CalibrationError, "float64"),
    ("measure nothing", lambda b: ex.measure(b.staged, []), ex.CalibrationError, "at least one batch"),
    ("measure a wrong size", lambda b: ex.measure(b.staged, [(data(2, 7),)]), ex.CaptureError, "must be 8"),
    ("run a wrong size", lambda b: b.staged(data(2, 7)), ex.CaptureError, "must be 8"),
]
NUMBERS: Sequence[Mistake] = [
    *(
        (f"{kind.__name__}({value!r})", lambda b, kind=kind, value=value: kind(value), ex.GuardError, "between 0 and 1")
        for kind in (ex.StatsTest, ex.FinitePopulation)
        for value in (0, 1, -0.1, 1.1, float("nan"), "0.1", None)
    ),
    ("budget 1", lambda b: ex.Calibrated(1.0), ex.GuardError, "below 1"),
    ("threshold NaN", lambda b: ex.Threshold(float("nan")), ex.GuardError, "give a number"),
    *(
        (
            f"stages {stages!r}",
            lambda b, stages=stages: b.calibrate([(data(2, 8),)], stages=stages),
            ex.GuardError,
            "between 0 and 1",
        )
        for stages in ((0.5, 0.25), (0.5, 0.5), (), (1,), (0.0, 0.5), (float("nan"),), 0.5, ("a",), "0.5")
    ),
    ("no guard", lambda b: b.calibrate([(data(2, 8),)], guard="bound"), ex.GuardError, "Calibrated"),
    ("a guard's class", lambda b: b.calibrate([(data(2, 8),)], guard=ex.Bound), ex.GuardError, "Calibrated"),
    (
        "head",
        lambda b: b.calibrate([(data(2, 8),)], head="tail"),
        ex.PlanError,
        '"auto", "prefix", "principal" or "coded"',
    ),
]
PLANS: Sequence[Mistake] = [
    ("another model's", lambda b: ex.transform(b.gm, other_model()), ex.PlanError, "for another model"),
    ("a dict", lambda b: ex.transform(b.gm, cast(Any, {})), ex.PlanError, "the plan is a dict"),
    ("a site twice", lambda b: ex.transform(b.gm, ex.Plan(b.plan.sites * 2)), ex.PlanError, "4 entries for 2 sites"),
    ("staged twice", lambda b: ex.transform(b.staged, b.plan), ex.PlanError, "for another model"),
    ("no file", lambda b: ex.Plan.load(b.folder / "none.json"), ex.PlanError, "check the path"),
    ("an empty file", lambda b: b.load(""), ex.PlanError, "make the plan again"),
    ("half a file", lambda b: b.load(json.dumps(b.plan.to_dict())[:900]), ex.PlanError, "make the plan again"),
    ("another JSON", lambda b: b.load("[1]"), ex.PlanError, "written by Plan.save"),
    ("another version", lambda b: b.load_changed(lambda p: p.update(version=9)), ex.PlanError, "format version 9"),
    (
        "thresholds lost",
        lambda b: b.load_changed(lambda p: p["sites"][0].update(thresholds=None)),
        ex.PlanError,
        "make the plan again",
    ),
    (
        "stages out of range",
        lambda b: b.load_changed(lambda p: p["sites"][0].update(stages=[1, 2, 500])),
        ex.PlanError,
        "500",
    ),
    ("a site lost", lambda b: b.load_changed(lambda p: p["sites"].pop()), ex.PlanError, "not in the plan"),
    (
        "no permutation",
        lambda b: b.load_changed(lambda p: p["orders"].update({"body.0.weight[0]": [0] * 16})),
        ex.PlanError,
        "cannot order group",
    ),
]
MISTAKES = {
    f"{chapter}: {name}": (mistake, error, message)
    for chapter, rows in (
        ("capture", CAPTURE),
        ("uncaptured", UNCAPTURED),
        ("data", DATA),
        ("numbers", NUMBERS),
        ("plans", PLANS),
    )
    for name, mistake, error, message in rows
}


@pytest.mark.parametrize("name", MISTAKES)
def test_one_error_that_says_what_to_do(bench: Bench, name: str) -> None:
    mistake, kind, message = MISTAKES[name]
    before = state_of(bench.model)
    with pytest.raises(kind, match=message) as caught:
        mistake(bench)
    assert caught.value.hint, "no word of what to do"
    assert_untouched(bench.model, before)


# --- nothing to do ----------------------------------------------------------------------------------------------------


def nothing_to_do(model: nn.Module, guard: ex.Guard) -> tuple[ex.Plan, str]:
    """Calibrates, checks that the graph's operators and outputs are the dense ones; the plan and the report."""
    before = state_of(model)
    gm = ex.capture(model, (data(2, 8),), dynamic_shapes=({0: BATCH},))
    plan = ex.calibrate(gm, [(data(16, 8),)], guard=guard)
    staged = ex.transform(gm, plan)
    assert not plan.staged
    assert [node.target for node in staged.graph.nodes] == [node.target for node in gm.graph.nodes]
    with torch.no_grad():
        assert torch.equal(staged(data(3, 8)), model(data(3, 8)))
    assert ex.measure(staged, [(data(3, 8),)]).fraction_removed == 0.0
    assert_untouched(model, before)
    return plan, str(ex.explain(staged))


def test_no_site() -> None:
    plan, report = nothing_to_do(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 4)), ex.Calibrated())
    assert plan.sites == ()
    assert "No site was found" in report


def test_no_exchangeable_terms() -> None:
    plan, report = nothing_to_do(nn.Sequential(nn.Linear(8, 16), nn.ReLU()), ex.StatsTest(0.05))
    assert "needs exchangeable terms" in plan.sites[0].reason
    assert "axis 1 of the model's input" in plan.sites[0].reason
    assert "needs exchangeable terms" in " ".join(report.split())


def test_a_norm_after_an_added_value_says_so() -> None:
    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(self.norm(self.conv(x) + x))

    model = Late().eval()
    gm = ex.capture(model, (data(2, 4, 5, 5),))
    (entry,) = ex.calibrate(gm, [(data(2, 4, 5, 5),)]).sites
    assert "a value is added between it and its batch norm" in entry.reason
    assert "normalise" not in entry.reason  # calibrate has done that: no advice that cannot be followed
