"""explain(): what was found in a graph, what was staged, what was left dense, and why."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

import sympy
from rich.console import RenderableType
from torch import fx

from exprune_fx.errors import ExpruneError
from exprune_fx.graph import python_text
from exprune_fx.measurement import Measurement
from exprune_fx.pipeline import StagedRecord, normalise, record_of
from exprune_fx.plan import Plan
from exprune_fx.report.explained import Explained
from exprune_fx.report.facts import (
    SiteFacts,
    Sizes,
    TotalFacts,
    check_measurement,
    site_facts,
    site_flops,
    with_form,
    with_measurement,
)
from exprune_fx.report.groups import group_facts
from exprune_fx.report.heads import HeadFacts, head_facts
from exprune_fx.report.others import joined_weights, other_facts
from exprune_fx.report.page import to_html
from exprune_fx.report.terminal import to_rich
from exprune_fx.report.text import to_text
from exprune_fx.sites import Site, find_sites
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.symmetry import symmetries


class Explanation(Explained):
    """What `explain` found; ``print`` it, write it as a page with ``html``, or read the fields."""

    def __str__(self) -> str:
        """Plain text."""
        return to_text(self)

    def __rich__(self) -> RenderableType:
        """Tables for a rich console."""
        return to_rich(self)

    def html(self, path: str | os.PathLike[str]) -> None:
        """Writes one self-contained HTML page: no scripts, no fonts, nothing to fetch.

        Raises:
            ExpruneError: the file cannot be written.
        """
        try:
            with open(path, "w", encoding="utf-8") as stream:
                stream.write(to_html(self))
        except OSError as error:
            raise ExpruneError(f"cannot write {os.fspath(path)!r}: {error}", hint="check the folder") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        data = asdict(self)
        data["orders"] = {name: list(order) for name, order in self.orders.items()}
        return data


def explain(gm: fx.GraphModule, measurement: Measurement | None = None) -> Explanation:
    """Says what was found in a graph, what was staged, and what was left dense and why.

    Args:
        gm: what `capture` or `transform` returned; it is left as it is.
        measurement: what `measure` counted on this staged graph. Without it the figures are the ones that calibration
            expects.

    Returns:
        An Explanation: ``print`` it, or write it as a page with ``.html(path)``. FLOPs are those of one example, that
        is one entry along the first axis of the first input; 2 per multiply-add.

    Raises:
        PlanError: the measurement is of another graph.
        ExpruneError: not a graph, or a measurement of a graph that was never staged.
    """
    if not isinstance(gm, fx.GraphModule):
        raise ExpruneError(f"cannot explain a {type(gm).__name__}", hint="explain(capture(model, args))")
    record = record_of(gm)
    if record is None and measurement is not None:
        raise ExpruneError("this graph was never staged", hint="explain(staged, measure(staged, batches))")
    if record is None:
        dense = normalise(gm)
        groups = symmetries(dense)
        record = StagedRecord(Plan(), dense, find_sites(dense, groups), groups)
        plan = None
    else:
        plan = record.plan
    sizes = Sizes(record.dense)
    sites = _sites(record, plan, measurement, sizes)
    ends = {node.meta[SITE_KEY]: node for node in gm.graph.nodes if node.meta.get(ROLE_KEY) in ("fused", "finish")}
    sites = tuple(with_form(site, ends.get(site.name)) for site in sites)
    heads = head_facts(record, plan, measurement, sizes, gm)
    others = other_facts(record.dense, record.sites, sizes, joined_weights(gm))
    return Explanation(
        staged=plan is not None,
        totals=_totals((*sites, *heads), plan, measurement, sizes),
        sites=sites,
        others=tuple(other for other in others if other.name not in {head.name for head in heads}),
        groups=group_facts(record.groups, record.plan.orders),
        orders=dict(record.plan.orders),
        machine=record.plan.machine,
        whole=record.plan.whole,
        graph=python_text(gm),
        heads=heads,
    )


def _sites(
    record: StagedRecord, plan: Plan | None, measurement: Measurement | None, sizes: Sizes
) -> tuple[SiteFacts, ...]:
    examples = plan.examples if plan is not None else 0
    flops: dict[str, sympy.Expr] = {site.name: site_flops(record.dense, site) for site in record.sites}

    def facts_of(site: Site) -> SiteFacts:
        entry = plan.for_site(site.name) if plan is not None else None
        return site_facts(site, flops[site.name], sizes, entry, examples)

    found = [facts_of(site) for site in record.sites]
    if measurement is None or plan is None:
        return tuple(found)
    check_measurement(measurement, {entry.site: entry for entry in plan.staged})
    measured = {site.name: site for site in measurement.sites}
    return tuple(
        with_measurement(facts, measured[facts.name], measurement.examples) if facts.name in measured else facts
        for facts in found
    )


def _totals(
    sites: tuple[SiteFacts | HeadFacts, ...], plan: Plan | None, measurement: Measurement | None, sizes: Sizes
) -> TotalFacts:
    calibrated_on = plan.examples if plan is not None else 0
    if measurement is not None:
        n = measurement.examples
        return TotalFacts(
            n,
            calibrated_on,
            measurement.flops_dense / n,
            measurement.flops_staged / n,
            measurement.flops_overhead / n,
            measurement.fraction_removed,
        )
    dense = sizes.per_example(sizes.model)
    return TotalFacts(0, calibrated_on, dense, None, None, _expected_removed(sites) if plan is not None else None)


def _expected_removed(sites: tuple[SiteFacts | HeadFacts, ...]) -> float | None:
    """The share of the model's FLOPs that calibration expects to save."""
    staged = [site for site in sites if site.decision == "staged"]
    if any(site.fraction_of_model is None or site.fraction_removed is None for site in staged):
        return None
    return sum((site.fraction_of_model or 0.0) * (site.fraction_removed or 0.0) for site in staged)
