"""Times several ways to compute the same thing side by side, so that none has a quieter machine than another."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Call = Callable[..., object]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Schedule:
    """How long to measure.

    Attributes:
        rounds: slots of each column; fewer, but at least `least_rounds`, where they would take longer than `budget_s`.
        slot_s: what the calls of one slot should take together, seconds: short calls are timed several at once.
        warmup: untimed calls of each column before the first round.
        budget_s: seconds for all rounds of all columns of one row.
        least_rounds: never fewer than these.
        lead_s: what the untimed calls that a slot starts with may take, seconds, to be made on every input; where they
            would take longer, one is made.
    """

    rounds: int = 41
    slot_s: float = 0.004
    warmup: int = 10
    budget_s: float = 40.0
    least_rounds: int = 9
    lead_s: float = 0.02


QUICK = Schedule(rounds=3, slot_s=0.0005, warmup=2, budget_s=2.0, least_rounds=2)


@dataclass(frozen=True)
class Timing:
    """One column's seconds a call.

    Attributes:
        samples: one number a round: a slot's time over its calls.
    """

    samples: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle sample."""
        return statistics.median(self.samples)

    @property
    def quartiles(self) -> tuple[float, float]:
        """A quarter of the samples lies below the first, a quarter above the second."""
        if len(self.samples) < 2:
            return self.samples[0], self.samples[0]
        low, _, high = statistics.quantiles(self.samples, n=4, method="inclusive")
        return low, high


@dataclass(frozen=True)
class Interleaved:
    """What `interleave` measured.

    Attributes:
        columns: by name.
        rounds: samples of each column.
        calls: calls in one slot.
    """

    columns: dict[str, Timing]
    rounds: int
    calls: int


def interleave(
    columns: Mapping[str, Call],
    inputs: Sequence[tuple[Any, ...]],
    schedule: Schedule,
    clock: Clock = time.perf_counter,
) -> Interleaved:
    """Times all columns in one run: in each round every column has one slot.

    The order rotates from round to round and runs backwards every other round, so that no column always follows the
    same one. All columns make the same calls on the same inputs, which take turns. A slot starts with calls that are
    not timed: they pay for what the other columns left in the caches, so that every column is timed as a model that
    runs again and again. A column may read other weights for each input, so where calls are short every input has its
    turn; where they are long, and what they read is more than the caches hold, one call is made, on the input before.

    Args:
        columns: what to call, by name; compiled and called once already.
        inputs: positional arguments to take in turn.
        schedule: how long.
        clock: seconds; replaced in tests.
    """
    estimates = {name: _warm_up(call, inputs, schedule.warmup, clock) for name, call in columns.items()}
    typical = statistics.median(estimates.values())
    calls = max(1, math.ceil(schedule.slot_s / typical)) if typical > 0 else 1
    lead = len(inputs) if typical * len(inputs) <= schedule.lead_s else 1
    round_s = sum(estimates.values()) * (calls + lead)
    affordable = int(schedule.budget_s / round_s) if round_s > 0 else schedule.rounds
    rounds = max(min(schedule.rounds, affordable), schedule.least_rounds)
    samples: dict[str, list[float]] = {name: [] for name in columns}
    with _no_collection():
        for index, order in enumerate(orders(list(columns), rounds)):
            turn = [inputs[(index * calls + call) % len(inputs)] for call in range(-lead, calls)]
            for name in order:
                samples[name].append(_slot(columns[name], turn[:lead], turn[lead:], clock))
    return Interleaved({name: Timing(tuple(got)) for name, got in samples.items()}, rounds, calls)


def orders(names: Sequence[str], rounds: int) -> Iterator[list[str]]:
    """The order of each round: rotated by one each time, every other one backwards."""
    for index in range(rounds):
        first = index % len(names)
        order = [*names[first:], *names[:first]]
        yield order[::-1] if index % 2 else order


def _warm_up(call: Call, inputs: Sequence[tuple[Any, ...]], times: int, clock: Clock) -> float:
    """Seconds of one warm call: the shortest of some."""
    best = math.inf
    for index in range(max(times, 1)):
        start = clock()
        call(*inputs[index % len(inputs)])
        best = min(best, clock() - start)
    return best


def _slot(call: Call, lead: Sequence[tuple[Any, ...]], timed: Sequence[tuple[Any, ...]], clock: Clock) -> float:
    for args in lead:
        call(*args)
    start = clock()
    for args in timed:
        call(*args)
    return (clock() - start) / len(timed)


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the middle of a slot."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
