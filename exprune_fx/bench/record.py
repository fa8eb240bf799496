"""The benchmark as plain data, and in one sentence."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from exprune_fx.bench.machine import Machine
from exprune_fx.bench.rows import Row

FORMAT = "exprune-bench"
FORMAT_VERSION = 1

KEYS = {
    "seconds": "median seconds a call, by column; all columns interleaved in one run",
    "spread": "first and third quartile of the same samples",
    "best_dense": "the fastest of the dense columns that are not wrong",
    "column_errors": "norm of a column's error over the norm of its outputs: dense columns against eager, ours/* "
    "against the readable staged form, uncompiled",
    "wrong": "columns that compute something else; they count neither as dense nor as ours",
    "ratio": "seconds[best_dense] / seconds[ours]: above 1 ours is faster",
    "ratio_spread": "first and third quartile of the same ratio taken round by round",
    "staged_seconds": "median of the staged form where the clock left the site dense, so that ours is dense; else null",
    "staged_ratio": "seconds[best_dense] / staged_seconds",
    "ours_inner": "how ours was fastest: eager is the transformed graph called as any module, without torch.compile, "
    "else the inner compiler's setting; ours_inner_seconds has all four",
    "sites": "of ours: fused (native kernels), readable (staged, but computed densely), dense (left as they are)",
    "decisions": "by site, what the plan decided and why",
    "max_error": "largest difference of an output from the eager dense model's, in float32",
    "error_kind": "stopping: guards may stop neurons that matter; rounding: nothing else can differ",
    "kernel_error": "largest difference of an output from the readable staged form's",
    "stopped_fraction": "share of the staged sites' neurons that stopped, on the timed inputs",
    "zero_fraction": "share of the staged sites' activations that are zero",
    "flops_touched": "a call, counted from who really stopped: 2 per multiply-add, tests included",
    "bytes_touched": "a call, counted: weights that are needed, inputs and outputs of layers, each once",
    "flops_saved": "1 - flops_touched / flops_dense",
    "time_saved": "1 - seconds[ours] / seconds[best_dense]",
    "time_over_flops": "time_saved / flops_saved; null where no FLOPs are saved",
    "gb_per_s": "bytes_touched over seconds[ours]; dense_*: the best dense column's own",
    "bandwidth_share": "gb_per_s over machine.read_gb_per_s; above 1 where weights stay in the caches",
    "compute_share": "gflop_per_s over machine.matmul_gflop_per_s[dtype]",
    "accuracy_*": "fraction of the held-out examples; null where the row has no labels",
}


@dataclass(frozen=True)
class Summary:
    """What all rows say together.

    Attributes:
        rows: how many.
        geometric_mean: of the ratios.
        slower: names of the rows with a ratio below 0.97.
        worst: the row with the lowest ratio.
    """

    rows: int
    geometric_mean: float
    slower: tuple[str, ...]
    worst: Row

    def text(self) -> str:
        """One honest line."""
        mean = f"{self.rows} rows, geometric mean {self.geometric_mean:.2f}x the best dense column"
        worst = f"worst {self.worst.ratio:.2f}x ({row_label(self.worst)})"
        slower = f"{len(self.slower)} below 0.97x" if self.slower else "none below 0.97x"
        return f"{mean}; {worst}; {slower}."


def summarise(rows: Sequence[Row]) -> Summary:
    """The summary of at least one row."""
    mean = math.exp(sum(math.log(row.ratio) for row in rows) / len(rows))
    slower = tuple(row_label(row) for row in rows if row.ratio < 0.97)
    return Summary(len(rows), mean, slower, min(rows, key=lambda row: row.ratio))


def row_label(row: Row) -> str:
    """Name, dtype and batch: what tells rows apart."""
    return f"{row.name} {row.dtype} batch {row.batch}"


def bench_json(machine: Machine, rows: Sequence[Row], settings: dict[str, Any]) -> dict[str, Any]:
    """The whole run."""
    summary = summarise(rows) if rows else None
    return {
        "format": FORMAT,
        "version": FORMAT_VERSION,
        "library": version("exprune_fx"),
        "keys": KEYS,
        "settings": settings,
        "machine": asdict(machine),
        "rows": [row_json(row) for row in rows],
        "summary": None
        if summary is None
        else {
            "rows": summary.rows,
            "geometric_mean_ratio": summary.geometric_mean,
            "worst": row_label(summary.worst),
            "worst_ratio": summary.worst.ratio,
            "below_0.97": list(summary.slower),
        },
    }


def row_json(row: Row) -> dict[str, Any]:
    """One row."""
    touched = row.touched
    ceiling = row.matmul_ceiling_gflop_per_s
    return {
        "name": row.name,
        "kind": row.kind,
        "about": row.about,
        "dtype": row.dtype,
        "batch": row.batch,
        "threads": row.threads,
        "seconds": row.seconds,
        "spread": {name: list(quartiles) for name, quartiles in row.spread.items()},
        "sites": row.sites,
        "decisions": row.decisions,
        "rounds": row.rounds,
        "calls_per_sample": row.calls,
        "best_dense": row.best_dense,
        "ratio": row.ratio,
        "ratio_spread": list(row.ratio_spread),
        "staged_seconds": row.staged_s,
        "staged_ratio": row.staged_ratio,
        "ours_inner": row.ours_inner,
        "ours_inner_seconds": row.ours_inner_seconds,
        "max_error": row.max_error,
        "error_kind": row.error_kind,
        "kernel_error": row.kernel_error,
        "output_scale": row.output_scale,
        "column_errors": row.column_errors,
        "wrong": list(row.wrong),
        "stopped_fraction": touched.stopped_fraction,
        "zero_fraction": touched.zero_fraction,
        "flops_saved": touched.flops_saved,
        "time_saved": row.time_saved,
        "time_over_flops": row.time_over_flops,
        "flops_touched": touched.flops,
        "flops_dense": touched.flops_dense,
        "bytes_touched": touched.bytes,
        "bytes_dense": touched.bytes_dense,
        "gb_per_s": row.gb_per_s,
        "gflop_per_s": row.gflop_per_s,
        "bandwidth_share": row.gb_per_s / row.bandwidth_ceiling_gb_per_s,
        "compute_share": None if ceiling is None else row.gflop_per_s / ceiling,
        "dense_gb_per_s": row.dense_gb_per_s,
        "dense_gflop_per_s": row.dense_gflop_per_s,
        "accuracy_dense": row.accuracy_dense,
        "accuracy_ours": row.accuracy_ours,
        "examples": row.examples,
    }
