"""How the demonstration's results are printed, and what they are in JSON."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from rich.console import Console

from exprune_fx.cli.demo import Data, ModelResult, Point
from exprune_fx.measurement import Measurement
from exprune_fx.report import Explanation
from exprune_fx.report.document import staged_section
from exprune_fx.report.layout import Cell, Section, Table, columns, name_cell, removed_cell
from exprune_fx.report.terminal import section_renderable
from exprune_fx.wording import flops_text, percent_text


def print_data(console: Console, data: Data, budget: float) -> None:
    """Says what is about to be tested, on what."""
    console.print(
        f"Tested on {data.source}; calibrated on {data.calibration_examples:,} training images; no fine-tuning.\n"
        f"Calibrated({budget:g}) stops a neuron below a threshold that lost at most {100 * budget:g} % of its "
        f"energy on the calibration images. FLOPs: 2 per multiply-add, tests counted.",
        highlight=False,
        soft_wrap=True,
    )


def print_model(console: Console, result: ModelResult) -> None:
    """One model: the two lines that matter, its sites, and other rules beside it."""
    for section in _sections(result):
        console.print(section_renderable(section))


def _sections(result: ModelResult) -> list[Section]:
    title = f"{result.name}, {result.examples:,} test images"
    sections = [Section(title, (), _headline(result))]
    sites = staged_section(result.explanation)
    sections += [sites] if sites is not None else []
    if result.curves:
        title = f"{result.name}: rules beside each other"
        sections.append(Section(title, (_COMPARISON_NOTE,), _comparison(result)))
    return sections


_COMPARISON_NOTE = (
    "Drop: percentage points. Removed: FLOPs, tests counted; tests: their own share of the dense FLOPs. Rules with no "
    "thresholds to fit saw one batch of the calibration images: for the order of terms, and to leave dense what would "
    "not pay."
)


def _headline(result: ModelResult) -> Table:
    measurement = result.staged.measurement
    dense = measurement.flops_dense / result.examples
    total = (measurement.flops_staged + measurement.flops_overhead) / result.examples
    overhead = measurement.flops_overhead / result.examples
    rows = (
        (
            Cell("dense"),
            Cell(percent_text(result.accuracy_dense, 2)),
            Cell(""),
            Cell(flops_text(dense)),
            Cell(""),
            Cell(""),
        ),
        (
            Cell(f"staged, {result.staged.guard}"),
            Cell(percent_text(result.staged.accuracy, 2)),
            _drop_cell(result.staged.drop_points),
            Cell(flops_text(total)),
            Cell(flops_text(overhead)),
            removed_cell(measurement.fraction_removed),
        ),
    )
    return Table(
        columns("", ">accuracy", ">drop, points", ">FLOPs an image", ">of which tests", ">FLOPs removed"), rows
    )


def _comparison(result: ModelResult) -> Table:
    rows = tuple(
        (
            Cell(point.head),
            name_cell(point.guard),
            Cell(_stages_text(point)),
            Cell(point.claim),
            Cell(percent_text(point.accuracy, 2)),
            _drop_cell(point.drop_points),
            removed_cell(point.measurement.fraction_removed),
            Cell(percent_text(point.measurement.flops_overhead / point.measurement.flops_dense)),
        )
        for point in (result.staged, *result.curves)
    )
    titles = ("head", "guard", "after", "claim", ">accuracy", ">drop", ">removed", ">tests")
    return Table(columns(*titles), rows)


def _stages_text(point: Point) -> str:
    """Where a prefix is tested, as fractions of K; a principal head has one rank per site, a coded one sees all."""
    fractions = ", ".join(f"1/{round(1 / stage)}" for stage in point.stages)
    return {"prefix": fractions, "principal": "one rank", "coded": "all, in 8 bits"}.get(
        point.head, f"{fractions}, or one rank"
    )


def _drop_cell(points: float) -> Cell:
    return Cell(f"{points:+.2f}" if points else "0.00", tone="bad" if points > 1 else "")


# --- JSON -------------------------------------------------------------------------------------------------------------

_KEYS = {
    "accuracy_*": "fraction of the examples, the staged graph really executed",
    "drop_points": "accuracy_dense - accuracy in percentage points",
    "flops_dense": "dense model or site, summed over all examples; 2 per multiply-add",
    "flops_staged": "head and tail of the staged model or site, without the tests, summed over all examples",
    "flops_overhead": "the tests, summed over all examples",
    "flops_total": "flops_staged + flops_overhead",
    "flops_*_per_example": "the same divided by examples",
    "fraction_removed": "1 - flops_total / flops_dense; negative where staging costs more",
    "alive_fraction": "share of neurons that go on after each stage",
}


def demo_json(results: Sequence[ModelResult], data: Data, budget: float) -> dict[str, Any]:
    """The demonstration as plain data; ``keys`` says what each figure is."""
    return {
        "library": version("exprune_fx"),
        "torch": torch.__version__,
        "keys": _KEYS,
        "data": data.source,
        "examples": len(data.labels),
        "calibration_examples": data.calibration_examples,
        "fine_tuning": False,
        "budget": budget,
        "models": [_model_json(result) for result in results],
    }


def _model_json(result: ModelResult) -> dict[str, Any]:
    return {
        "name": result.name,
        "accuracy_dense": result.accuracy_dense,
        "accuracy_staged": result.staged.accuracy,
        "drop_points": result.staged.drop_points,
        "examples": result.examples,
        **_flops_json(result.staged.measurement, result.examples),
        "fraction_removed": result.staged.measurement.fraction_removed,
        "sites": _sites_json(result.explanation, result.staged.measurement),
        "curves": [_point_json(point) for point in result.curves],
    }


def _point_json(point: Point) -> dict[str, Any]:
    return {
        "head": point.head,
        "guard": point.guard,
        "stages": list(point.stages),
        "claim": point.claim,
        "accuracy": point.accuracy,
        "drop_points": point.drop_points,
        "examples": point.measurement.examples,
        **_flops_json(point.measurement, point.measurement.examples),
        "fraction_removed": point.measurement.fraction_removed,
    }


def _flops_json(measurement: Measurement, examples: int) -> dict[str, float]:
    sums = {
        "flops_dense": measurement.flops_dense,
        "flops_staged": measurement.flops_staged,
        "flops_overhead": measurement.flops_overhead,
        "flops_total": measurement.flops_staged + measurement.flops_overhead,
    }
    return {**sums, **{f"{name}_per_example": value / examples for name, value in sums.items()}}


def _sites_json(explanation: Explanation, measurement: Measurement) -> list[dict[str, Any]]:
    """Staged and dense sites, in graph order; a dense one does its dense work and no tests."""
    measured = {site.name: site for site in measurement.sites}
    sites = []
    for facts in explanation.sites:
        site = measured.get(facts.name)
        dense = site.flops_dense if site else float(facts.flops_dense) * measurement.examples
        sites.append(
            {
                "name": facts.name,
                "kind": facts.kind,
                "terms": facts.terms,
                "head": facts.head or "dense",
                "stages": list(facts.stages),
                "guard": facts.guard or None,
                "claim": facts.claim or None,
                "reason": facts.reason,
                "alive_fraction": list(site.alive_fraction) if site else [],
                "flops_dense": dense,
                "flops_staged": site.flops_staged if site else dense,
                "flops_overhead": site.flops_overhead if site else 0.0,
                "fraction_removed": site.fraction_removed if site else 0.0,
            }
        )
    return sites
