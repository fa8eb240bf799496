"""Interleaving and statistics, on a clock that tests move."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from exprune_fx.bench.timing import Schedule, Timing, interleave, orders

SCHEDULE = Schedule(rounds=6, slot_s=1.0, warmup=1, budget_s=1e9, least_rounds=2)


class World:
    """A clock, and calls that take their time on it and are written down."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[tuple[str, object]] = []

    def clock(self) -> float:
        return self.now

    def call(self, name: str, seconds: float) -> Callable[..., object]:
        def run(argument: object) -> None:
            self.now += seconds
            self.calls.append((name, argument))

        return run


def test_every_round_holds_every_column_once() -> None:
    names = ["a", "b", "c"]
    rounds = list(orders(names, 6))
    assert all(sorted(order) == names for order in rounds)
    assert {order[0] for order in rounds} == set(names)
    assert len({tuple(order) for order in rounds}) == 6  # so that nobody always follows the same column


def test_columns_take_turns() -> None:
    world = World()
    columns = {"slow": world.call("slow", 2.0), "fast": world.call("fast", 1.0)}
    interleave(columns, [(0,)], SCHEDULE, world.clock)
    timed = [name for name, _ in world.calls[2:]]  # behind the warm-up
    assert timed == ["slow", "slow", "fast", "fast"] * 6  # rotated and turned round: with two columns that is the same


def test_times_are_per_call_and_the_first_of_a_slot_is_not_timed() -> None:
    world = World()
    cold = {"a": 9.0}

    def call(_argument: object) -> None:
        world.now += cold.pop("a", 0.25)

    def others(_argument: object) -> None:
        world.now += 0.25
        cold["a"] = 9.0  # leaves the caches cold

    result = interleave({"a": call, "b": others}, [(0,)], Schedule(4, 1.0, 2, 1e9, 2), world.clock)
    assert result.calls == 4
    assert result.columns["a"].samples == (0.25,) * 4


def test_long_calls_are_timed_one_at_a_time_behind_one_on_the_input_before() -> None:
    world = World()
    result = interleave({"a": world.call("a", 3.0)}, [(0,), (1,), (2,)], SCHEDULE, world.clock)
    assert (result.calls, result.rounds) == (1, 6)
    assert [argument for _, argument in world.calls[1:]] == [2, 0, 0, 1, 1, 2] * 2


def test_short_calls_are_timed_behind_a_turn_of_all_inputs_for_each_may_read_other_weights() -> None:
    world = World()
    near: list[object] = []  # inputs whose weights the cache holds

    def sparse(argument: object) -> None:
        world.now += 0.25 if argument in near else 9.0
        near.append(argument)

    def others(_argument: object) -> None:
        world.now += 0.25
        near.clear()

    def samples(lead_s: float) -> tuple[float, ...]:
        near[:] = [0, 1, 2]
        columns, inputs = {"a": sparse, "b": others}, [(0,), (1,), (2,)]
        return interleave(columns, inputs, Schedule(4, 0.25, 3, 1e9, 2, lead_s), world.clock).columns["a"].samples

    assert samples(lead_s=0.75) == (0.25,) * 4
    assert samples(lead_s=0.7) == (9.0,) * 4


def test_all_columns_get_the_same_inputs_in_turn() -> None:
    world = World()
    columns = {"a": world.call("a", 0.5), "b": world.call("b", 0.5)}
    interleave(columns, [(0,), (1,), (2,)], SCHEDULE, world.clock)
    seen = {name: [argument for called, argument in world.calls[2:] if called == name] for name in columns}
    assert seen["a"] == seen["b"]
    assert set(seen["a"]) == {0, 1, 2}


@pytest.mark.parametrize(("budget", "rounds"), [(1e9, 6), (24.0, 4), (0.0, 2)])
def test_rounds_fit_the_budget_but_are_never_too_few(budget: float, rounds: int) -> None:
    world = World()
    schedule = Schedule(rounds=6, slot_s=1.0, warmup=1, budget_s=budget, least_rounds=2)
    assert interleave({"a": world.call("a", 3.0)}, [(0,)], schedule, world.clock).rounds == rounds


def test_median_and_quartiles() -> None:
    timing = Timing((5.0, 1.0, 2.0, 100.0, 3.0))
    assert timing.median == 3.0
    assert timing.quartiles == (2.0, 5.0)
    assert Timing((2.0,)).quartiles == (2.0, 2.0)
