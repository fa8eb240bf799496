"""Beside another library: a stand-in for it here, so that the comparison is tested where it is not installed."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from typing import Any

import pytest
import torch
from torch import nn

from exprune_fx.errors import ExpruneError
from exprune_fx.studies.static.peers import Pair, Side, peers_section, run_peers


class Residual(nn.Module):
    """Two layers tied by a sum, one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(a, b, 1) for a, b in ((3, 8), (8, 10), (10, 8)))
        self.fc = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(x + self.outer(torch.relu(self.inner(x))))
        y: torch.Tensor = self.fc(x.mean((2, 3)))
        return y


def test_it_says_how_to_install_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ExpruneError, match="cannot be imported") as caught:
        run_peers({"x": Residual}, {"x": 8}, lambda _: None)
    assert "pip install --no-deps torch-pruning" in caught.value.hint


def test_a_failure_of_the_other_library_is_reported_and_ours_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def DependencyGraph(self) -> Any:  # noqa: N802 - the other library's name
            raise RuntimeError("no such operator\nand more")

    monkeypatch.setitem(sys.modules, "torch_pruning", Broken())
    seen: list[int] = []
    (pair,) = run_peers(
        {"x": Residual}, {"x": 8}, lambda _: None, fraction=0.5, on_pair=lambda so_far: seen.append(len(so_far))
    )
    assert pair.theirs.problem == "RuntimeError: no such operator"
    assert pair.ours.problem == ""
    assert pair.ours.groups == 2
    assert pair.ours.tied == {("outer", "stem")}
    assert pair.ours.params_removed is not None
    assert 0.4 < pair.ours.params_removed < 0.7
    assert seen == [1]
    section = peers_section([pair])
    assert section.table is not None
    assert "x, theirs: RuntimeError: no such operator." in section.paragraphs[0]
    assert section.table.rows[0][-1].text == "failed"


def test_what_only_one_ties_is_counted() -> None:
    ours, theirs = (
        Side(3, frozenset({("a", "b"), ("b", "c")})),
        Side(2, frozenset({("a", "b"), ("d", "e"), ("e", "f")})),
    )
    pair = Pair("x", 1, ours, theirs)
    assert (pair.coarser, pair.finer) == (1, 2)
    assert pair.to_dict()["ours"]["tied"] == 2


@pytest.mark.skipif(importlib.util.find_spec("torch_pruning") is None, reason="torch-pruning is not installed")
@pytest.mark.filterwarnings("ignore")  # a third party's
def test_torch_pruning_ties_the_same_layers() -> None:
    (pair,) = run_peers({"x": Residual}, {"x": 8}, lambda _: None, fraction=0.5)
    assert pair.theirs.problem == ""
    assert pair.ours.tied == pair.theirs.tied
    assert pair.ours.groups == pair.theirs.groups == 2
