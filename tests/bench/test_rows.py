"""What follows from a row's measurements, and how it is written down."""

from __future__ import annotations

import io
import json

import pytest
import torch
from rich.console import Console

from exprune_fx.bench.columns import COLUMNS, DENSE, WAYS
from exprune_fx.bench.record import KEYS, bench_json, row_json, summarise
from exprune_fx.bench.running import best_inner, largest_difference, relative_error
from exprune_fx.bench.table import machine_text, sections, time_text
from exprune_fx.bench.timing import Interleaved, Timing
from exprune_fx.errors import ExpruneError
from exprune_fx.report.terminal import section_renderable
from tests.bench.rows_at_hand import MACHINE, a_row, timings


def test_ratio_is_against_the_best_dense_column() -> None:
    row = a_row()
    assert row.best_dense == "inductor_max_autotune"
    assert row.ratio == pytest.approx(2.0)
    assert row.time_saved == pytest.approx(0.5)


def test_a_wrong_column_is_not_the_best() -> None:
    row = a_row(column_errors={"eager": 0.0, "inductor_max_autotune": 0.3, "inductor_freezing": 1e-6})
    assert row.wrong == ("inductor_max_autotune",)
    assert row.best_dense == "inductor_freezing"
    assert row.ratio == pytest.approx(2.5)


def test_a_column_that_is_not_finite_is_wrong() -> None:
    assert a_row(column_errors={"inductor": float("nan")}).wrong == ("inductor",)


def test_what_slows_a_whole_round_does_not_spread_the_ratio() -> None:
    row = a_row()
    assert row.spread["ours"] == pytest.approx((0.95e-3, 1.15e-3))
    assert row.ratio_spread == pytest.approx((2.0, 2.0))


def test_rates_and_savings() -> None:
    row = a_row()
    assert row.touched.flops_saved == pytest.approx(0.75)
    assert row.time_over_flops == pytest.approx(0.5 / 0.75)
    assert row.gb_per_s == pytest.approx(5.0)
    assert row.gflop_per_s == pytest.approx(2.0)
    assert row.dense_gb_per_s == pytest.approx(5.0)
    assert row.dense_gflop_per_s == pytest.approx(4.0)


def test_slower_is_a_negative_saving() -> None:
    row = a_row(timings=timings(1e-3, 1e-3, 1e-3, 1e-3, 2e-3))
    assert row.ratio == pytest.approx(0.5)
    assert row.time_saved == pytest.approx(-1.0)


def test_a_site_that_the_clock_left_dense_says_what_staging_it_would_take() -> None:
    row = a_row(timings=timings(4e-3, 3e-3, 2.5e-3, 2e-3, 2e-3), staged_s=4e-3)
    assert row.ratio == pytest.approx(1.0)
    assert row.staged_ratio == pytest.approx(0.5)
    (left,) = (section for section in sections([row, a_row()]) if section.title.startswith("Left dense"))
    assert left.table is not None
    assert [cells[-1].text for cells in left.table.rows] == ["0.50x"]
    assert not any(section.title.startswith("Left dense") for section in sections([a_row()]))
    assert bench_json(MACHINE, [row], {})["rows"][0]["staged_seconds"] == 4e-3


def test_summary_is_the_geometric_mean_and_names_the_worst() -> None:
    fast, slow = a_row(), a_row(name="slow", timings=timings(1e-3, 1e-3, 1e-3, 1e-3, 2e-3))
    summary = summarise([fast, slow])
    assert summary.geometric_mean == pytest.approx(1.0)  # sqrt(2 * 0.5)
    assert summary.worst is slow
    assert summary.slower == ("slow float32 batch 1",)
    assert "worst 0.50x (slow float32 batch 1); 1 below 0.97x" in summary.text()


def test_ours_is_the_fastest_way_that_is_right() -> None:
    medians = dict.fromkeys(DENSE, 5.0)
    medians |= {f"ours/{way}": seconds for way, seconds in zip(WAYS, (1.5, 3.0, 2.0, 1.0), strict=True)}
    timed = Interleaved({name: Timing((seconds,)) for name, seconds in medians.items()}, rounds=1, calls=1)
    errors = dict.fromkeys(medians, 0.0) | {"ours/inductor_max_autotune": 0.3}
    inner, columns, seconds = best_inner(timed, errors, 0.01)
    assert inner == "eager"
    assert columns["ours"].median == 1.5
    assert best_inner(timed, errors | {"ours/eager": 0.3}, 0.01)[0] == "inductor_freezing"
    assert list(columns) == list(COLUMNS)
    assert seconds["inductor_max_autotune"] == 1.0
    with pytest.raises(ExpruneError, match="computes something else"):
        best_inner(timed, dict.fromkeys(medians, 0.3), 0.01)


