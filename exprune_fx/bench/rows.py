"""One row: a subject's columns timed beside each other, and what these times mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exprune_fx.bench.columns import DENSE, INNER, OURS, Column, compiled, eager
from exprune_fx.bench.machine import Machine, name_of
from exprune_fx.bench.subject import HeldOut, Kind, Say, Subject
from exprune_fx.bench.timing import Interleaved, Schedule, Timing, interleave
from exprune_fx.bench.touched import Touched, count_touched
from exprune_fx.guards import Bound
from exprune_fx.pipeline import transform
from exprune_fx.zoo import accuracy

_ACCURACY_BATCH = 250


@dataclass(frozen=True)
class Row:
    """One row of the benchmark; times are seconds a call.

    Attributes:
        name: of the row.
        kind: one operator, or a whole model.
        about: how the subject was made.
        dtype: of weights and activations.
        batch: examples in one call.
        threads: of torch.
        seconds: median, by column.
        spread: first and third quartile, by column.
        ours_inner: the inner setting under which ours was fastest.
        ours_inner_seconds: median of ours under each.
        rounds: samples of each column.
        calls: calls that one sample is the mean of.
        max_error: largest difference of any output from the dense model's in eager mode, in float32.
        error_kind: "stopping" where a guard may stop neurons that matter, else "rounding".
        kernel_error: largest difference from the readable staged form: what the fused operators alone add.
        output_scale: largest absolute dense output, for comparison.
        touched: FLOPs and bytes a call, stopped and zero shares, counted on the timed inputs.
        bandwidth_ceiling_gb_per_s: of a large read on this machine.
        matmul_ceiling_gflop_per_s: of a large matrix product in this dtype; None if it was not measured.
        accuracy_dense: on held-out examples, None without.
        accuracy_ours: likewise, of the graph that was timed.
        examples: held-out examples; 0 without.
    """

    name: str
    kind: Kind
    about: str
    dtype: str
    batch: int
    threads: int
    seconds: dict[str, float]
    spread: dict[str, tuple[float, float]]
    ours_inner: str
    ours_inner_seconds: dict[str, float]
    rounds: int
    calls: int
    max_error: float
    error_kind: str
    kernel_error: float
    output_scale: float
    touched: Touched
    bandwidth_ceiling_gb_per_s: float
    matmul_ceiling_gflop_per_s: float | None
    accuracy_dense: float | None = None
    accuracy_ours: float | None = None
    examples: int = 0

    @property
    def best_dense(self) -> str:
        """The fastest dense column."""
        return min(DENSE, key=self.seconds.__getitem__)

    @property
    def ratio(self) -> float:
        """The best dense column's median over ours: above 1 ours is faster."""
        return self.seconds[self.best_dense] / self.seconds[OURS]

    @property
    def time_saved(self) -> float:
        """Share of the best dense column's time; negative where ours is slower."""
        return 1.0 - self.seconds[OURS] / self.seconds[self.best_dense]

    @property
    def time_over_flops(self) -> float | None:
        """Time saved over FLOPs saved: 1 where every FLOP that is saved shows on the clock."""
        return self.time_saved / self.touched.flops_saved if self.touched.flops_saved > 0 else None

    @property
    def gb_per_s(self) -> float:
        """Bytes that ours touches, 1e9 a second."""
        return self.touched.bytes / self.seconds[OURS] / 1e9

    @property
    def gflop_per_s(self) -> float:
        """FLOPs that ours computes, 1e9 a second."""
        return self.touched.flops / self.seconds[OURS] / 1e9

    @property
    def dense_gb_per_s(self) -> float:
        """Bytes that the best dense column touches, 1e9 a second."""
        return self.touched.bytes_dense / self.seconds[self.best_dense] / 1e9

    @property
    def dense_gflop_per_s(self) -> float:
        """FLOPs that the best dense column computes, 1e9 a second."""
        return self.touched.flops_dense / self.seconds[self.best_dense] / 1e9


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
    readable = transform(subject.gm, subject.plan, lower=False)
    ours = transform(subject.gm, subject.plan, lower=lower)
    touched = count_touched(readable, subject.inputs)
    torch._dynamo.reset()
    columns = _columns(subject, ours, say)
    say("timing")
    with torch.no_grad():
        timed = interleave({column.name: column.call for column in columns}, subject.inputs, schedule)
    for column in columns:
        column.check()
    outputs = {column.name: _outputs(column.call, subject) for column in columns}
    inner, times, inner_times = best_inner(timed)
    dense = outputs["eager"]
    got = outputs[f"{OURS}/{inner}"]
    proved = all(isinstance(entry.guard, Bound) for entry in subject.plan.staged)
    judged = subject.held_out if judge else None
    say("accuracy" if judged else "")
    return Row(
        name=subject.name,
        kind=subject.kind,
        about=subject.about,
        dtype=name_of(subject.dtype),
        batch=subject.batch,
        threads=torch.get_num_threads(),
        seconds={name: timing.median for name, timing in times.items()},
        spread={name: timing.quartiles for name, timing in times.items()},
        ours_inner=inner,
        ours_inner_seconds=inner_times,
        rounds=timed.rounds,
        calls=timed.calls,
        max_error=largest_difference(got, dense),
        error_kind="rounding" if proved or touched.stopped_fraction == 0 else "stopping",
        kernel_error=largest_difference(got, _outputs(readable, subject)),
        output_scale=max((float(value.abs().max()) for value in dense if value.numel()), default=0.0),
        touched=touched,
        bandwidth_ceiling_gb_per_s=machine.read_gb_per_s,
        matmul_ceiling_gflop_per_s=machine.matmul(name_of(subject.dtype)),
        accuracy_dense=_accuracy(subject.model, judged),
        accuracy_ours=_accuracy(ours, judged),
        examples=len(judged.labels) if judged else 0,
    )


def best_inner(timed: Interleaved) -> tuple[str, dict[str, Timing], dict[str, float]]:
    """The fastest of ours: its inner setting, all columns with it as ``ours``, and the medians of all of ours."""
    ours = {inner: timed.columns[f"{OURS}/{inner}"] for inner in INNER}
    inner = min(ours, key=lambda name: ours[name].median)
    columns = {name: timed.columns[name] for name in DENSE} | {OURS: ours[inner]}
    return inner, columns, {name: timing.median for name, timing in ours.items()}


def _columns(subject: Subject, ours: fx.GraphModule, say: Say) -> list[Column]:
    example = subject.inputs[0]
    columns = [eager(subject.model)]
    wanted: Mapping[str, tuple[nn.Module, str]] = {
        **{inner: (subject.model, inner) for inner in INNER},
        **{f"{OURS}/{inner}": (ours, inner) for inner in INNER},
    }
    for name, (model, inner) in wanted.items():
        say(f"compiling {name}")
        columns.append(compiled(model, name, inner, example))
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


def _accuracy(model: Any, held_out: HeldOut | None) -> float | None:
    if held_out is None:
        return None
    return accuracy(model, held_out.images, held_out.labels, _ACCURACY_BATCH)
