"""The shares of stopped neurons and zero units that micro rows promise, and the rows that can be asked for."""

from __future__ import annotations

import pytest
import torch

from exprune_fx.bench import micro
from exprune_fx.bench.quantiles import quantile_plan
from exprune_fx.bench.selection import select_rows
from exprune_fx.bench.touched import count_touched
from exprune_fx.errors import DataError, PlanError
from exprune_fx.guards import HeadKind
from exprune_fx.pipeline import transform
from tests.report import tiny


def silent(_text: str) -> None:
    """Progress that nobody wants to see."""


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("case", "stopped", "zero"), [(micro.SPARSE, 0.5, 0.9), (micro.FULL, 0.0, 0.0)])
def test_a_feed_forward_block_has_the_promised_shares(
    dtype: torch.dtype, case: micro.FfnCase, stopped: float, zero: float
) -> None:
    subject = micro.make_ffn(256, case, dtype, 4, silent)
    touched = count_touched(transform(subject.gm, subject.plan, lower=False), subject.inputs)
    # 8 calls of 4 tokens and 1024 neurons; what one token has in common over its neurons leaves a few percent.
    assert touched.stopped_fraction == pytest.approx(stopped, abs=0.05)
    assert touched.zero_fraction == pytest.approx(zero, abs=0.03)
    assert subject.inputs[0][0].shape == (4, 256)
    assert subject.inputs[0][0].dtype == dtype


@pytest.mark.parametrize(("head", "stage"), [("prefix", 4), ("principal", 4), ("coded", 32)])
def test_a_convolution_has_the_promised_share(head: HeadKind, stage: int) -> None:
    subject = micro.make_conv(32, 8, head, torch.float32, 1, silent)
    (entry,) = subject.plan.staged
    assert (entry.head, entry.stages) == (head, (stage,))
    touched = count_touched(transform(subject.gm, subject.plan, lower=False), subject.inputs)
    assert touched.stopped_fraction == pytest.approx(0.65, abs=0.01)  # thresholds are quantiles of these very images
    assert touched.zero_fraction >= 0.65
    assert subject.inputs[0][0].is_contiguous(memory_format=torch.channels_last)


def test_stopping_hits_dead_neurons_for_the_most_part() -> None:
    subject = micro.make_ffn(256, micro.SPARSE, torch.float32, 4, silent)
    staged = transform(subject.gm, subject.plan, lower=False)
    with torch.no_grad():
        for args in subject.inputs:
            dense = subject.model(*args)
            assert (staged(*args) - dense).norm() < 0.1 * dense.norm()


def test_the_same_seed_makes_the_same_row() -> None:
    first, second = (micro.make_conv(16, 4, "prefix", torch.float32, 2, silent) for _ in range(2))
    assert first.plan == second.plan
    assert all(torch.equal(a, b) for (a,), (b,) in zip(first.inputs, second.inputs, strict=True))


def test_leading_features_hold_the_variance() -> None:
    scale = micro.leading_scale(64)
    assert float(scale[:8].square().sum() / scale.square().sum()) == pytest.approx(0.8)


def test_a_model_without_a_site_has_no_quantiles() -> None:
    with pytest.raises(PlanError, match="no site to stage"):
        quantile_plan(tiny.captured(tiny.Smooth(), 4), [(torch.ones(2, 4),)], 0.5)


# --- which rows -------------------------------------------------------------------------------------------------------


def test_by_default_all_rows_run() -> None:
    rows = select_rows()
    labels = [row.label for row in rows]
    assert len(set(labels)) == len(labels)
    assert {
        "ffn_2048 float32 batch 64",
        "ffn_4096_full bfloat16 batch 1",
        "conv_512x4x4_principal float32 batch 1",
    } <= set(labels)
    assert {"opt_shaped bfloat16 batch 1", "resnet_fashion float32 batch 1"} <= set(labels)
    assert not any("vgg11" in label for label in labels)  # without its weights


def test_rows_are_chosen_by_kind_by_part_of_the_name_and_by_model() -> None:
    assert {row.kind for row in select_rows(["micro"])} == {"micro"}
    assert {row.kind for row in select_rows(["models"])} == {"model"}
    assert {row.name for row in select_rows(["conv_64"])} == {
        f"conv_64x32x32_{head}" for head in ("prefix", "principal", "coded")
    }
    assert {row.name for row in select_rows((), ["opt_shaped"])} == {"opt_shaped"}
    assert {row.name for row in select_rows(["conv_512"], ["vgg_fashion"])} >= {"conv_512x4x4_prefix", "vgg_fashion"}


def test_batch_and_dtype_hold_for_every_row() -> None:
    rows = select_rows(batch=8, dtypes=[torch.float16])
    assert {(row.batch, row.dtype) for row in rows} == {(8, torch.float16)}
    assert len({row.name for row in rows}) == len(rows)


def test_a_name_that_fits_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="no row 'gemm'"):
        select_rows(["gemm"])
    with pytest.raises(DataError, match="no model 'alexnet'"):
        select_rows((), ["alexnet"])
