"""`optimize` beside a search over guards by trials, on the same calibration, selection and test examples.

Run it: ``python -m exprune_fx.studies.paper.against --help``.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from exprune_fx.graph import capture
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.plan import Plan
from exprune_fx.studies.subjects import Subject
from exprune_fx.studies.subjects.cifar import Sizes
from exprune_fx.studies.subjects.metrics import drop_interval
from exprune_fx.studies.subjects.vgg11 import make_vgg11
from exprune_fx.tuning import optimize, search_guards

Say = Callable[[str], None]


@dataclass(frozen=True)
class Found:
    """What one method found within a drop.

    Attributes:
        method: in words.
        plans: that it evaluated.
        wall_s: of the whole search, calibration too.
        cpu_s: likewise, of all threads.
        selection_drop: of the metric, as a fraction.
        test_drop: likewise, on examples that chose nothing.
        interval: that the latter lies in with 95 % confidence, by the paired bootstrap.
        fraction_removed: share of the FLOPs, tests counted, on the first test examples.
    """

    method: str
    plans: int
    wall_s: float
    cpu_s: float
    selection_drop: float
    test_drop: float
    interval: tuple[float, float]
    fraction_removed: float

    def __str__(self) -> str:
        """One line, drops in points."""
        low, high = (100 * end for end in self.interval)
        return (
            f"{self.method:<34}{self.plans:>6}{self.wall_s:>9.0f}{self.cpu_s:>9.0f}{100 * self.selection_drop:>11.2f}"
            f"{100 * self.test_drop:>9.2f}   {low:+.2f} to {high:+.2f}{100 * self.fraction_removed:>11.1f} %"
        )


HEADER = f"{'':<34}{'plans':>6}{'wall s':>9}{'CPU s':>9}{'selecting':>11}{'judged':>9}   {'95 % interval':<16}removed"


@dataclass(eq=False)
class Against:
    """The searches of one subject.

    Attributes:
        subject: model and data.
        max_drop: allowed, as a fraction.
        folder: keeps every evaluation.
        say: told what is being done.
    """

    subject: Subject
    max_drop: float
    folder: Path
    say: Say
    _started: tuple[float, float] = field(default=(0.0, 0.0))

    def by_optimize(self) -> Found:
        """`exprune_fx.optimize`."""
        self._start()
        best = optimize(
            self.subject.model,
            self.subject.args,
            dynamic_shapes=self.subject.dynamic_shapes,
            batches=self.subject.calibration,
            evaluate=self._evaluate,
            max_drop=self.max_drop,
            study=self.folder / "optimize.jsonl",
        )
        return self._judged("optimize", best.report.evaluations - 1, best.plan, best.report.selection.drop)

    def by_trials(self, guard: Any, trials: int) -> Found:
        """`exprune_fx.search_guards`, the best within the drop of so many trials."""
        self._start()
        gm = capture(self.subject.model, self.subject.args, dynamic_shapes=self.subject.dynamic_shapes)
        storage = self.folder / "trials.db"
        found = search_guards(gm, self.subject.calibration, self._evaluate, guard, trials=trials, storage=storage)
        best = found.best(self.max_drop)
        plan, drop = (Plan(), 0.0) if best is None else (found.plan(best), best.drop)
        return self._judged(f"search_guards, {guard}", len(found.trials), plan, drop)

    def _start(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def _evaluate(self, model: Any) -> float | torch.Tensor:
        said = self.subject.selection(model)
        wall, cpu = self._spent()
        self.say(f"evaluated after {wall:.0f} s, {cpu:.0f} s of CPU")
        return said

    def _spent(self) -> tuple[float, float]:
        wall, cpu = self._started
        return time.perf_counter() - wall, time.process_time() - cpu

    def _judged(self, method: str, plans: int, plan: Plan, selection_drop: float) -> Found:
        wall, cpu = self._spent()
        self.say(f"{method}: judged")
        test = self.subject.test
        gm = capture(self.subject.model, self.subject.args, dynamic_shapes=self.subject.dynamic_shapes)
        staged = transform(gm, plan)
        dense, each = test.each(gm), test.each(staged)
        drop = test.metric.value(dense) - test.metric.value(each)
        removed = measure(staged, test.batches[:4]).fraction_removed if plan.staged else 0.0
        interval = drop_interval(test.metric, dense, each)
        return Found(method, plans, wall, cpu, selection_drop, drop, interval, removed)


def main() -> None:
    """VGG11-BN on CIFAR-10."""
    parser = argparse.ArgumentParser(description="optimize beside search_guards, on VGG11-BN and CIFAR-10")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="keeps every evaluation; goes on from it")
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--guard", action="append", help="of search_guards; may repeat; calibrated by default")
    parser.add_argument("--calibration", type=int, default=1000)
    parser.add_argument("--selection", type=int, default=1000)
    parser.add_argument("--test", type=int, default=10_000)
    parser.add_argument("--max-drop", type=float, default=0.01)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    given.folder.mkdir(parents=True, exist_ok=True)
    subject = make_vgg11(given.data_dir, given.weights, Sizes(given.calibration, given.selection, given.test))
    against = Against(subject, given.max_drop, given.folder, lambda text: print(text, flush=True))
    print(f"{subject.title}; {subject.about}; a drop of at most {100 * given.max_drop:g} points")
    found = [against.by_optimize()]
    print(HEADER, found[0], asdict(found[0]), sep="\n", flush=True)
    for guard in given.guard or ["calibrated"]:
        found.append(against.by_trials(guard, given.trials))
        print(HEADER, *found, asdict(found[-1]), sep="\n", flush=True)


if __name__ == "__main__":
    main()
