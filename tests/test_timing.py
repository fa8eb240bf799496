"""The timer of walks, on a clock that the steps themselves move."""

from __future__ import annotations

import gc
from collections.abc import Callable

import pytest

from exprune_fx.timing import Pair, Rounds, Step, medians, sample


class Clock:
    """Time passes only where a step says so."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.now

    def step(self, key: str, seconds: Callable[[int], float], preparation_s: float = 0.0) -> Step:
        def prepare(index: int) -> tuple[int]:
            self.now += preparation_s
            return (index,)

        def run(index: int) -> None:
            self.calls.append(key)
            self.now += seconds(index)

        return Step(key, prepare, run)


def test_medians_of_each_step_without_its_preparation() -> None:
    clock = Clock()
    walk = [clock.step("a", lambda i: [1.0, 9.0, 2.0][i], 100.0), clock.step("b", lambda i: 5.0)]
    assert medians([walk], Rounds(most=3, budget_s=1e9), clock) == {"a": 2.0, "b": 5.0}


def test_samples_are_round_by_round() -> None:
    clock = Clock()
    walks = [[clock.step("a", lambda i: [1.0, 9.0, 2.0][i])], [clock.step("b", lambda i: [2.0, 27.0, 1.0][i])]]
    taken = sample(walks, Rounds(most=3, budget_s=1e9), clock)
    assert taken == {"a": (1.0, 9.0, 2.0), "b": (2.0, 27.0, 1.0)}
    pair = Pair(taken["a"], taken["b"])
    assert pair.ratio == 2.0
    assert pair.rounds_faster == 1


def test_each_walk_runs_untimed_before_it_is_timed_and_walks_take_turns() -> None:
    clock = Clock()
    walks = [[clock.step("a", lambda i: 1.0), clock.step("b", lambda i: 1.0)], [clock.step("c", lambda i: 1.0)]]
    medians(walks, Rounds(most=2, budget_s=1e9), clock)
    assert "".join(clock.calls) == "abab" + "cc" + "cc" + "abab"


def test_steps_of_several_walks_share_a_key() -> None:
    clock = Clock()
    walks = [[clock.step("a", lambda i: 1.0)], [clock.step("a", lambda i: 3.0)], [clock.step("a", lambda i: 3.0)]]
    assert medians(walks, Rounds(most=1), clock) == {"a": 3.0}


@pytest.mark.parametrize(("budget_s", "rounds"), [(1e9, 31), (100.0, 10), (0.0, 5)])
def test_rounds_end_with_the_budget_but_not_too_early(budget_s: float, rounds: int) -> None:
    clock = Clock()
    medians([[clock.step("a", lambda i: 5.0)]], Rounds(budget_s=budget_s), clock)  # a round takes 10 seconds
    assert len(clock.calls) == 2 * rounds


def test_no_garbage_is_collected_meanwhile_and_collection_is_on_again_after_an_error() -> None:
    seen: list[bool] = []

    def run() -> None:
        seen.append(gc.isenabled())
        raise ValueError

    assert gc.isenabled()
    with pytest.raises(ValueError):  # noqa: PT011 - the step's own
        medians([[Step("a", lambda _: (), run)]], Rounds())
    assert seen == [False]
    assert gc.isenabled()
