"""What should become of removed channels' constants: accuracy without fine-tuning under each rule.

Before a batch norm, fine-tuning in training mode takes a constant map out again; the rules differ before it, and where
nothing is fine-tuned.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, get_args

from torch.export import Dim

from exprune_fx.graph import capture
from exprune_fx.report.layout import Section
from exprune_fx.static import Criterion, shrink
from exprune_fx.static.folding import Constants
from exprune_fx.studies.static.classifiers import Classifier, judge
from exprune_fx.studies.static.tables import percent, section

RULES: tuple[Constants, ...] = get_args(Constants)


@dataclass(frozen=True)
class Case:
    """One removal under every rule.

    Attributes:
        model: its name.
        criterion: by what members were chosen.
        params_removed: fraction of the parameters, before biases were added.
        accuracy: on the judging images, by rule.
    """

    model: str
    criterion: str
    params_removed: float
    accuracy: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def run_constants(
    subject: Classifier, compared: Mapping[str, Criterion], removed: Sequence[float], say: Callable[[str], None]
) -> tuple[Case, ...]:
    """Shrinks the captured graph by each criterion to each size under each rule.

    Args:
        subject: model and data.
        compared: criteria by name.
        removed: fractions of the parameters.
        say: told what is being done.
    """
    graph = capture(subject.make(), subject.args, dynamic_shapes=({0: Dim.AUTO},))
    found = []
    for name, criterion in compared.items():
        for fraction in removed:
            say(f"{subject.name}: {name}, {100 * fraction:.0f} % of the parameters removed")
            accuracy: dict[str, float] = {}
            for rule in RULES:
                small = shrink(graph, criterion=criterion, target_params=1 - fraction, constants=rule)
                accuracy[rule] = judge(small.model, subject.glance, bfloat16=True)
            found.append(Case(subject.name, name, small.report.params_removed, accuracy))
    return tuple(found)


def constants_section(cases: Iterable[Case], images: int) -> Section:
    """A row for each removal."""
    rows = [
        (
            case.model,
            case.criterion,
            percent(case.params_removed, 1),
            *(percent(case.accuracy[rule], 1) for rule in RULES),
        )
        for case in cases
    ]
    return section(
        "Constants of removed channels",
        f"Accuracy in % of {images:,} images that the dense model never saw, without any fine-tuning, under bfloat16 "
        "autocast. exact: into biases where that is exact; mean: before zero-padded convolutions too, as the mean over "
        "positions; drop: zero.",
        ("model", "criterion", ">parameters removed, %", *(f">{rule}" for rule in RULES)),
        rows,
    )
