"""Times walks of several steps in turn: what each step takes when the others have just used the caches."""

from __future__ import annotations

import gc
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], float]


class Stopwatch:
    """Seconds since it was made, by the wall and of this process's threads together."""

    def __init__(self) -> None:
        self._wall_s, self._cpu_s = time.perf_counter(), time.process_time()

    @property
    def spent(self) -> dict[str, float]:
        """``wall_s`` and ``cpu_s`` so far."""
        return {"wall_s": time.perf_counter() - self._wall_s, "cpu_s": time.process_time() - self._cpu_s}


@dataclass(frozen=True)
class Step:
    """One timed call of a walk.

    Attributes:
        key: under which its times are kept; steps of several walks may share one.
        prepare: gives the call's arguments, in the round that it is given; not timed.
        run: what is timed.
    """

    key: Hashable
    prepare: Callable[[int], tuple[Any, ...]]
    run: Callable[..., object]


@dataclass(frozen=True)
class Rounds:
    """How long to measure.

    Attributes:
        most: rounds; fewer, but at least `least`, where they would take longer than `budget_s`.
        budget_s: seconds for all rounds.
        least: never fewer than these.
    """

    most: int = 31
    budget_s: float = 20.0
    least: int = 5


@dataclass(frozen=True)
class Pair:
    """Two steps that had their turns side by side: what slows the machine for a while slows both, not their ratio.

    Attributes:
        base: seconds in each round.
        rival: seconds in the same rounds.
    """

    base: tuple[float, ...]
    rival: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds of rival over base: below 1 the rival is faster."""
        return statistics.median(rival / base for base, rival in zip(self.base, self.rival, strict=True))

    @property
    def rounds_faster(self) -> int:
        """In how many rounds the rival was faster."""
        return sum(rival < base for base, rival in zip(self.base, self.rival, strict=True))


def medians(walks: Sequence[Sequence[Step]], rounds: Rounds, clock: Clock = time.perf_counter) -> dict[Hashable, float]:
    """Median seconds of every step; arguments as in `sample`, where it is said how steps are timed."""
    return {key: statistics.median(taken) for key, taken in sample(walks, rounds, clock).items()}


def sample(
    walks: Sequence[Sequence[Step]], rounds: Rounds, clock: Clock = time.perf_counter
) -> dict[Hashable, tuple[float, ...]]:
    """Seconds of every step, round by round.

    Each round takes each walk in turn, twice: once untimed, so that the caches hold what this walk leaves there and
    not what another did, and once with the clock at every step. No step is called twice in a row, so that it finds its
    weights where a model that runs again and again finds them, not in the nearest cache.

    Args:
        walks: each a sequence of steps.
        rounds: how long.
        clock: seconds; replaced in tests.
    """
    samples: defaultdict[Hashable, list[float]] = defaultdict(list)
    start = clock()
    with _no_collection():
        for index in range(rounds.most):
            for walk in walks if index % 2 == 0 else reversed(walks):
                for step in walk:
                    step.run(*step.prepare(index))
                for step in walk:
                    samples[step.key].append(_timed(step, index, clock))
            if index + 1 >= rounds.least and (clock() - start) * (index + 2) / (index + 1) > rounds.budget_s:
                break
    return {key: tuple(taken) for key, taken in samples.items()}


def _timed(step: Step, index: int, clock: Clock) -> float:
    arguments = step.prepare(index)
    start = clock()
    step.run(*arguments)
    return clock() - start


@contextmanager
def _no_collection() -> Iterator[None]:
    """No garbage collection in the middle of a step."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
