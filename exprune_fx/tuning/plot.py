"""Draws what a search found."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from exprune_fx.errors import DataError
from exprune_fx.extras import optional_module
from exprune_fx.tuning.report import Trial, pareto


def plot_front(trials: Sequence[Trial], path: str | PathLike[str], max_drop: float | None = None) -> None:
    """Draws every trial, share of FLOPs removed against drop of the metric, and the front through the best.

    Args:
        trials: of `optimize` (``report.trials``) or of `search_guards`.
        path: of the picture; its ending says which kind, such as .png, .svg or .pdf.
        max_drop: drawn as a line if given.

    Raises:
        DataError: matplotlib is not installed, or cannot write such a file.
    """
    figure = _figure()
    axes = figure.add_subplot()
    for allocation in dict.fromkeys(trial.allocation for trial in trials):
        some = [trial for trial in trials if trial.allocation == allocation]
        axes.scatter([100 * t.fraction_removed for t in some], [t.drop for t in some], label=allocation, s=18)
    front = pareto(trials)
    axes.plot([100 * t.fraction_removed for t in front], [t.drop for t in front], linewidth=1, label="front")
    if max_drop is not None:
        axes.axhline(max_drop, linestyle="--", linewidth=1, color="grey", label="max_drop")
    axes.set_xlabel("FLOPs removed (%)")
    axes.set_ylabel("drop of the metric (lower is better)")
    axes.legend()
    try:
        figure.savefig(Path(path))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot draw {str(path)!r}: {error}", hint="give a file that ends in .png or .svg") from error


def _figure() -> Any:
    figures = optional_module("matplotlib.figure", "drawing needs matplotlib", "'exprune_fx[tune]'")
    return figures.Figure(figsize=(6.4, 4.2), layout="constrained")
