"""What ``exprune experiment`` does: finds models and data, runs one experiment, and gives its tables and figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exprune_fx.bench import vgg
from exprune_fx.cli.names import CLASSIFIERS
from exprune_fx.errors import DataError
from exprune_fx.report.layout import Section
from exprune_fx.static import Criterion, Expressiveness, Hybrid
from exprune_fx.static.folding import Constants
from exprune_fx.static.select import Ranking
from exprune_fx.studies.static.architectures import ARCHITECTURES
from exprune_fx.studies.static.architectures.vit import IMAGE
from exprune_fx.studies.static.classifiers import Classifier, Counts, cifar_vgg, fashion
from exprune_fx.studies.static.constants import Case, constants_section, run_constants
from exprune_fx.studies.static.curves import Curves, Setting, criteria, curves_sections, run_curves
from exprune_fx.studies.static.peers import peers_section, run_peers
from exprune_fx.studies.static.ranks import ranks_section, run_ranks
from exprune_fx.studies.static.stacked import Settings, run_stacked, stacked_section
from exprune_fx.studies.static.yolo import run_yolo, yolo_sections
from exprune_fx.zoo.training import Recipe

Say = Callable[[str], None]
Save = Callable[[dict[str, Any]], None]
PEER_IMAGE = 64


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for.

    Attributes:
        models: names, of those that the experiment knows; the experiment's own choice where empty.
        data_dir: folder of Fashion-MNIST's files and of CIFAR-10.
        checkpoints: folder of trained weights, for VGG11-BN.
        removed: fractions of the parameters that curves remove.
        criteria: names of those that curves compare; all where empty.
        ranking: of the curves.
        constants: of the curves.
        tune: images of the fine-tuning, 0 for none; of ranks, images that are all the data.
        peak_lr: the highest learning rate of the fine-tuning.
        target_flops: fraction that shrinking leaves before staging.
        budget: of staging's guard.
        objective: of staging, flops or latency.
        test: images that judge.
        seed: of everything random.
    """

    models: tuple[str, ...]
    data_dir: Path | None
    checkpoints: Path | None
    removed: tuple[float, ...]
    criteria: tuple[str, ...]
    ranking: Ranking
    constants: Constants
    tune: int
    peak_lr: float
    target_flops: float
    budget: float
    objective: str
    test: int
    seed: int

    @property
    def recipe(self) -> Recipe | None:
        """Of the fine-tuning, if there is any."""
        return Recipe(1, self.seed, batch_size=50, peak_lr=self.peak_lr) if self.tune else None

    def classifier(self, name: str) -> Classifier:
        """The named trained model with its data.

        Raises:
            DataError: there is no such model, or its data are not there.
        """
        if name not in CLASSIFIERS:
            raise DataError(f"no classifier is called {name!r}", hint=f"use one of {', '.join(CLASSIFIERS)}")
        if self.data_dir is None:
            raise DataError(f"{name} needs its images", hint="give --data-dir")
        counts = Counts(tuning=self.tune, test=self.test, glance=min(Counts.glance, self.test))
        if name != vgg.NAME:
            return fashion(name, self.data_dir, counts)
        if self.checkpoints is None:
            raise DataError(f"{name} needs its weights", hint="give --checkpoints")
        return cifar_vgg(self.checkpoints, self.data_dir, counts)


def run_experiment(name: str, wanted: Wanted, say: Say, save: Save) -> list[Section]:
    """Runs one experiment.

    Args:
        name: one of EXPERIMENTS.
        wanted: what is asked for.
        say: told what is being done.
        save: given all figures that there are so far, again and again.

    Returns:
        Its tables.
    """
    return EXPERIMENTS[name](wanted, say, save)


def _curves(wanted: Wanted, say: Say, save: Save) -> list[Section]:
    setting = Setting(wanted.recipe, wanted.ranking, wanted.constants)
    done: list[Curves] = []
    for name in wanted.models or CLASSIFIERS:
        subject = wanted.classifier(name)
        chosen = _compared(wanted, subject, ())
        done.append(
            run_curves(
                subject, chosen, wanted.removed, setting, say, lambda so_far: save(_listed("curves", [*done, so_far]))
            )
        )
    return [each for curves in done for each in curves_sections(curves)]


def _compared(wanted: Wanted, subject: Classifier, usual: Sequence[str]) -> dict[str, Criterion]:
    """The criteria that were named; else the usual ones, all where there are none."""
    every = criteria(subject, wanted.seed)
    if unknown := set(wanted.criteria) - set(every):
        raise DataError(f"no criterion is called {sorted(unknown)[0]!r}", hint=f"use {', '.join(every)}")
    return {name: every[name] for name in wanted.criteria or usual or every}


def _constants(wanted: Wanted, say: Say, save: Save) -> list[Section]:
    done: list[Case] = []
    images = 0
    for name in wanted.models or CLASSIFIERS:
        subject = wanted.classifier(name)
        images = len(subject.glance)
        chosen = _compared(wanted, subject, ("Expressiveness", "Magnitude"))
        done += run_constants(subject, chosen, wanted.removed, say)
        save(_listed("constants", done))
    return [constants_section(done, images)]


def _ranks(wanted: Wanted, say: Say, save: Save) -> list[Section]:
    done = []
    for name in wanted.models or CLASSIFIERS:
        subject = wanted.classifier(name)
        done.append(run_ranks(subject, subject.tuning, say, seed=wanted.seed))
        save(_listed("ranks", done))
    return [ranks_section(each) for each in done]


def _listed(key: str, found: Sequence[Any]) -> dict[str, Any]:
    return {key: [each.to_dict() for each in found]}


def _yolo(wanted: Wanted, say: Say, save: Save) -> list[Section]:
    found = run_yolo(say, seed=wanted.seed)
    save({"yolo": found.to_dict()})
    return yolo_sections(found)


def _peers(wanted: Wanted, say: Say, save: Save) -> list[Section]:
    if unknown := set(wanted.models) - set(ARCHITECTURES):
        raise DataError(f"no architecture is called {sorted(unknown)[0]!r}", hint=f"use {', '.join(ARCHITECTURES)}")
    makers = {name: ARCHITECTURES[name] for name in wanted.models or ARCHITECTURES}
    sizes = {name: IMAGE if name == "vit_b16" else PEER_IMAGE for name in makers}
    pairs = run_peers(makers, sizes, say, seed=wanted.seed, on_pair=lambda so_far: save(_listed("peers", so_far)))
    return [peers_section(pairs)]


def _stacked(wanted: Wanted, say: Say, save: Save) -> list[Section]:
    settings = Settings(wanted.target_flops, wanted.recipe, wanted.budget, wanted.objective)
    done = []
    for name in wanted.models or (vgg.NAME,):
        subject = wanted.classifier(name)
        criterion = Hybrid(0.5, Expressiveness(subject.scoring.inputs()))
        done.append(run_stacked(subject, criterion, settings, say))
        save(_listed("stacked", done))
    return [stacked_section(each) for each in done]


EXPERIMENTS: dict[str, Callable[[Wanted, Say, Save], list[Section]]] = {
    "curves": _curves,
    "constants": _constants,
    "ranks": _ranks,
    "yolo": _yolo,
    "peers": _peers,
    "stacked": _stacked,
}
