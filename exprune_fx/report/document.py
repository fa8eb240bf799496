"""An explanation as a document: which sections there are, and what each says."""

from __future__ import annotations

from exprune_fx.report.clock import operators_section, timings_section
from exprune_fx.report.explained import Explained
from exprune_fx.report.facts import SiteFacts
from exprune_fx.report.groups import GroupFacts
from exprune_fx.report.heads import heads_section
from exprune_fx.report.layout import Cell, Document, Figure, Section, Table, columns, name_cell, removed_cell
from exprune_fx.wording import count_text, flops_text, percent_text, percents_text

_SHOWN_MEMBERS = 8


def document_of(explanation: Explained) -> Document:
    """The whole document, sections with nothing to say left out."""
    sections = (
        staged_section(explanation),
        heads_section(explanation.heads),
        _why_so(explanation),
        operators_section(explanation),
        timings_section(explanation),
        _possible(explanation),
        _dense(explanation),
        _terms(explanation),
        _totals(explanation),
        _groups(explanation),
        _orders(explanation),
        Section("The graph", code=explanation.graph),
    )
    return Document(
        title="exprune_fx",
        summary=_summary(explanation),
        figures=_figures(explanation),
        sections=tuple(section for section in sections if section is not None),
    )


def _by_decision(explanation: Explained, decision: str) -> list[SiteFacts]:
    return [site for site in explanation.sites if site.decision == decision]


# --- the opening ------------------------------------------------------------------------------------------------------


def _summary(explanation: Explained) -> str:
    if not explanation.heads:
        return _sites_summary(explanation)
    staged = sum(head.decision == "staged" for head in explanation.heads)
    heads = f"{staged} of {count_text(len(explanation.heads), 'prediction head')} staged."
    return f"{heads} {_sites_summary(explanation)}" if explanation.sites else heads


def _sites_summary(explanation: Explained) -> str:
    sites, totals = explanation.sites, explanation.totals
    if not sites:
        return (
            "No site was found: no linear layer or convolution of this graph meets a ReLU-like activation through "
            "affine operations only. There is nothing to stage, and the graph runs as it is."
        )
    if not explanation.staged:
        possible = _by_decision(explanation, "possible")
        share = _share(possible)
        of_model = f", {percent_text(share)} of the model's FLOPs" if share is not None else ""
        return (
            f"{count_text(len(sites), 'site')} found, {len(possible)} can be staged{of_model}. Nothing is staged yet."
        )
    staged = _by_decision(explanation, "staged")
    opening = f"{len(staged)} of {count_text(len(sites), 'site')} staged"
    if totals.fraction_removed is None:
        return f"{opening}."
    removed = f"{percent_text(totals.fraction_removed)} of the model's FLOPs removed, tests counted"
    if totals.examples:
        return f"{opening}: {removed}, measured on {count_text(totals.examples, 'example')}."
    return f"{opening}: {removed}, as expected from {count_text(totals.calibration_examples, 'calibration example')}."


def _share(sites: list[SiteFacts]) -> float | None:
    known = [site.fraction_of_model for site in sites if site.fraction_of_model is not None]
    return sum(known) if len(known) == len(sites) else None


def _figures(explanation: Explained) -> tuple[Figure, ...]:
    totals = explanation.totals
    figures = [Figure("FLOPs of one example, dense", flops_text(totals.flops_dense))]
    if totals.flops_staged is not None and totals.flops_overhead is not None:
        total = totals.flops_staged + totals.flops_overhead
        figures.append(Figure("staged", flops_text(total), f"of which tests {flops_text(totals.flops_overhead)}"))
    if totals.fraction_removed is not None:
        note = (
            f"measured on {count_text(totals.examples, 'example')}" if totals.examples else "expected, from calibration"
        )
        figures.append(Figure("FLOPs removed", percent_text(totals.fraction_removed), note))
    if explanation.staged:
        number = f"{len(_by_decision(explanation, 'staged'))} of {len(explanation.sites)}"
        figures.append(Figure("sites staged", number))
    else:
        number = f"{len(_by_decision(explanation, 'possible'))} of {len(explanation.sites)}"
        figures.append(Figure("sites that can be staged", number))
    free = sum(group.free for group in explanation.groups)
    figures.append(Figure("symmetry groups", str(len(explanation.groups)), f"{free} free"))
    return tuple(figures)


# --- sites ------------------------------------------------------------------------------------------------------------


def staged_section(explanation: Explained) -> Section | None:
    """The staged sites, one a row; None if there is none."""
    sites = _by_decision(explanation, "staged")
    if not sites:
        return None
    rows = tuple(
        (
            name_cell(site.name),
            Cell(site.kind),
            Cell(str(site.terms)),
            Cell(site.head),
            Cell(", ".join(map(str, site.stages))),
            name_cell(site.guard),
            Cell(site.claim),
            Cell(percents_text(site.alive_fraction), site.alive_fraction[-1] if site.alive_fraction else None),
            Cell(flops_text(site.flops_dense)),
            removed_cell(site.fraction_removed),
            Cell(flops_text(site.flops_overhead)),
        )
        for site in sites
    )
    source = "measured" if sites[0].measured else "as calibration expects"
    titles = (
        "site",
        "kind",
        ">K",
        "head",
        ">after",
        "=guard",
        "=claim",
        ">alive",
        ">dense FLOPs",
        ">removed",
        ">tests",
    )
    note = (
        f"K terms a neuron; the guard looks after so many of them (or at a head of that rank, or at all in 8 bits); "
        f"alive: neurons that go on after each stage, {source}; removed: of the site's dense FLOPs, tests counted."
    )
    return Section("Staged sites", (note,), Table(columns(*titles), rows))


