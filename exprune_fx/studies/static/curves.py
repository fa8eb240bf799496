"""Criteria beside each other: accuracy against parameters removed, before and after the same fine-tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from exprune_fx.report.layout import Section
from exprune_fx.static import Criterion, Expressiveness, Hybrid, Magnitude, Random, Scene, Taylor, shrink
from exprune_fx.static.criteria.base import Scores
from exprune_fx.static.folding import Constants
from exprune_fx.static.select import Ranking
from exprune_fx.studies.static.classifiers import Classifier, judge
from exprune_fx.studies.static.tables import percent, section
from exprune_fx.studies.subjects.training import train_classifier
from exprune_fx.zoo.training import Recipe

Say = Callable[[str], None]
SHARES = (0.25, 0.5, 0.75)
"""Weights of magnitude that `Hybrid` is tried with."""
HYBRID = "Hybrid("
DROPS = (0.01, 0.02)


@dataclass(frozen=True)
class Point:
    """One model shrunk by one criterion.

    Attributes:
        criterion: its name; "dense" where nothing was removed.
        params_removed: fraction of the dense parameters.
        flops_removed: fraction of the dense FLOPs.
        before: accuracy without fine-tuning: on the first test images, of the dense model on all.
        after: accuracy on all test images after fine-tuning; None where there was none.
        selection: accuracy on the selection images, after fine-tuning where there was any.
    """

    criterion: str
    params_removed: float
    flops_removed: float
    before: float
    after: float | None
    selection: float

    @property
    def accuracy(self) -> float:
        """In the end."""
        return self.before if self.after is None else self.after


@dataclass(frozen=True)
class Setting:
    """What every point has in common.

    Attributes:
        recipe: of the fine-tuning; None for none.
        ranking: all channels together, or the same fraction of every group.
        constants: what becomes of removed channels' constants.
        bfloat16: judge under bfloat16 autocast, the dense model too.
    """

    recipe: Recipe | None
    ranking: Ranking = "global"
    constants: Constants = "exact"
    bfloat16: bool = True


@dataclass(frozen=True)
class Curves:
    """All points of one model under one setting.

    Attributes:
        model: its name.
        counts: images for scoring, tuning, selection and test.
        setting: what all points have in common.
        points: the dense model first.
    """

    model: str
    counts: Mapping[str, int]
    setting: Setting
    points: tuple[Point, ...]

    @property
    def dense(self) -> Point:
        """The model as it was; `after` is what fine-tuning alone does to it."""
        return self.points[0]

    def names(self) -> tuple[str, ...]:
        """Criteria, in the order in which they ran."""
        return tuple(dict.fromkeys(point.criterion for point in self.points[1:]))

    def of(self, criterion: str) -> tuple[Point, ...]:
        """Its points, by what they removed."""
        return tuple(sorted((p for p in self.points if p.criterion == criterion), key=lambda p: p.params_removed))

    def removed_at(self, criterion: str, drop: float = 0.01, *, on_selection: bool = False) -> float | None:
        """Fraction of parameters removed where the curve falls `drop` below the dense model as it came.

        Linear between neighbouring points, the fine-tuned dense model being the first one of every curve.

        Args:
            criterion: whose curve.
            drop: as a fraction: 0.01 is a point.
            on_selection: judge on the selection images, against the dense model after the same fine-tuning.

        Returns:
            The fraction; None where the curve does not fall so far, or starts below.
        """
        start = self.dense
        goal = (start.selection if on_selection else start.before) - drop
        curve = [(p.params_removed, p.selection if on_selection else p.accuracy) for p in (start, *self.of(criterion))]
        for (x0, y0), (x1, y1) in pairwise(curve):
            if y0 >= goal > y1:
                return x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
        return None

    def best_hybrid(self, drop: float = 0.01) -> str | None:
        """The hybrid that removes most at a drop on the selection images; of those that never fall so far, the best."""
        found: dict[str, tuple[float, float]] = {}
        for name in self.names():
            if not name.startswith(HYBRID):
                continue
            last = self.of(name)[-1]
            removed = self.removed_at(name, drop, on_selection=True)
            if removed is None and last.selection >= self.dense.selection - drop:
                removed = math.inf  # further than was tried
            if removed is not None:
                found[name] = removed, last.selection
        return max(found, key=lambda name: found[name]) if found else None

    def to_dict(self, drops: Sequence[float] = DROPS) -> dict[str, Any]:
        """Plain data, with what each curve removes at some drops."""
        return asdict(self) | {
            "params_removed_at_drop": {
                f"{drop:g}": {name: self.removed_at(name, drop) for name in self.names()} for drop in drops
            },
            "hybrid_chosen_on_selection": {f"{drop:g}": self.best_hybrid(drop) for drop in drops},
        }


class Remembered:
    """A criterion that is asked once: for one-shot removals from the same trained model, again and again."""

    def __init__(self, criterion: Criterion) -> None:
        self._criterion = criterion
        self._scores: Scores | None = None

    def scores(self, scene: Scene) -> Scores:
        """The scores of the first scene."""
        if self._scores is None:
            self._scores = self._criterion.scores(scene)
        return self._scores


def criteria(subject: Classifier, seed: int = 0, shares: Iterable[float] = SHARES) -> dict[str, Criterion]:
    """Every criterion that the curves compare, by name; those that need data share the scoring images."""
    expressiveness = Remembered(Expressiveness(subject.scoring.inputs()))
    return {
        "Expressiveness": expressiveness,
        "Magnitude": Magnitude(),
        "Taylor": Remembered(Taylor(subject.scoring.pairs(100), _cross_entropy)),
        "Random": Random(seed),
        **{f"{HYBRID}{a:g})": Hybrid(a, expressiveness) for a in shares},
    }


def _cross_entropy(model: Callable[..., Any], batch: tuple[Tensor, Tensor]) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def run_curves(
    subject: Classifier,
    compared: Mapping[str, Criterion],
    removed: Sequence[float],
    setting: Setting,
    say: Say,
    on_point: Callable[[Curves], None] = lambda _: None,
) -> Curves:
    """Shrinks a fresh model by each criterion to each size, fine-tunes each alike, and judges before and after.

    Args:
        subject: model and data.
        compared: criteria by name.
        removed: fractions of the parameters.
        setting: what all points have in common.
        say: told what is being done.
        on_point: given all that there is so far, after every point.
    """
    counts = {name: len(getattr(subject, name)) for name in ("scoring", "tuning", "selection", "glance", "test")}
    found = Curves(subject.name, counts, setting, ())
    wanted = [("dense", 0.0), *((name, fraction) for fraction in removed for name in compared)]
    for index, (name, fraction) in enumerate(wanted):
        say(f"{subject.name} {index + 1}/{len(wanted)}: {name}, {100 * fraction:.0f} % of the parameters removed")
        found = replace(found, points=(*found.points, _point(subject, name, compared.get(name), fraction, setting)))
        on_point(found)
    return found


def _point(subject: Classifier, name: str, criterion: Criterion | None, fraction: float, setting: Setting) -> Point:
    model = subject.make()
    params = flops = 0.0
    if criterion is not None:
        report = shrink(
            model,
            subject.args,
            criterion=criterion,
            target_params=1 - fraction,
            ranking=setting.ranking,
            constants=setting.constants,
        ).report
        params, flops = report.params_removed, report.flops_removed
    before = judge(model, subject.glance if criterion is not None else subject.test, bfloat16=setting.bfloat16)
    after = None
    if setting.recipe is not None:
        train_classifier(model, subject.tuning.images, subject.tuning.labels, setting.recipe, lambda _: None)
        after = judge(model, subject.test, bfloat16=setting.bfloat16)
    return Point(name, params, flops, before, after, judge(model, subject.selection, bfloat16=setting.bfloat16))


def curves_sections(curves: Curves, drops: Sequence[float] = DROPS) -> list[Section]:
    """Every point, and what each curve removes at some drops."""
    rows = [
        (
            point.criterion,
            percent(point.params_removed, 1),
            percent(point.flops_removed, 1),
            percent(point.before),
            percent(point.after),
            percent(point.selection),
        )
        for point in curves.points
    ]
    titles = ("criterion", ">parameters removed", ">FLOPs removed", ">before", ">after", ">selection")
    return [section(f"Curves: {curves.model}", _about(curves), titles, rows), _crossings(curves, drops)]


def _about(curves: Curves) -> str:
    counts, setting = curves.counts, curves.setting
    recipe = setting.recipe
    tuned = "Nothing was fine-tuned."
    if recipe is not None:
        tuned = (
            f"After: fine-tuned for {recipe.epochs} epoch of {counts['tuning']:,} training images in batches of "
            f"{recipe.batch_size}, one cycle to {recipe.peak_lr:g}, seed {recipe.seed}: the same images in the same "
            "order for every model."
        )
    return (
        f"All figures in %. Accuracy before on {counts['glance']:,}, after on {counts['test']:,} images that the dense "
        f"model never saw; selection: on {counts['selection']:,} training images, in the end. {tuned} Criteria saw "
        f"{counts['scoring']:,} training images; ranking {setting.ranking}, constants {setting.constants}"
        f"{', judged under bfloat16 autocast' if setting.bfloat16 else ''}."
    )


def _crossings(curves: Curves, drops: Sequence[float]) -> Section:
    chosen = ", ".join(f"{100 * drop:g}: {curves.best_hybrid(drop) or 'none'}" for drop in drops)
    rows = [(name, *(percent(curves.removed_at(name, drop), 1) for drop in drops)) for name in curves.names()]
    return section(
        f"Parameters removed at a drop: {curves.model}",
        f"In %, where each curve falls so many points below the dense model as it came ({percent(curves.dense.before)} "
        "% before any fine-tuning), linear between points; '-' where it does not. The hybrid that removes most on the "
        f"{curves.counts['selection']:,} selection images, by points of drop: {chosen}.",
        ("criterion", *(f">{100 * drop:g} points" for drop in drops)),
        rows,
    )
