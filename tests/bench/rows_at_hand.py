"""Rows with round numbers, and a machine that goes with them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from exprune_fx.bench.columns import COLUMNS, WAYS
from exprune_fx.bench.machine import Machine
from exprune_fx.bench.rows import Row
from exprune_fx.bench.timing import Timing
from exprune_fx.bench.touched import Touched

MACHINE = Machine("a cpu", 2, 2, "AVX2", "avx2", "2.13.0", "Linux x86_64", 20.0, 25.0, {"float32": 100.0})
TOUCHED = Touched(flops=2e6, flops_dense=8e6, bytes=5e6, bytes_dense=10e6, stopped_fraction=0.5, zero_fraction=0.9)


def timings(*medians: float) -> dict[str, Timing]:
    """Three samples for each column; what is slow in one round is slow in it for all."""
    return {name: Timing((0.9 * median, median, 1.3 * median)) for name, median in zip(COLUMNS, medians, strict=True)}


def a_row(**changes: Any) -> Row:
    """4 ms eager, 2 ms under Inductor and 1 ms ours; everything right."""
    times = (4e-3, 3e-3, 2.5e-3, 2e-3, 1e-3)
    row = Row(
        name="ffn",
        kind="micro",
        about="made up",
        dtype="float32",
        batch=1,
        threads=2,
        timings=timings(*times),
        ours_inner="inductor",
        ours_inner_seconds=dict(zip(WAYS, (1.3e-3, 1e-3, 1.1e-3, 1.2e-3), strict=True)),
        sites={"fused": 1, "readable": 0, "dense": 0},
        decisions={"fc1": "prefix: by hand"},
        rounds=9,
        calls=4,
        max_error=0.02,
        error_kind="stopping",
        kernel_error=1e-6,
        output_scale=2.0,
        column_errors=dict.fromkeys(("eager", *COLUMNS[1:4], "ours/inductor"), 0.0),
        touched=TOUCHED,
        bandwidth_ceiling_gb_per_s=25.0,
        matmul_ceiling_gflop_per_s=100.0,
    )
    return replace(row, **changes)
