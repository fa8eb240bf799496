"""The demonstration: shipped models on shipped images, dense against staged, and guards beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, fx
from torch.export import Dim

from exprune_fx.calibration import calibrate
from exprune_fx.calibration.request import HeadChoice
from exprune_fx.errors import DataError
from exprune_fx.graph import capture
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.measurement import Measurement, measure
from exprune_fx.pipeline import transform
from exprune_fx.report import Explanation, explain
from exprune_fx.report.facts import claim_text
from exprune_fx.zoo import accuracy, load, load_fashion_mnist, load_sample, names

CALIBRATION_BATCH = 250
TEST_BATCH = 250

ONE_STAGE = (1 / 4,)
THREE_STAGES = (1 / 8, 1 / 4, 1 / 2)

Say = Callable[[str], None]


class Candidate(NamedTuple):
    """A rule to try: what it looks at, the rule, and at which fractions of the terms it tests."""

    head: HeadChoice
    guard: Guard
    stages: tuple[float, ...] = THREE_STAGES


def few_candidates() -> tuple[Candidate, ...]:
    """What is compared by default, in seconds: the paper's two rules."""
    return (Candidate("prefix", StatsTest(0.1), ONE_STAGE), Candidate("prefix", Threshold(-0.003), ONE_STAGE))


def all_candidates() -> tuple[Candidate, ...]:
    """What ``--curves`` compares: each rule at several settings, those of the paper with its one test a neuron."""
    budgets, alphas, thresholds = (0.005, 0.01, 0.02, 0.05), (0.01, 0.05, 0.1, 0.2), (-0.01, -0.003, 0.0)
    return (
        *(Candidate("prefix", Calibrated(budget)) for budget in budgets),
        *(Candidate("principal", Calibrated(budget)) for budget in budgets),
        *(Candidate("prefix", StatsTest(alpha), ONE_STAGE) for alpha in alphas),
        *(Candidate("prefix", FinitePopulation(alpha), ONE_STAGE) for alpha in alphas),
        *(Candidate("prefix", Threshold(threshold), ONE_STAGE) for threshold in thresholds),
        Candidate("prefix", Bound()),
        Candidate("principal", Bound()),
    )


@dataclass(frozen=True, eq=False)
class Data:
    """Images to calibrate on and images to test on, float32, N x 1 x 28 x 28, with their labels.

    Attributes:
        calibration: 1-tuples of images, the model's arguments.
        images: to test on; the models were not trained on them.
        labels: int64, of the test images.
        source: where the test images come from, in words.
    """

    calibration: list[tuple[Tensor]]
    images: Tensor
    labels: Tensor
    source: str

    @property
    def test_batches(self) -> list[tuple[Tensor]]:
        """The test images as 1-tuples."""
        return [(images,) for images in self.images.split(TEST_BATCH)]

    def calibration_for(self, guard: Guard) -> list[tuple[Tensor]]:
        """All calibration images where there are thresholds to fit, else one batch: enough to order terms by."""
        return self.calibration if isinstance(guard, Calibrated) else self.calibration[:1]

    @property
    def calibration_examples(self) -> int:
        """How many images there are to calibrate on."""
        return sum(len(images) for (images,) in self.calibration)


@dataclass(frozen=True)
class Point:
    """One rule at one setting, really executed.

    Attributes:
        head: what the guard looks at: prefix, principal, coded, or auto (the cheaper of the first two for each site).
        guard: the stop rule in words.
        stages: fractions of the terms at which a prefix is tested.
        claim: what its savings rest on, in words.
        accuracy: of the staged model, a fraction.
        drop_points: dense minus staged accuracy, in percentage points.
        measurement: what was counted on the same images.
    """

    head: str
    guard: str
    stages: tuple[float, ...]
    claim: str
    accuracy: float
    drop_points: float
    measurement: Measurement


@dataclass(frozen=True)
class ModelResult:
    """One model.

    Attributes:
        name: in the zoo.
        examples: test images.
        accuracy_dense: of the model as it ships, a fraction.
        staged: the model under ``Calibrated(budget)`` with principal heads.
        explanation: of the staged graph, as measured.
        curves: other rules beside it.
    """

    name: str
    examples: int
    accuracy_dense: float
    staged: Point
    explanation: Explanation
    curves: tuple[Point, ...]


def check_names(wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The zoo models to run: all of them by default.

    Raises:
        DataError: the zoo has no model of that name.
    """
    for name in wanted or ():
        if name not in names():
            raise DataError(f"the zoo has no model {name!r}", hint=f"use one of {', '.join(names())}")
    return tuple(wanted or names())


def load_data(data_dir: str | os.PathLike[str] | None = None) -> Data:
    """The shipped images; with a folder, all 10,000 test images from there instead of the 2,000 that ship.

    Raises:
        DataError: the folder does not hold Fashion-MNIST, or the installation lacks its images.
    """
    sample = load_sample()
    calibration = [(images,) for images in sample.calibration_images.split(CALIBRATION_BATCH)]
    if data_dir is None:
        source = f"the first {len(sample.test_labels):,} test images of Fashion-MNIST (they ship with the library)"
        return Data(calibration, sample.test_images, sample.test_labels, source)
    images, labels = load_fashion_mnist(data_dir, "test")
    return Data(calibration, images, labels, f"all {len(labels):,} test images of Fashion-MNIST")


def run_model(name: str, data: Data, budget: float, candidates: tuple[Candidate, ...], say: Say) -> ModelResult:
    """Calibrates, stages, executes and measures one model.

    Args:
        name: of a zoo model.
        data: images to calibrate on and to test on.
        budget: share of each neuron's energy that calibration may lose.
        candidates: what to compare with.
        say: told what is being done.
    """
    say(f"{name}: dense")
    model = load(name)
    gm = capture(model, (data.images[:2],), dynamic_shapes=({0: Dim.AUTO},))
    dense = accuracy(model, data.images, data.labels)
    say(f"{name}: {Calibrated(budget)}")
    chosen, staged = _point(gm, Candidate("principal", Calibrated(budget)), data, dense)
    return ModelResult(
        name=name,
        examples=len(data.labels),
        accuracy_dense=dense,
        staged=chosen,
        explanation=explain(staged, chosen.measurement),
        curves=tuple(_points(gm, name, data, dense, candidates, say)),
    )


def _points(
    gm: fx.GraphModule, name: str, data: Data, dense: float, candidates: tuple[Candidate, ...], say: Say
) -> Iterator[Point]:
    for candidate in candidates:
        say(f"{name}: {candidate.head} {candidate.guard}")
        yield _point(gm, candidate, data, dense)[0]


def _point(gm: fx.GraphModule, candidate: Candidate, data: Data, dense: float) -> tuple[Point, fx.GraphModule]:
    head, guard, stages = candidate
    plan = calibrate(gm, data.calibration_for(guard), guard, stages, head=head)
    staged = transform(gm, plan, lower=False)
    predictions: list[Tensor] = []
    measurement = measure(staged, data.test_batches, on_output=lambda logits: predictions.append(logits.argmax(1)))
    got = float((torch.cat(predictions) == data.labels).double().mean())
    claim = claim_text(guard, plan.examples)
    return Point(head, str(guard), stages, claim, got, 100 * (dense - got), measurement), staged
