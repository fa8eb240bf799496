"""Settling on whole graphs, on a clock that they move; a graph is really compiled in test_latency's smoke run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping, Sequence

import pytest
import torch

from exprune_fx.calibration.decide import CLEAR_GAIN, EVERY_GAIN, dense_entry
from exprune_fx.calibration.whole import Settled, settle
from exprune_fx.compiling import Runnable
from exprune_fx.errors import ExpruneError
from exprune_fx.guards import Calibrated
from exprune_fx.pipeline import normalise
from exprune_fx.sites import find_sites
from exprune_fx.symmetry import symmetries
from exprune_fx.timing import Rounds, Step, sample
from tests.calibration.models import captured, cnn, images
from tests.passes.fused import need_operators
from tests.passes.staging import plan_for

ROUNDS = 9
FREEZING, AUTOTUNE = "the dense graph (inductor_freezing)", "the dense graph (inductor_max_autotune)"
AS_IT_IS = "the dense graph, called as it is"


@pytest.fixture(autouse=True)
def _operators() -> None:
    need_operators()


class Machine:
    """Its clock moves by what each graph takes, times how slow the machine is at that call."""

    def __init__(self, seconds: Mapping[str, float], slow: Callable[[int], float], later: Mapping[str, float]) -> None:
        self.now, self.runs, self._calls = 0.0, 0, 0
        self._seconds, self._slow, self._later = seconds, slow, later
        self._ran: set[str] = set()

    def sample(self, walks: Sequence[Sequence[Step]]) -> Mapping[Hashable, Sequence[float]]:
        """The real sampling, in a few rounds."""
        self.runs += 1
        return sample(walks, Rounds(most=ROUNDS, budget_s=1e9), lambda: self.now)

    def runnable(self, graph: torch.nn.Module, name: str) -> Runnable:
        def call(*args: object) -> None:
            if name not in self._ran:
                graph(*args)
                self._ran.add(name)
            seconds = self._later if self._later and self.runs > 2 else self._seconds
            self.now += seconds[name] * self._slow(self._calls)
            self._calls += 1

        return Runnable(name, call)


def settled(
    seconds: dict[str, float],
    same: bool = False,
    dense: bool = False,
    later: dict[str, float] | None = None,
    slow: Callable[[int], float] = lambda _call: 1.0,
    as_it_is: bool = False,
) -> tuple[Settled, list[str]]:
    """One plan stages two sites, the other one of them (or both the same, or nothing); what was compiled, and how."""
    gm = normalise(captured(cnn(), images()))
    groups = symmetries(gm)
    sites = find_sites(gm, groups)
    every = plan_for(gm, Calibrated(0.1), count=1).sites
    fewer = (every[0], *(dense_entry(site, "slow") for site in sites[1:]))
    if dense:
        every = fewer = tuple(dense_entry(site, "slow") for site in sites)
    compiled: list[str] = []
    machine = Machine(seconds, slow, later or {})

    def compile_graph(graph: torch.nn.Module, name: str, inner: str, *_call: object) -> Runnable:
        compiled.append(f"{name} | {inner}")
        if not seconds:
            raise ExpruneError("no compiler", hint="none")
        return machine.runnable(graph, name)

    plans = {EVERY_GAIN.name: every, CLEAR_GAIN.name: every if same else fewer}
    batches = [(images()[:3],), (images()[3:6],)]
    return settle(gm, groups, sites, plans, batches, compile_graph, machine.sample, as_it_is=as_it_is), compiled


def as_it_is(staged_s: float, dense_s: float) -> dict[str, float]:
    """Times of a plan that loses when it is compiled, and of both graphs as they are."""
    compiled = {FREEZING: 5.0, AUTOTUNE: 4.0, EVERY_GAIN.name: 6.0, CLEAR_GAIN.name: 6.0}
    return compiled | {AS_IT_IS: dense_s, f"{CLEAR_GAIN.name}, called as it is": staged_s}


def test_a_graph_may_win_without_being_compiled_where_that_is_asked_for() -> None:
    result, compiled = settled(as_it_is(3.0, 4.5), same=True, as_it_is=True)
    assert heads(result).count("prefix") > 1
    assert result.timing is not None
    assert (result.timing.dense_form, result.timing.staged_form) == (AUTOTUNE, f"{CLEAR_GAIN.name}, called as it is")
    assert [name.rpartition(" | ")[2] for name in compiled].count("eager") == 2
    assert set(heads(settled(as_it_is(3.0, 4.5), same=True)[0])) == {"dense"}


def test_who_need_not_compile_the_staged_graph_need_not_compile_the_dense_one() -> None:
    result, _ = settled(as_it_is(3.0, 2.5), same=True, as_it_is=True)
    assert set(heads(result)) == {"dense"}
    assert result.timing is not None
    assert (result.timing.dense_form, result.timing.dense_s) == (AS_IT_IS, 2.5)


def test_a_graph_that_wins_once_only_is_not_taken() -> None:
    times = {FREEZING: 5.0, AUTOTUNE: 4.0, EVERY_GAIN.name: 3.0, CLEAR_GAIN.name: 3.5}
    again = {AUTOTUNE: 3.0, EVERY_GAIN.name: 2.97}  # all others are not timed again
    result, _ = settled(times, later=again)
    assert heads(result).count("prefix") == 0
    assert result.timing is not None
    assert (result.timing.dense_s, result.timing.staged_s) == pytest.approx((3.0, 2.97))
    assert heads(settled(times, later={AUTOTUNE: 3.0, EVERY_GAIN.name: 2.9})[0]).count("prefix") > 1


def heads(result: Settled) -> list[str]:
    return [entry.head for entry in result.sites]


def test_the_fastest_whole_graph_wins_under_the_setting_that_serves_the_dense_one_best() -> None:
    times = {FREEZING: 5.0, AUTOTUNE: 4.0, EVERY_GAIN.name: 3.0, CLEAR_GAIN.name: 3.5}
    result, compiled = settled(times)
    assert compiled == [
        f"{FREEZING} | inductor_freezing",
        f"{AUTOTUNE} | inductor_max_autotune",
        f"{EVERY_GAIN.name} | inductor_max_autotune",
        f"{CLEAR_GAIN.name} | inductor_max_autotune",
    ]
    assert heads(result).count("prefix") > 1
    assert result.timing is not None
    assert (result.timing.dense_s, result.timing.staged_s) == pytest.approx((4.0, 3.0))
    assert result.timing.examples == 3
    assert (result.timing.dense_form, result.timing.staged_form) == (AUTOTUNE, EVERY_GAIN.name)
    assert result.timing.tried == pytest.approx(times)
    assert heads(settled(times | {CLEAR_GAIN.name: 2.9})[0]).count("prefix") == 1


@pytest.mark.parametrize("staged_s", [4.0, 3.95, 6.0])
def test_what_is_not_faster_whole_stays_dense_and_says_so(staged_s: float) -> None:
    result, _ = settled({FREEZING: 4.0, AUTOTUNE: 5.0, EVERY_GAIN.name: staged_s, CLEAR_GAIN.name: staged_s})
    assert set(heads(result)) == {"dense"}
    assert result.sites[0].reason == (
        f"dense: the whole graph took {1e3 * staged_s:.3g} ms staged, 4e+03 ms dense, "
        f"and was faster staged in {ROUNDS if staged_s < 4 else 0} of {ROUNDS} rounds"
    )


def test_a_graph_that_wins_every_round_wins_on_a_machine_that_slows_meanwhile() -> None:
    times = {FREEZING: 5.0, AUTOTUNE: 4.0, EVERY_GAIN.name: 3.7, CLEAR_GAIN.name: 9.0}
    # 4 calls a round compare the dense graphs, 8 the staged ones with the dense one, 4 the fastest with it once more
    result, _ = settled(times, slow=lambda call: 3.0 if 4 * ROUNDS + 22 <= call < 16 * ROUNDS - 18 else 1.0)
    assert heads(result).count("prefix") > 1
    assert result.timing is not None
    assert result.timing.speedup == pytest.approx(4 / 3.7)


def test_a_graph_that_drift_alone_makes_faster_does_not_win() -> None:
    times = {FREEZING: 9.0, AUTOTUNE: 4.0, CLEAR_GAIN.name: 4.0}
    result, _ = settled(times, same=True, slow=lambda call: 0.98**call)  # whose turn comes later takes less
    assert set(heads(result)) == {"dense"}
    assert result.timing is not None
    assert result.timing.speedup > 1.03  # in the median, as every other round begins with the dense graph
    assert "faster staged in 5 of 9 rounds" in result.sites[0].reason


def test_equal_plans_are_compiled_once_and_dense_ones_not_at_all() -> None:
    times = {FREEZING: 5.0, AUTOTUNE: 4.0, CLEAR_GAIN.name: 3.0}
    result, compiled = settled(times, same=True)
    assert len(compiled) == 3
    assert heads(result).count("prefix") > 1
    result, compiled = settled({}, dense=True)
    assert not compiled
    assert result.timing is None


def test_where_nothing_compiles_clear_gains_are_taken_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result, _ = settled({})
    assert heads(result).count("prefix") == 1
    assert result.timing is None
    assert "whole graphs could not be compared" in caplog.text
