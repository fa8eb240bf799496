"""Shrunk and staged together: figures belong together, and every form runs."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.bench.timing import Interleaved, Schedule, Timing
from exprune_fx.compiling import Runnable
from exprune_fx.static import Magnitude
from exprune_fx.studies.static import stacked
from exprune_fx.studies.static.stacked import FORMS, Settings, run_stacked, stacked_section
from exprune_fx.zoo.training import Recipe
from tests.studies.static.subjects import subject


def test_both_savings_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is compiled here: `Runnable` and `interleave` have tests of their own."""
    monkeypatch.setattr(stacked, "compiled", lambda model, name, inner, args: Runnable(name, model))
    settings = Settings(0.6, Recipe(1, batch_size=8, bfloat16=False), budget=0.05, inner=("inductor",), measured=16)
    found = run_stacked(subject(), Magnitude(), settings, lambda _: None, Schedule(2, 0.0, 1, 1.0, 2))
    assert tuple(form.name for form in found.forms) == FORMS
    dense, shrunk, staged, both = found.forms
    assert shrunk.flops <= 0.6 * dense.flops
    assert both.params == shrunk.params < dense.params == staged.params
    assert staged.sites
    assert staged.flops < dense.flops
    assert both.flops < shrunk.flops
    assert all(0 <= form.accuracy <= 1 and form.seconds > 0 for form in found.forms)
    assert staged.setting == both.setting == "inductor", "what is staged is not timed in eager mode"
    assert found.tuned_on == 64
    assert found.to_dict()["forms"][3]["name"] == "both"
    table = stacked_section(found).table
    assert table is not None
    assert [row[0].text for row in table.rows] == list(FORMS)


def test_the_best_setting_is_the_fastest_of_its_own_form() -> None:
    columns = {"dense/eager": 3.0, "dense/inductor": 2.0, "both/inductor": 1.0}
    timed = Interleaved({name: Timing((value,)) for name, value in columns.items()}, 1, 1)
    assert stacked._best(timed, "dense") == (2.0, "inductor")
    assert torch.tensor(stacked._best(timed, "both")[0]) == 1.0
