"""The benchmark as two tables for a terminal of 100 columns: times and ratios, then what was touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from exprune_fx.bench.columns import COLUMNS, OURS
from exprune_fx.bench.machine import Machine
from exprune_fx.bench.record import row_label, summarise
from exprune_fx.bench.rows import Row
from exprune_fx.compiling import UNCOMPILED
from exprune_fx.report.layout import Cell, Section, Table, columns
from exprune_fx.wording import percent_text

_SHORT = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
_TITLES = ("eager", "inductor", "freezing", "autotune", "ours")

_TIMES_NOTE = (
    "Batch: dtype x examples in a call. Times: median of a call, all columns interleaved in one run; the best dense "
    "column is marked *, one that computes wrong outputs !. Ratio: that column over ours, above 1 ours is faster; "
    "quartiles: of that ratio, round by round. Freezing, autotune: torch.compile with parameters frozen, and "
    "max_autotune on top; ours: the graph that is kept, in the best of the same four ways: a transformed graph is an "
    "ordinary module, which can be called without torch.compile."
)
_TOUCHED_NOTE = (
    "Stopped: share of the staged sites' neurons. FLOPs, time: share saved; FLOPs are counted, tests included, time is "
    "against the best dense column. GB/s, GFLOP/s: what ours touches over its time, with its share of this machine's "
    "large read and large matrix product. Error: largest difference from the dense outputs, over the largest of these; "
    "(r): rounding alone, else stopping adds to it."
)

_LEFT_NOTE = (
    "Here the staged graph won in no way when whole graphs were compared, so ours runs dense. Staged: the time "
    "that it would take in the best of the four ways; if staged: the ratio then."
)


def machine_text(machine: Machine) -> str:
    """The machine in two lines."""
    rates = machine.matmul_gflop_per_s.items()
    products = ", ".join(f"{_SHORT.get(name, name)} {rate:,.{0 if rate >= 10 else 1}f}" for name, rate in rates)
    return (
        f"{machine.cpu}, {machine.cores} cores, {machine.threads} threads, {machine.isa} "
        f"(fused operators: {machine.kernels_isa}), torch {machine.torch_version}.\n"
        f"Ceilings: copy {machine.copy_gb_per_s:.1f} GB/s (read + written), read {machine.read_gb_per_s:.1f} GB/s, "
        f"matrix product {products} GFLOP/s."
    )


def sections(rows: Sequence[Row]) -> list[Section]:
    """The tables of some rows, and the summary."""
    threads = ", ".join(str(count) for count in sorted({row.threads for row in rows}))
    return [
        Section(f"Time a call, {threads} threads", (_TIMES_NOTE,), _times(rows)),
        Section("What was touched", (_TOUCHED_NOTE,), _touched(rows)),
        *_left_dense(rows),
        *_accuracies(rows),
        Section("Summary", (summarise(rows).text(), *_uncompiled(rows), *_unlowered(rows))),
    ]


def _uncompiled(rows: Sequence[Row]) -> list[str]:
    """Whose time is that of a call without torch.compile: who compiles such a graph makes it slower."""
    called = [row_label(row) for row in rows if row.ours_inner == UNCOMPILED]
    return [f"Ours is fastest called as it is, without torch.compile: {', '.join(called)}."] if called else []


def _unlowered(rows: Sequence[Row]) -> list[str]:
    """What has to be known of ours where no kernel ran."""
    readable = [f"{row.name} ({row.sites['readable']} sites)" for row in rows if row.sites["readable"]]
    return [f"Staged but computed densely, without a native kernel: {', '.join(readable)}."] if readable else []


def _times(rows: Sequence[Row]) -> Table:
    titles = columns("row", ">batch", *(f">{title}" for title in _TITLES), ">ratio", ">quartiles")
    return Table(titles, tuple((*_head(row), *_time_cells(row)) for row in rows))


def _head(row: Row) -> tuple[Cell, ...]:
    return Cell(row.name, mono=True), Cell(f"{_SHORT[row.dtype]}x{row.batch}")


def _time_cells(row: Row) -> tuple[Cell, ...]:
    low, high = row.ratio_spread
    times = [Cell(time_text(row.seconds[name]) + _mark(row, name), tone=_tone(row, name)) for name in COLUMNS]
    tone: Literal["good", "bad"] = "good" if row.ratio >= 0.97 else "bad"
    return (*times, Cell(f"{row.ratio:.2f}x", tone=tone), Cell(f"{low:.2f}-{high:.2f}", tone="quiet"))


def _mark(row: Row, name: str) -> str:
    return "*" if name == row.best_dense else "!" if name in row.wrong else ""


def _tone(row: Row, name: str) -> Literal["", "quiet"]:
    return "" if name in (OURS, row.best_dense) else "quiet"


def _touched(rows: Sequence[Row]) -> Table:
    titles = columns("row", ">batch", ">stopped", ">FLOPs", ">time", ">GB/s", ">GFLOP/s", ">error")
    return Table(titles, tuple((*_head(row), *_touched_cells(row)) for row in rows))


def _touched_cells(row: Row) -> tuple[Cell, ...]:
    ceiling = row.matmul_ceiling_gflop_per_s
    error = f"{row.max_error / (row.output_scale or 1.0):.0e}" + (" (r)" if row.error_kind == "rounding" else "")
    return (
        Cell(percent_text(row.touched.stopped_fraction, 0)),
        Cell(percent_text(row.touched.flops_saved, 0)),
        Cell(percent_text(row.time_saved, 0), tone="good" if row.time_saved > 0 else "bad"),
        Cell(_rate(row.gb_per_s, row.bandwidth_ceiling_gb_per_s)),
        Cell(_rate(row.gflop_per_s, ceiling)),
        Cell(error),
    )


def _rate(rate: float, ceiling: float | None) -> str:
    share = f" ({100 * rate / ceiling:.0f} %)" if ceiling else ""
    return f"{rate:.1f}{share}" if rate < 100 else f"{rate:.0f}{share}"


def _left_dense(rows: Sequence[Row]) -> list[Section]:
    left = [row for row in rows if row.staged_s is not None]
    if not left:
        return []
    titles = columns("row", ">batch", ">staged", ">ratio", ">if staged")
    cells = tuple(
        (*_head(row), Cell(time_text(row.staged_s or 0)), Cell(f"{row.ratio:.2f}x"), Cell(f"{row.staged_ratio:.2f}x"))
        for row in left
    )
    return [Section("Left dense by the clock", (_LEFT_NOTE,), Table(titles, cells))]


def _accuracies(rows: Sequence[Row]) -> list[Section]:
    judged = [row for row in rows if row.accuracy_dense is not None and row.accuracy_ours is not None]
    if not judged:
        return []
    titles = columns("row", "dtype", ">examples", ">dense", ">ours", ">drop, points", ">time / FLOPs saved")
    return [Section("Held-out accuracy", (), Table(titles, tuple(_accuracy_cells(row) for row in judged)))]


def _accuracy_cells(row: Row) -> tuple[Cell, ...]:
    assert row.accuracy_dense is not None
    assert row.accuracy_ours is not None
    drop = 100 * (row.accuracy_dense - row.accuracy_ours)
    share = row.time_over_flops
    return (
        Cell(row.name, mono=True),
        Cell(_SHORT[row.dtype]),
        Cell(f"{row.examples:,}"),
        Cell(percent_text(row.accuracy_dense, 2)),
        Cell(percent_text(row.accuracy_ours, 2)),
        Cell(f"{drop:+.2f}", tone="bad" if drop > 1 else ""),
        Cell("-" if share is None else f"{share:.2f}"),
    )


def time_text(seconds: float) -> str:
    """Three significant digits with a unit: "12.3 us", "1.50 ms", "235 ms", "2.35 s"."""
    for unit, factor in (("us", 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 999.5:
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{seconds:.2f} s"
