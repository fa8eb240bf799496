"""What there is to say about prediction heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import fx

from exprune_fx.cost import dense_flops
from exprune_fx.measurement import Measurement, SiteMeasurement
from exprune_fx.pipeline import StagedRecord
from exprune_fx.plan import HeadPlan, Plan
from exprune_fx.report.facts import Decision, Sizes, claim_text
from exprune_fx.report.layout import Cell, Section, Table, columns, name_cell, removed_cell
from exprune_fx.report.others import operator_name
from exprune_fx.sites import PredictionHead, find_heads
from exprune_fx.staging import KEPT_KEY
from exprune_fx.staging.heads import HEAD_KEY, HEAD_ROLE_KEY
from exprune_fx.wording import percent_text, percents_text


@dataclass(frozen=True)
class HeadFacts:
    """One prediction head.

    Attributes:
        name: module path of its linear layer.
        choice: argmax or topk.
        winners: classes that are wanted.
        classes: of the layer.
        features: that it reads.
        decision: staged, dense (not in the plan), or possible (no plan yet).
        reason: why it was decided so.
        stages: features seen after each stage.
        guard: the stop rule in words.
        claim: what it rests on, in words.
        alive_fraction: share of classes that go on after each stage; measured, else as calibration expects.
        agreement: share of calibration examples with the dense layer's winners; None if not measured.
        fraction_removed: share of the layer's FLOPs saved, tests counted; measured, else expected.
        fraction_read: share of the layer's bytes that calibration expects to be read.
        fraction_of_model: the layer's share of the model's dense FLOPs; None where that depends on symbolic sizes.
        operator: the fused operator that computes it, without its namespace; "" if none does.
        kept_readable: why no fused operator does, in a graph that was lowered; else "".
    """

    name: str
    choice: str
    winners: int
    classes: int
    features: int
    decision: Decision
    reason: str = ""
    stages: tuple[int, ...] = ()
    guard: str = ""
    claim: str = ""
    alive_fraction: tuple[float, ...] = ()
    agreement: float | None = None
    fraction_removed: float | None = None
    fraction_read: float | None = None
    fraction_of_model: float | None = None
    operator: str = ""
    kept_readable: str = ""


def head_facts(
    record: StagedRecord, plan: Plan | None, measurement: Measurement | None, sizes: Sizes, gm: fx.GraphModule
) -> tuple[HeadFacts, ...]:
    """Every prediction head, as planned, as measured, and as a graph computes it."""
    entries = {} if plan is None else {entry.head: entry for entry in plan.heads}
    measured = {} if measurement is None else {each.name: each for each in measurement.heads}
    ends = (node for node in gm.graph.nodes if HEAD_KEY in node.meta and node.meta.get(HEAD_ROLE_KEY) != "after")
    nodes = {node.meta[HEAD_KEY]: node for node in ends}
    layers = {node.name: node for node in record.dense.graph.nodes}
    result = []
    for head in find_heads(record.dense):
        share = sizes.fraction(dense_flops(layers[head.node]))
        facts = replace(_facts(head, entries.get(head.name), plan), fraction_of_model=share)
        result.append(_with_node(_measured(facts, measured.get(head.name)), nodes.get(head.name)))
    return tuple(result)


def _measured(facts: HeadFacts, seen: SiteMeasurement | None) -> HeadFacts:
    if seen is None:
        return facts
    return replace(facts, alive_fraction=seen.alive_fraction, fraction_removed=seen.fraction_removed)


def _with_node(facts: HeadFacts, node: fx.Node | None) -> HeadFacts:
    if node is None:
        return facts
    if HEAD_ROLE_KEY in node.meta:
        return replace(facts, kept_readable=str(node.meta.get(KEPT_KEY, "")))
    return replace(facts, operator=operator_name(node))


def _facts(head: PredictionHead, entry: HeadPlan | None, plan: Plan | None) -> HeadFacts:
    classes, features = head.weight_shape
    facts = HeadFacts(head.name, head.choice, head.winners, classes, features, "possible")
    if entry is None or not entry.is_staged:
        reason = "the plan leaves it out: calibrate_heads decides on heads" if entry is None else entry.reason
        return facts if plan is None else replace(facts, decision="dense", reason=reason)
    return replace(
        facts,
        decision="staged",
        reason=entry.reason,
        stages=entry.stages,
        guard=str(entry.guard),
        claim=claim_text(entry.guard, plan.examples if plan else 0),
        alive_fraction=entry.alive_fraction,
        agreement=entry.agreement,
        fraction_removed=entry.fraction_removed,
        fraction_read=entry.fraction_read,
    )


def heads_section(heads: Sequence[HeadFacts]) -> Section | None:
    """The prediction heads, one a row; None if there is none."""
    if not heads:
        return None
    rows = tuple(
        (
            name_cell(head.name),
            Cell(head.choice if head.winners == 1 else f"{head.choice} {head.winners}"),
            Cell(str(head.classes)),
            Cell(head.decision),
            Cell(", ".join(map(str, head.stages))),
            name_cell(head.guard),
            Cell(head.claim),
            Cell(percents_text(head.alive_fraction)),
            removed_cell(head.fraction_removed),
            Cell(percent_text(head.fraction_read)),
            Cell(_form(head)),
        )
        for head in heads
    )
    titles = (
        "head",
        "wants",
        ">classes",
        "is",
        ">after",
        "guard",
        "claim",
        ">alive",
        ">removed",
        ">bytes",
        "computed by",
    )
    note = (
        "Linear layers of whose outputs only the largest are wanted. Alive: classes that go on after each stage, which "
        "has seen so many features of the codes; removed: of the layer's FLOPs, tests counted; bytes: of the layer's, "
        "read, as calibration expects."
    )
    return Section("Prediction heads", (note,), Table(columns(*titles), rows))


def _form(head: HeadFacts) -> str:
    if head.operator:
        return f"exprune.{head.operator}"
    if head.decision != "staged":
        return head.reason or "the dense layer"
    return f"its readable nodes{': ' if head.kept_readable else ''}{head.kept_readable}"
