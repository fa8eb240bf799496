"""Both prunings on one model: channels removed for good, neurons stopped per input, and both: FLOPs, accuracy, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim

from exprune_fx.bench.timing import Interleaved, Schedule, interleave
from exprune_fx.calibration import calibrate
from exprune_fx.compiling import Runnable, compiled
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.measurement import measure
from exprune_fx.pipeline import transform
from exprune_fx.report.layout import Section
from exprune_fx.static import Criterion, shrink
from exprune_fx.studies.static.classifiers import Classifier, judge
from exprune_fx.studies.static.tables import percent, section
from exprune_fx.studies.subjects.training import train_classifier
from exprune_fx.zoo.training import Recipe

Say = Callable[[str], None]
FORMS = ("dense", "shrunk", "staged", "both")
TURNS = 16
"""Inputs that take turns where time is measured."""


@dataclass(frozen=True)
class Settings:
    """How.

    Attributes:
        target_flops: fraction that shrinking leaves.
        recipe: of the fine-tuning after shrinking; None for none.
        budget: of the calibrated guard.
        objective: flops or latency; see `exprune_fx.calibrate`.
        inner: settings of torch.compile to time each form in, beside eager mode for the models without stages.
        batch: images a call, where time is measured.
        measured: test images on which FLOPs are counted.
    """

    target_flops: float = 0.6
    recipe: Recipe | None = None
    budget: float = 0.02
    objective: str = "flops"
    inner: tuple[str, ...] = ("inductor_freezing",)
    batch: int = 1
    measured: int = 500


@dataclass(frozen=True)
class Form:
    """One of the four.

    Attributes:
        name: dense, shrunk, staged or both.
        params: how many it has.
        flops: of one image, tests included, on the measured images.
        accuracy: on the test images.
        seconds: median of a call, in the best setting.
        setting: which that is.
        sites: how many are staged.
    """

    name: str
    params: int
    flops: float
    accuracy: float
    seconds: float
    setting: str
    sites: int


@dataclass(frozen=True)
class Stacked:
    """All four.

    Attributes:
        model: its name.
        settings: how.
        threads: of torch.
        test: images that judged.
        tuned_on: images of the fine-tuning; 0 for none.
        rounds: samples of each time.
        forms: in the order of `FORMS`.
    """

    model: str
    settings: Settings
    threads: int
    test: int
    tuned_on: int
    rounds: int
    forms: tuple[Form, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def run_stacked(
    subject: Classifier, criterion: Criterion, settings: Settings, say: Say, schedule: Schedule | None = None
) -> Stacked:
    """Shrinks, fine-tunes and stages, and measures each step beside the dense model.

    Args:
        subject: model and data.
        criterion: by which it is shrunk.
        settings: how.
        say: told what is being done.
        schedule: how long to time.
    """
    dense, small = subject.make(), subject.make()
    say("shrinking")
    shrink(small, subject.args, criterion=criterion, target_flops=settings.target_flops)
    if settings.recipe is not None:
        say("fine-tuning the shrunk model")
        train_classifier(small, subject.tuning.images, subject.tuning.labels, settings.recipe, say)
    models = {"dense": dense, "shrunk": small.eval()}
    staged = {
        "staged": _staged(dense, subject, settings, say),
        "both": _staged(models["shrunk"], subject, settings, say),
    }
    timed = _timed(models, {name: graph for name, (graph, _) in staged.items()}, subject, settings, say, schedule)
    say("counting FLOPs, and judging")
    counted = {name: measure(graph, subject.test[: settings.measured].inputs()) for name, (graph, _) in staged.items()}
    flops = {
        "dense": counted["staged"].flops_dense / counted["staged"].examples,
        "shrunk": counted["both"].flops_dense / counted["both"].examples,
        **{name: (each.flops_staged + each.flops_overhead) / each.examples for name, each in counted.items()},
    }
    forms = []
    for name in FORMS:
        runs = models[name] if name in models else staged[name][0]
        seconds, setting = _best(timed, name)
        source = models["dense" if name in ("dense", "staged") else "shrunk"]
        forms.append(
            Form(
                name=name,
                params=sum(parameter.numel() for parameter in source.parameters()),
                flops=flops[name],
                accuracy=judge(runs, subject.test, bfloat16=False),
                seconds=seconds,
                setting=setting,
                sites=staged[name][1] if name in staged else 0,
            )
        )
    tuned = len(subject.tuning) if settings.recipe is not None else 0
    return Stacked(
        subject.name, settings, torch.get_num_threads(), len(subject.test), tuned, timed.rounds, tuple(forms)
    )


def _staged(model: nn.Module, subject: Classifier, settings: Settings, say: Say) -> tuple[fx.GraphModule, int]:
    """The staged graph of a model, and how many of its sites are staged."""
    say("calibrating")
    graph = capture(model, subject.args, dynamic_shapes=({0: Dim.AUTO},))
    plan = calibrate(
        graph,
        subject.scoring.inputs(),
        Calibrated(settings.budget),
        objective=settings.objective,
        latency_batch=(subject.scoring.images[: settings.batch],),
    )
    return transform(graph, plan), len(plan.staged)


def _timed(
    models: Mapping[str, nn.Module],
    graphs: Mapping[str, fx.GraphModule],
    subject: Classifier,
    settings: Settings,
    say: Say,
    schedule: Schedule | None,
) -> Interleaved:
    """Every form in every setting, in one run; columns are called ``form/setting``."""
    torch._dynamo.reset()  # what earlier runs compiled; never between columns, which would be compiled again
    inputs = [(images.clone(),) for images in subject.test.images[: TURNS * settings.batch].split(settings.batch)]
    columns = [Runnable(f"{name}/eager", model) for name, model in models.items()]
    for name, form in {**models, **graphs}.items():
        for inner in settings.inner:
            say(f"compiling {name} for {inner}")
            columns.append(compiled(form, f"{name}/{inner}", inner, inputs[0]))
    say("timing")
    with torch.no_grad():
        timed = interleave({column.name: column.call for column in columns}, inputs, schedule or Schedule())
    for column in columns:
        column.check()
    return timed


def _best(timed: Interleaved, name: str) -> tuple[float, str]:
    """The fastest setting of a form: its median seconds, and which it is."""
    own = {
        column.partition("/")[2]: timing.median
        for column, timing in timed.columns.items()
        if column.startswith(f"{name}/")
    }
    setting = min(own, key=lambda each: own[each])
    return own[setting], setting


def stacked_section(found: Stacked) -> Section:
    """A row for each of the four."""
    dense, settings = found.forms[0], found.settings
    tuned = f"fine-tuned on {found.tuned_on:,} training images after shrinking" if found.tuned_on else "no fine-tuning"
    rows = [
        (
            form.name,
            f"{form.params / 1e6:.2f} M",
            f"{form.flops / 1e6:,.1f} M",
            percent(1 - form.flops / dense.flops, 1),
            percent(form.accuracy),
            f"{1e3 * form.seconds:.2f}",
            f"{dense.seconds / form.seconds:.2f}",
            form.setting,
        )
        for form in found.forms
    ]
    return section(
        f"Shrunk and staged: {found.model}",
        f"Shrunk to {100 * settings.target_flops:.0f} % of the FLOPs, {tuned}; staged by "
        f"Calibrated({settings.budget:g}), objective {settings.objective}, without fine-tuning afterwards. "
        f"FLOPs of one image, tests included, on {settings.measured:,} test images; "
        f"accuracy in % of {found.test:,} images that the dense model never saw. "
        f"Time: median ms of a call of {settings.batch} in the best of eager mode (of what is not staged), "
        f"{' and '.join(settings.inner)}, interleaved in one run of {found.rounds} rounds, "
        f"{found.threads} threads; ratio: the dense model's time over it.",
        ("", ">parameters", ">FLOPs", ">removed, %", ">accuracy", ">ms", ">ratio", "setting"),
        rows,
    )
