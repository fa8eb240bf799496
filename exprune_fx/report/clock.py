"""What an explanation says of time: which operator computes a site, and what calibration measured."""

from __future__ import annotations

from exprune_fx.plan import SiteTiming
from exprune_fx.report.explained import Explained
from exprune_fx.report.facts import SiteFacts
from exprune_fx.report.layout import Cell, Section, Table, columns, name_cell


def operators_section(explanation: Explained) -> Section | None:
    """Which fused operator computes each site, or why none does; None for a graph that was not lowered."""
    sites = [site for site in explanation.sites if site.operator or site.kept_readable]
    if not sites:
        return None
    rows = tuple((name_cell(site.name), _form(site)) for site in sites)
    note = "Each operator has a native kernel; what stays readable is plain PyTorch that computes densely and masks."
    return Section("Operators", (note,), Table(columns("site", "computed by"), rows))


def _form(site: SiteFacts) -> Cell:
    if site.operator:
        codes = f", by its weights in fewer bits ({site.code_bytes / 1e6:.1f} MB more)" if site.code_bytes else ""
        pool = ", its max pool too" if site.pools else ""
        return Cell(f"exprune.{site.operator}{pool}{codes}", mono=True)
    return Cell(f"its readable nodes: {site.kept_readable}", tone="quiet")


def timings_section(explanation: Explained) -> Section | None:
    """What each site took, dense and staged, when it was calibrated; None if nothing was timed."""
    rows = [
        _timing_row(name_cell(site.name), site.timing, site.decision == "staged" or bool(site.operator))
        for site in explanation.sites
        if site.timing is not None
    ]
    if not rows:
        return None
    whole = explanation.whole
    if whole is not None:
        kept = any(site.decision == "staged" or site.operator for site in explanation.sites)
        rows.append(_timing_row(Cell("the whole graph"), whole, kept))
    titles = ("site", "=examples", "=threads", "fastest dense form", ">ms", "fastest staged form", ">ms", ">faster by")
    note = (
        f"Medians of one call, measured by calibration on {explanation.machine}; "
        "with a site go the layers that its operator has joined to it; the whole graph is compiled by Inductor."
    )
    return Section("Timings", (note,), Table(columns(*titles), tuple(rows)))


def _timing_row(name: Cell, timing: SiteTiming, kept: bool) -> tuple[Cell, ...]:
    return (
        name,
        Cell(str(timing.examples)),
        Cell(str(timing.threads)),
        Cell(timing.dense_form),
        Cell(f"{1e3 * timing.dense_s:.3f}"),
        Cell(timing.staged_form),
        Cell(f"{1e3 * timing.staged_s:.3f}"),
        Cell(f"{timing.speedup:.2f}x", tone="good" if kept else "quiet"),
    )
