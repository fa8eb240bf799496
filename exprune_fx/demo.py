"""The demonstration: shipped models on shipped images, dense against staged, and guards beside each other."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.export import Dim

from exprune_fx.calibration import calibrate
from exprune_fx.calibration.search import HeadChoice
from exprune_fx.errors import DataError
from exprune_fx.graph import capture, copy_graph_module
from exprune_fx.guards import Bound, Calibrated, FinitePopulation, Guard, StatsTest, Threshold
from exprune_fx.measurement import Measurement, measure
from exprune_fx.pipeline import RECORD_KEY, record_of, transform
from exprune_fx.plan import Plan
from exprune_fx.report import Explanation, explain
from exprune_fx.report.facts import claim_text
from exprune_fx.zoo import accuracy, load, load_fashion_mnist, load_sample, names

DEFAULT_BUDGET = 0.02
CALIBRATION_BATCH = 250
TEST_BATCH = 250

Say = Callable[[str], None]
Candidate = tuple[HeadChoice, Guard]


def few_candidates() -> tuple[Candidate, ...]:
    """What is compared by default, in seconds: the paper's test."""
    return (("prefix", StatsTest(0.01)),)


def all_candidates() -> tuple[Candidate, ...]:
    """What ``--curves`` compares: each rule at several settings."""
    budgets, alphas, thresholds = (0.005, 0.02, 0.05, 0.1), (0.001, 0.01, 0.05, 0.2), (-0.1, -0.03, 0.0)
    return (
        *(("prefix", Calibrated(budget)) for budget in budgets),
        *(("principal", Calibrated(budget)) for budget in budgets),
        *(("prefix", StatsTest(alpha)) for alpha in alphas),
        *(("prefix", FinitePopulation(alpha)) for alpha in alphas),
        *(("prefix", Threshold(threshold)) for threshold in thresholds),
        ("prefix", Bound()),
        ("principal", Bound()),
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

    @property
    def calibration_examples(self) -> int:
        """How many images there are to calibrate on."""
        return sum(len(images) for (images,) in self.calibration)


@dataclass(frozen=True)
class Point:
    """One rule at one setting, really executed.

    Attributes:
        head: what the guard looks at: prefix, principal, or auto (the cheaper of both for each site).
        guard: the stop rule in words.
        claim: what its savings rest on, in words.
        accuracy: of the staged model, a fraction.
        drop_points: dense minus staged accuracy, in percentage points.
        measurement: what was counted on the same images.
    """

    head: str
    guard: str
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
        staged: the model under ``Calibrated(budget)`` with the cheaper head for each site.
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
    chosen, staged = _point(gm, "auto", Calibrated(budget), data, dense)
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
    for head, guard in candidates:
        say(f"{name}: {head} {guard}")
        yield _point(gm, head, guard, data, dense)[0]


def _point(
    gm: fx.GraphModule, head: HeadChoice, guard: Guard, data: Data, dense: float
) -> tuple[Point, fx.GraphModule]:
    plan: Plan = calibrate(gm, data.calibration, guard, head=head)
    staged = transform(gm, plan)
    measurement, predictions = _measure_and_predict(staged, data.test_batches)
    got = float((predictions == data.labels).double().mean())
    claim = claim_text(guard, plan.examples)
    return Point(head, str(guard), claim, got, 100 * (dense - got), measurement), staged


def _measure_and_predict(staged: fx.GraphModule, batches: list[tuple[Tensor]]) -> tuple[Measurement, Tensor]:
    """One execution of the staged graph for both, by a copy that also notes which class it predicts."""
    recording = copy_graph_module(staged)
    recording.meta[RECORD_KEY] = record_of(staged)
    predictions: list[Tensor] = []

    def note(logits: Tensor) -> None:
        predictions.append(logits.argmax(1))

    output = next(iter(reversed(recording.graph.nodes)))
    with recording.graph.inserting_before(output):
        recording.graph.call_function(note, (output.args[0][0],))
    return measure(recording, batches), torch.cat(predictions)
