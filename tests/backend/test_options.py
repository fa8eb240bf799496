"""Options are read and refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.exc import BackendCompilerFailed

from exprune_fx.backend import exprune
from exprune_fx.backend.options import Options, read_options
from exprune_fx.errors import ExpruneError, GuardError, PlanError
from exprune_fx.guards import Bound, Calibrated, StatsTest
from exprune_fx.plan import Plan
from tests.backend.models import Blocks, compiled_by, randomised, tokens


def test_no_options_are_the_defaults() -> None:
    assert read_options(None) == read_options({}) == read_options({"plan": None}) == Options()
    assert not Options().chosen


def test_every_option_is_read(tmp_path: Path) -> None:
    plan = Plan(objective="latency", examples=3)
    plan.save(tmp_path / "plan.json")
    found = read_options({"plan": tmp_path / "plan.json", "inner": "eager", "freeze": True, "objective": "latency"})
    assert found == Options(plan=plan, inner="eager", freeze=True, objective="latency")
    assert read_options({"plan": str(tmp_path / "plan.json")}).plan == plan
    assert read_options({"plan": plan}).plan is plan
    found = read_options({"guard": StatsTest(0.1), "stages": [0.25, 0.5]})
    assert (found.guard, found.stages, found.chosen) == (StatsTest(0.1), (0.25, 0.5), True)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"gaurd": Bound(), "Plan": None}, ExpruneError, "does not know the options Plan, gaurd"),
        ({"guard": "Bound"}, ExpruneError, "option 'guard' of backend exprune is a str"),
        ({"guard": Calibrated(0.1)}, GuardError, "needs thresholds from calibration data"),
        ({"stages": (0.5, 0.25)}, GuardError, "not increasing fractions"),
        ({"plan": {"sites": []}}, PlanError, "option 'plan' of backend exprune is a dict"),
        ({"plan": "nowhere.json"}, PlanError, "cannot read plan 'nowhere.json'"),
        ({"objective": "speed"}, PlanError, "unknown objective 'speed'"),
        ({"inner": 3}, ExpruneError, "option 'inner' of backend exprune is a int"),
        ({"inner": "exprune"}, ExpruneError, "inner backend of exprune is exprune"),
        ({"freeze": 1}, ExpruneError, "option 'freeze' of backend exprune is a int"),
        ({"plan": Plan(), "guard": Bound(), "stages": (0.5,)}, ExpruneError, "a plan and guard and stages too"),
        ({"plan": Plan(), "objective": "latency"}, ExpruneError, "was made for objective 'flops'"),
    ],
)
def test_what_makes_no_sense_is_refused(given: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        read_options(given)


def test_an_unknown_option_is_named_with_the_known_ones_where_the_user_sees_it() -> None:
    model = compiled_by(randomised(Blocks()), {"gaurd": Bound()})
    with pytest.raises(BackendCompilerFailed, match=r"gaurd\n.*guard, stages, plan, objective, inner, freeze"):
        model(tokens(2, 3))


def test_a_mode_is_inductors() -> None:
    model = randomised(Blocks())
    gm: Any = torch.fx.symbolic_trace(model)
    with pytest.raises(ExpruneError, match="mode 'max-autotune' is Inductor's, and the inner backend is eager"):
        exprune(gm, [tokens(2, 3)], options={"inner": "eager"}, mode="max-autotune")
