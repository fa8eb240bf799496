"""A reproduction as a picture: FLOPs removed against the drop of the metric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from exprune_fx.extras import optional_module
from exprune_fx.studies.paper.guards import PUBLISHED
from exprune_fx.studies.paper.published import RANGES
from exprune_fx.studies.paper.results import BY_TRIALS, OURS, Curve, Reproduction
from exprune_fx.studies.paper.search import front_of

COLOURS = {"StatsTest": "#d95f02", "Threshold": "#7570b3", OURS: "#1b9e77", BY_TRIALS: "#1f78b4"}
MARKERS = {"StatsTest": "s", "Threshold": "^", OURS: "o", BY_TRIALS: "D"}
LOWEST, HIGHEST = -0.5, 2.2  # points of the metric that are drawn


def plot_reproduction(found: Reproduction, pruned: bool, path: Path) -> None:
    """Writes the picture; its kind follows the file's ending.

    Lines are what the searches saw on selection examples, each setting that no other one beats; marks are what was
    chosen, judged on test examples, with the 95 % interval of its drop; grey bars are the paper's ranges.

    Raises:
        DataError: matplotlib is not installed.
    """
    figure_module = optional_module("matplotlib.figure", "--plot needs matplotlib", "matplotlib")
    figure = figure_module.Figure(figsize=(7.5, 5.2), layout="constrained")
    axes = figure.subplots()
    _draw_published(axes, pruned)
    for curve in found.curves:
        _draw_curve(axes, curve, found.dense_selection)
    for method, colour in COLOURS.items():
        rows = [row for row in found.rows if row.method == method]
        if not rows:
            continue
        drops = [100 * row.drop for row in rows]
        axes.errorbar(
            drops,
            [100 * row.fraction_removed for row in rows],
            xerr=[
                [max(drop - 100 * row.interval[0], 0) for drop, row in zip(drops, rows, strict=True)],
                [max(100 * row.interval[1] - drop, 0) for drop, row in zip(drops, rows, strict=True)],
            ],
            fmt=MARKERS[method],
            color=colour,
            markeredgecolor="black",
            markersize=8,
            elinewidth=1,
            capsize=3,
            zorder=3,
            label=f"{method} ({'paper' if method in PUBLISHED else 'ours'}): test",
        )
    axes.axvline(0, color="black", linewidth=0.6)
    low = min([LOWEST, *(100 * row.interval[0] - 0.1 for row in found.rows)])
    high = max([HIGHEST, *(100 * row.interval[1] + 0.1 for row in found.rows)])
    axes.set_xlim(low, high)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"drop of {found.metric}, points")
    axes.set_ylabel("FLOPs removed, % (tests counted)")
    axes.set_title(found.title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    figure.legend(fontsize=8, loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=150)


def _draw_published(axes: Any, pruned: bool) -> None:
    shown = [(name, by_drop) for name, by_drop in RANGES if (name == "statically pruned") == pruned]
    for place, (name, by_drop) in enumerate(shown):
        for first, (drop, (low, high)) in enumerate(by_drop.items()):
            axes.plot(
                [100 * drop + 0.03 * place] * 2,
                [100 * low, 100 * high],
                color="0.45" if place == 0 else "0.7",
                linewidth=6,
                solid_capstyle="butt",
                zorder=2,
                label=f"paper's figures, {name}" if first == 0 else None,
            )


def _draw_curve(axes: Any, curve: Curve, dense: float) -> None:
    front = front_of(curve.trials)
    axes.plot(
        [100 * (dense - trial.score) for trial in front],
        [100 * trial.fraction_removed for trial in front],
        color=COLOURS[curve.method],
        linewidth=1.3,
        alpha=0.75,
        marker=".",
        markersize=4,
        label=f"{curve.method}: selection",
    )
    if curve.judged:
        axes.plot(
            [100 * drop for drop, _ in curve.judged],
            [100 * removed for _, removed in curve.judged],
            color=COLOURS[curve.method],
            linestyle="none",
            marker=MARKERS[curve.method],
            markerfacecolor="none",
            markersize=5,
            label=f"{curve.method}: the line's settings on test",
        )
