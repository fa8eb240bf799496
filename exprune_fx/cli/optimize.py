"""What ``exprune optimize`` does: finds the model and its data, searches, writes what was found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from exprune_fx import zoo
from exprune_fx.cli.subject import make
from exprune_fx.errors import DataError
from exprune_fx.tuning import Optimized, optimize
from exprune_fx.tuning.plot import plot_front

_KEYS = {"model", "args", "batches", "evaluate"}
_MORE = {"kwargs", "dynamic_shapes", "latency_batch", "test"}


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for; see ``exprune_fx.optimize``.

    Attributes:
        max_drop: in the unit of the metric.
        confidence: that new examples lose no more.
        objective: flops or latency.
        head: auto, prefix, principal or coded.
        sequential: thresholds on staged inputs.
        study: file of evaluations, or None.
        seed: of the bootstrap.
        plan: file for the plan, or None.
        plot: file for a picture of the trials, or None.
    """

    max_drop: float
    confidence: float = 0.5
    objective: str = "flops"
    head: str = "auto"
    sequential: bool = False
    study: Path | None = None
    seed: int = 0
    plan: Path | None = None
    plot: Path | None = None


def optimize_named(name: str, wanted: Wanted, progress: bool) -> Optimized:
    """Searches for the cheapest plan of the named model.

    Args:
        name: ``package.module:callable``, which returns keyword arguments for ``exprune_fx.optimize``, or a shipped
            model.
        wanted: what to do.
        progress: draw the front on standard error.

    Raises:
        ExpruneError: there is no such model, or it cannot be optimised.
    """
    subject = _shipped(name) if name in zoo.names() else _described(name)
    best = optimize(
        **subject,
        max_drop=wanted.max_drop,
        confidence=wanted.confidence,
        objective=wanted.objective,
        head=wanted.head,  # type: ignore[arg-type] # it is checked there
        sequential=wanted.sequential,
        study=wanted.study,
        seed=wanted.seed,
        progress=progress,
    )
    if wanted.plan is not None:
        best.plan.save(wanted.plan)
    if wanted.plot is not None:
        plot_front(best.report.trials, wanted.plot, wanted.max_drop)
    return best


def _described(name: str) -> dict[str, Any]:
    made = make(name)
    if not isinstance(made, Mapping) or not made.keys() >= _KEYS or made.keys() - _KEYS - _MORE:
        found = sorted(map(str, made)) if isinstance(made, Mapping) else f"a {type(made).__name__}"
        raise DataError(
            f"{name} returned {found}",
            hint=f"return a dict with {', '.join(sorted(_KEYS))}, and if you like {', '.join(sorted(_MORE))}",
        )
    return dict(made)


def _shipped(name: str) -> dict[str, Any]:
    """A shipped model: one half of its test images selects, the other judges."""
    sample, batches = zoo.load_sample(), list(zoo.calibration_batches())
    half = len(sample.test_labels) // 2

    def correct(images: Tensor, labels: Tensor) -> Any:
        def evaluate(model: Any) -> Tensor:
            with torch.no_grad():
                parts = zip(images.split(100), labels.split(100), strict=True)
                return torch.cat([model(part).argmax(1) == expected for part, expected in parts])

        return evaluate

    return {
        "model": zoo.load(name),
        "args": (batches[0][0][:2],),
        "dynamic_shapes": ({0: Dim("batch")},),
        "batches": batches,
        "evaluate": correct(sample.test_images[:half], sample.test_labels[:half]),
        "test": correct(sample.test_images[half:], sample.test_labels[half:]),
    }
