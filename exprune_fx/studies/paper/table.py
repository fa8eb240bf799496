"""A reproduction as a table."""

from __future__ import annotations

from collections.abc import Mapping

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from exprune_fx.studies.paper.published import published_ranges
from exprune_fx.studies.paper.results import OURS, Reproduction, Row
from exprune_fx.wording import percent_text

FEW = 3  # an allowed drop of fewer examples than these is mostly chance
_WIDTH = {"95 % interval": 14}


def reproduction_table(found: Reproduction, pruned: bool) -> Group:
    """The figures, and under them how they came about.

    Args:
        found: the figures.
        pruned: the subject is a statically pruned model: which of the paper's ranges stand beside it.
    """
    known = any(row.published is not None for row in found.rows)
    table = Table(
        title=f"{found.title}: {found.metric}",
        title_justify="left",
        pad_edge=False,
        box=box.SIMPLE_HEAD,
        padding=(0, 1),
    )
    table.add_column("guard", no_wrap=True)
    columns = ("may lose", "selecting", "judged", "loses", "95 % interval", "FLOPs removed", "tests")
    for name in (*columns, *(["paper"] if known else []), *found.dense_extras):
        table.add_column(name, justify="right", min_width=_WIDTH.get(name))
    blank = [""] * (5 if known else 4)
    table.add_row("dense", "", "", points(found.dense_test), *blank, *_extras(found.dense_extras))
    for row in found.rows:
        table.add_row(*_cells(row, known))
    lines = [
        found.about,
        f"in points (hundredths) of {found.metric}: what a guard may lose, loses on the {found.selection_examples:,} "
        f"examples that chose it, and loses on the {found.test_examples:,} that judge",
        f"FLOPs as the paper counts them, on {found.counted_examples:,} of these, tests included; dense "
        f"{found.flops_per_example / 1e6:,.1f} MFLOPs each",
        f"StatsTest and Threshold: the paper's, {found.trials} Optuna trials each (its code: 2,000); {OURS}: ours, by "
        "exprune_fx.optimize; no fine-tuning",
        _searches(found),
        *_too_few(found),
        *_chosen_on_test(found),
        *published_ranges(pruned),
    ]
    return Group(table, *(Text(line) for line in lines))


def _searches(found: Reproduction) -> str:
    """What every search took, for all drops together."""
    said = [
        f"{curve.method} {curve.effort.evaluations} plans in {curve.effort.wall_s:,.0f} s "
        f"({curve.effort.cpu_s:,.0f} s of CPU)"
        for curve in found.curves
    ]
    return f"searches, calibration included: {'; '.join(said)}"


def _too_few(found: Reproduction) -> list[str]:
    """Where an allowed drop is finer than the selection examples can tell."""
    drops = sorted({row.max_drop for row in found.rows if row.max_drop < FEW * found.resolution})
    named = " and ".join(f"{100 * drop:g}" for drop in drops)
    if not drops:
        return []
    return [f"{found.selection_examples:,} selection examples hardly resolve {named} points: choices there are rough"]


def _chosen_on_test(found: Reproduction) -> list[str]:
    """As the reference implementation shows its figures; nothing where the fronts were not judged."""
    drops = sorted({row.max_drop for row in found.rows})
    said = []
    for curve in found.curves:
        best = [(drop, curve.best_judged(drop)) for drop in drops]
        said += [
            f"{curve.method} {percent_text(removed)} at {100 * drop:g}" for drop, removed in best if removed is not None
        ]
    return [f"best on the test examples themselves, as its code shows it: {', '.join(said)} points"] if said else []


def points(value: float) -> str:
    """A metric in points, with two decimals."""
    return f"{100 * value:.2f}"


def _published(row: Row) -> str:
    return "" if row.published is None else f"{100 * row.published:.2f} %"


def _extras(values: Mapping[str, float]) -> list[str]:
    return [f"{value:.4g}" for value in values.values()]


def _cells(row: Row, known: bool) -> list[str]:
    low, high = row.interval
    return [
        row.method,
        f"{100 * row.max_drop:g}",
        f"{100 * row.selection_drop:+.2f}",
        points(row.score),
        f"{100 * row.drop:+.2f}",
        f"{100 * low:+.2f} to {100 * high:+.2f}",
        percent_text(row.fraction_removed),
        percent_text(row.overhead),
        *([_published(row)] if known else []),
        *_extras(row.extras),
    ]