def _why_so(explanation: Explained) -> Section | None:
    rows = tuple((name_cell(site.name), Cell(site.reason)) for site in _by_decision(explanation, "staged"))
    return Section("Why so", (), Table(columns("site", "why"), rows)) if rows else None


def _possible(explanation: Explained) -> Section | None:
    sites = _by_decision(explanation, "possible")
    if not sites:
        return None
    rows = tuple(
        (
            name_cell(site.name),
            Cell(site.kind),
            Cell(site.activation),
            Cell(str(site.terms)),
            Cell(str(site.neurons)),
            Cell(flops_text(site.flops_dense)),
            Cell(percent_text(site.fraction_of_model), site.fraction_of_model),
            Cell("any" if site.exchangeable else "Calibrated, Bound"),
        )
        for site in sites
    )
    titles = ("site", "kind", "meets", ">K", ">neurons", ">dense FLOPs", ">of the model", "guards that apply")
    return Section("Sites that can be staged", (), Table(columns(*titles), rows))


def _dense(explanation: Explained) -> Section | None:
    rows = [
        (
            name_cell(site.name),
            Cell(site.kind),
            Cell(percent_text(site.fraction_of_model)),
            Cell(site.reason.removeprefix("dense: ")),
        )
        for site in _by_decision(explanation, "dense")
    ]
    rows += [
        (name_cell(other.name), Cell(other.operator), Cell(percent_text(other.fraction_of_model)), Cell(other.reason))
        for other in explanation.others
    ]
    if not rows:
        return None
    return Section("Left dense", (), Table(columns("where", "what", ">of the model", "why"), tuple(rows)))


def _terms(explanation: Explained) -> Section | None:
    if not explanation.sites:
        return None
    rows = tuple(
        (
            name_cell(site.name),
            Cell("yes", tone="good") if site.exchangeable else Cell("no", tone="bad"),
            Cell(site.exchangeability.removeprefix("yes: ").removeprefix("no: ")),
        )
        for site in explanation.sites
    )
    note = "Threshold, StatsTest and FinitePopulation rest on exchangeable terms; Calibrated and Bound need none."
    return Section("Are the terms exchangeable?", (note,), Table(columns("site", "verdict", "why"), rows))


# --- the rest ---------------------------------------------------------------------------------------------------------


def _totals(explanation: Explained) -> Section | None:
    totals = explanation.totals
    rows = [(Cell("dense"), Cell(flops_text(totals.flops_dense)))]
    if totals.flops_staged is not None and totals.flops_overhead is not None:
        rows += [
            (Cell("staged, without the tests"), Cell(flops_text(totals.flops_staged))),
            (Cell("tests (overhead)"), Cell(flops_text(totals.flops_overhead))),
            (Cell("staged, with the tests"), Cell(flops_text(totals.flops_staged + totals.flops_overhead))),
        ]
    if totals.fraction_removed is not None:
        rows.append((Cell("removed, tests counted"), removed_cell(totals.fraction_removed)))
    title = "Totals, FLOPs of one example"
    coded = any(site.head == "coded" for site in explanation.sites)
    note = "2 FLOPs per multiply-add" + (", a quarter of that for one of 8 bits." if coded else ".")
    return Section(title, (note,), Table(columns("model", ">FLOPs"), tuple(rows)))


def _groups(explanation: Explained) -> Section | None:
    if not explanation.groups:
        return None
    rows = tuple(
        (
            name_cell(group.name),
            Cell(group.size),
            Cell("free", tone="good") if group.free else Cell("pinned", tone="quiet"),
            Cell(group.order),
            Cell(_group_reason(group)),
        )
        for group in explanation.groups
    )
    note = (
        "Permuting the members of a free group, in all its parameters together, leaves the outputs as they are; "
        "order: in how many ways."
    )
    titles = ("group", ">size", "state", ">order", "why")
    return Section("Symmetry groups", (note,), Table(columns(*titles), rows))


def _group_reason(group: GroupFacts) -> str:
    axes = f"{len(group.parameters)} parameter axes move together" if group.free else ""
    return f"it {group.reason}" + (f"; {axes}" if axes else "") + ("; reordered" if group.reordered else "")


def _orders(explanation: Explained) -> Section | None:
    if not explanation.orders:
        return None
    rows = tuple(
        (
            name_cell(name),
            Cell(", ".join(map(str, order[:_SHOWN_MEMBERS])) + (", ..." if len(order) > _SHOWN_MEMBERS else "")),
        )
        for name, order in explanation.orders.items()
    )
    note = "The members that come first after reordering, by their old positions. Reordering is exact."
    return Section("Order of terms", (note,), Table(columns("group", "first members"), rows))
