"""Runs one subject: compiles its columns, times them beside each other, and compares what they compute."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exprune_fx.bench.columns import DENSE, OURS, STAGED, WAYS
from exprune_fx.bench.machine import Machine, name_of
from exprune_fx.bench.rows import WRONG, Row
from exprune_fx.bench.subject import HeldOut, Say, Subject
from exprune_fx.bench.timing import Interleaved, Schedule, Timing, interleave
from exprune_fx.bench.touched import count_touched
from exprune_fx.calibration.prepare import Prepared
from exprune_fx.calibration.whole import settle
from exprune_fx.compiling import UNCOMPILED, Runnable, compiled
from exprune_fx.errors import ExpruneError
from exprune_fx.guards import Bound
from exprune_fx.pipeline import record_of, transform
from exprune_fx.plan import Plan, SitePlan
from exprune_fx.sites import find_heads
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.staging.heads import HEAD_KEY, HEAD_ROLE_KEY
from exprune_fx.zoo import accuracy

_ACCURACY_BATCH = 250


def run_subject(
    subject: Subject, machine: Machine, schedule: Schedule, say: Say, *, lower: bool = True, judge: bool = True
) -> Row:
    """Compiles a subject's columns, times them, and compares what they compute.

    Args:
        subject: what to run; nothing of it is changed.
        machine: with its ceilings.
        schedule: how long to time.
        say: told what is being done.
        lower: time the fused operators; False times the readable form, which saves nothing.
        judge: measure accuracy on the held-out examples, if there are any.

    Raises:
        ExpruneError: a column cannot be compiled, or was compiled again while it was timed.
    """
    say("transform")
    plan = _kept(subject, say) if lower else subject.plan
    plans = {OURS: plan} | ({STAGED: subject.plan} if plan is not subject.plan else {})
    forms = {form: transform(subject.gm, each, lower=lower) for form, each in plans.items()}
    readable = transform(subject.gm, plan, lower=False)
    ours = forms[OURS]
    touched = count_touched(readable, subject.inputs)
    timed, outputs = _time(subject, forms, schedule, say)
    dense = outputs[UNCOMPILED]
    right = {"": dense, OURS: _outputs(readable, subject)}
    if STAGED in forms:
        right[STAGED] = _outputs(transform(subject.gm, subject.plan, lower=False), subject)
    errors = {name: relative_error(values, right[name.rpartition("/")[0]]) for name, values in outputs.items()}
    wrong = WRONG[name_of(subject.dtype)]
    inner, times, inner_times = best_inner(timed, errors, wrong)
    got = outputs[f"{OURS}/{inner}"]
    proved = all(isinstance(entry.guard, Bound) for entry in plan.staged)
    proved &= all(entry.guard.claim == "proved" for entry in plan.staged_heads)
    judged = subject.held_out if judge else None
    say("accuracy" if judged else "")
    return Row(
        name=subject.name,
        kind=subject.kind,
        about=subject.about,
        dtype=name_of(subject.dtype),
        batch=subject.batch,
        threads=torch.get_num_threads(),
        timings=times,
        ours_inner=inner,
        ours_inner_seconds=inner_times,
        sites=count_forms(ours),
        decisions={entry.site: _decision(entry) for entry in plan.sites}
        | {entry.head: f"{entry.guard}: {entry.reason}" for entry in plan.heads},
        staged_s=best_inner(timed, errors, wrong, STAGED)[1][OURS].median if STAGED in forms else None,
        rounds=timed.rounds,
        calls=timed.calls,
        max_error=largest_difference(got, dense),
        error_kind="rounding" if proved or touched.stopped_fraction == 0 else "stopping",
        kernel_error=largest_difference(got, right[OURS]),
        output_scale=max((float(value.abs().max()) for value in dense if value.numel()), default=0.0),
        column_errors=errors,
        touched=touched,
        bandwidth_ceiling_gb_per_s=machine.read_gb_per_s,
        matmul_ceiling_gflop_per_s=machine.matmul(name_of(subject.dtype)),
        accuracy_dense=_accuracy(subject.model, judged),
        accuracy_ours=_accuracy(ours, judged),
        examples=len(judged.labels) if judged else 0,
    )


def _kept(subject: Subject, say: Say) -> Plan:
    """What the clock keeps of a micro row's plan, however it is called; a whole model's was settled by calibration."""
    if subject.kind != "micro" or not subject.plan.staged:
        return subject.plan
    say("settling by the clock")
    graph = Prepared.of(subject.gm)
    settled = settle(graph.gm, graph.groups, graph.sites, {"staged": subject.plan.sites}, subject.inputs, as_it_is=True)
    if any(entry.is_staged for entry in settled.sites):
        return subject.plan
    return replace(subject.plan, sites=settled.sites, objective="latency", whole=settled.timing)


def _time(
    subject: Subject, forms: Mapping[str, fx.GraphModule], schedule: Schedule, say: Say
) -> tuple[Interleaved, dict[str, list[Tensor]]]:
    """The times of all columns, and what each of them computes on all inputs."""
    torch._dynamo.reset()  # what earlier rows compiled; never between columns, which would be compiled again
    columns = _columns(subject, forms, say)
    say("timing")
    with torch.no_grad():
        timed = interleave({column.name: column.call for column in columns}, subject.inputs, schedule)
    for column in columns:
        column.check()
    return timed, {column.name: _outputs(column.call, subject) for column in columns}


def best_inner(
    timed: Interleaved, errors: Mapping[str, float], wrong: float, form: str = OURS
) -> tuple[str, dict[str, Timing], dict[str, float]]:
    """The fastest of ours: its way, all columns with it as ``ours``, and the medians of all of ours.

    Args:
        timed: with a column ``<form>/<inner>`` for each of `WAYS`.
        errors: by the same names; one with an error above ``wrong`` is out.
        wrong: share of the outputs' norm.
        form: OURS, or STAGED.

    Raises:
        ExpruneError: in none of these ways are the outputs right.
    """
    ours = {inner: timed.columns[f"{form}/{inner}"] for inner in WAYS}
    right = [inner for inner in ours if errors[f"{form}/{inner}"] <= wrong]
    if not right:
        found = ", ".join(f"{inner} {errors[f'{form}/{inner}']:.1g}" for inner in ours)
        raise ExpruneError(
            f"the staged graph computes something else than its readable form: errors {found}",
            hint="this is a bug, of the fused operators or of torch.compile",
        )
    inner = min(right, key=lambda name: ours[name].median)
    columns = {name: timed.columns[name] for name in DENSE} | {OURS: ours[inner]}
    return inner, columns, {name: timing.median for name, timing in ours.items()}


def _decision(entry: SitePlan) -> str:
    return entry.reason if entry.head == "dense" else f"{entry.head}: {entry.reason}"


def count_forms(gm: fx.GraphModule) -> dict[str, int]:
    """How many sites of a transformed graph are fused, readable, or dense."""
    record = record_of(gm)
    assert record is not None
    fused = {node.meta[SITE_KEY] for node in gm.graph.nodes if node.meta.get(ROLE_KEY) == "fused"}
    readable = {node.meta[SITE_KEY] for node in gm.graph.nodes if node.meta.get(ROLE_KEY) == "finish"}
    readable |= {node.meta[HEAD_KEY] for node in gm.graph.nodes if node.meta.get(HEAD_ROLE_KEY) == "finish"}
    dense = len(record.sites) + len(find_heads(record.dense)) - len(fused) - len(readable)
    return {"fused": len(fused), "readable": len(readable), "dense": dense}


def _columns(subject: Subject, forms: Mapping[str, fx.GraphModule], say: Say) -> list[Runnable]:
    models: dict[str, nn.Module] = {"": subject.model} | {f"{form}/": graph for form, graph in forms.items()}
    columns = []
    for prefix, model in models.items():
        for way in WAYS:
            name = f"{prefix}{way}"
            if way != UNCOMPILED:
                say(f"compiling {name}")
            columns.append(compiled(model, name, way, subject.inputs[0]))
    return columns


def _outputs(call: Callable[..., object], subject: Subject) -> list[Tensor]:
    """All output tensors on all inputs, in float32."""
    with torch.no_grad():
        leaves = [leaf for args in subject.inputs for leaf in pytree.tree_leaves(call(*args))]
    return [leaf.float() for leaf in leaves if isinstance(leaf, Tensor)]


def largest_difference(got: list[Tensor], expected: list[Tensor]) -> float:
    """The largest absolute difference of any element."""
    pairs = zip(got, expected, strict=True)
    return max((float((left - right).abs().max()) for left, right in pairs if left.numel()), default=0.0)


def relative_error(got: list[Tensor], expected: list[Tensor]) -> float:
    """The norm of the difference over the norm of what is expected, all outputs together."""
    difference = sum(float((left - right).double().square().sum()) for left, right in zip(got, expected, strict=True))
    whole = sum(float(value.double().square().sum()) for value in expected)
    return math.sqrt(difference / whole) if whole > 0 else math.sqrt(difference)


def _accuracy(model: Any, held_out: HeldOut | None) -> float | None:
    if held_out is None:
        return None
    return accuracy(model, held_out.images, held_out.labels, _ACCURACY_BATCH)