def test_errors_over_all_outputs() -> None:
    got, expected = [torch.tensor([1.0, 2.0]), torch.tensor([0.0])], [torch.tensor([1.0, 2.5]), torch.tensor([1.0])]
    assert largest_difference(got, expected) == 1.0
    assert relative_error(got, expected) == pytest.approx((1.25 / 8.25) ** 0.5)
    assert relative_error(got, got) == 0.0
    assert relative_error([torch.tensor([1.0])], [torch.tensor([0.0])]) == 1.0


def test_json_holds_every_figure_of_the_row_and_explains_them() -> None:
    data = json.loads(json.dumps(bench_json(MACHINE, [a_row()], {"quick": True})))
    (row,) = data["rows"]
    assert {
        "name", "kind", "dtype", "batch", "threads", "seconds", "spread", "best_dense", "ratio", "max_error",
        "error_kind", "stopped_fraction", "flops_saved", "time_saved", "bytes_touched", "flops_touched", "gb_per_s",
        "gflop_per_s", "bandwidth_share", "compute_share", "ours_inner", "accuracy_dense", "accuracy_ours", "examples",
    } <= set(row)  # fmt: skip
    assert set(row["seconds"]) == set(row["spread"]) == set(COLUMNS)
    assert row["bandwidth_share"] == pytest.approx(0.2)
    assert row["compute_share"] == pytest.approx(0.02)
    assert data["machine"]["threads"] == 2
    assert data["summary"]["geometric_mean_ratio"] == pytest.approx(2.0)
    explained = {key.rstrip("*") for key in data["keys"]}
    assert all(any(name.startswith(key) for name in {*row, "ours_inner"}) for key in explained)


def test_json_without_rows_and_without_a_ceiling() -> None:
    assert bench_json(MACHINE, [], {})["summary"] is None
    assert row_json(a_row(matmul_ceiling_gflop_per_s=None))["compute_share"] is None
    assert set(KEYS) == set(bench_json(MACHINE, [], {})["keys"])


def test_tables_mark_the_best_and_the_wrong_column() -> None:
    row = a_row(column_errors={"inductor_max_autotune": 0.3}, accuracy_dense=0.9, accuracy_ours=0.895, examples=2000)
    times, touched, accuracy, summary = sections([row])
    assert times.table is not None
    assert [cell.text for cell in times.table.rows[0]][1:] == [
        "f32x1", "4.00 ms", "3.00 ms", "2.50 ms*", "2.00 ms!", "1.00 ms", "2.50x", "2.50-2.50",
    ]  # fmt: skip
    assert touched.table is not None
    assert [cell.text for cell in touched.table.rows[0]][2:] == [
        "50 %",
        "75 %",
        "60 %",
        "5.0 (20 %)",
        "2.0 (2 %)",
        "1e-02",
    ]
    assert accuracy.table is not None
    assert [cell.text for cell in accuracy.table.rows[0]][2:] == ["2,000", "90.00 %", "89.50 %", "+0.50", "0.80"]
    assert len(summary.paragraphs) == 1


def test_tables_fit_100_columns() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    longest = a_row(name="conv_128x16x16_principal", dtype="bfloat16", batch=64, error_kind="rounding")
    for section in sections([longest]):
        console.print(section_renderable(section))
    printed = console.export_text()
    for text in (
        "conv_128x16x16_principal  bf16x64",
        "2.00 ms*  1.00 ms  2.00x  2.00-2.00",
        "5.0 (20 %)",
        "1e-02 (r)",
    ):
        assert text in printed


def test_summary_says_which_of_ours_are_better_not_compiled() -> None:
    called = a_row(name="small", ours_inner="eager")
    assert sections([called, a_row()])[-1].paragraphs[1:] == (
        "Ours is fastest called as it is, without torch.compile: small float32 batch 1.",
    )


def test_summary_says_where_no_kernel_ran() -> None:
    row = a_row(sites={"fused": 0, "readable": 2, "dense": 1})
    assert sections([row])[-1].paragraphs[1] == "Staged but computed densely, without a native kernel: ffn (2 sites)."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(1.234e-6, "1.23 us"), (45.67e-6, "45.7 us"), (0.9996e-3, "1.00 ms"), (0.12345, "123 ms"), (2.5, "2.50 s")],
)
def test_times_have_three_digits(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_the_machine_is_named_with_its_ceilings() -> None:
    text = machine_text(MACHINE)
    assert "2 threads" in text
    assert "read 25.0 GB/s" in text
    assert "f32 100" in text
