"""Shrink for good, then stage per input: both savings hold, and one report shows them."""

from __future__ import annotations

import torch

import exprune_fx as ex
from exprune_fx import zoo


def test_a_shrunk_model_is_staged_and_one_report_shows_both() -> None:
    model = zoo.load("vgg_fashion")
    sample = zoo.load_sample()
    batches = [(sample.calibration_images[:40],)]
    small = ex.shrink(model, batches[0], criterion=ex.Expressiveness(batches), target_flops=0.8)
    assert small.model is model
    example = (sample.calibration_images[:2],)
    gm = ex.capture(model, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    plan = ex.calibrate(gm, batches, guard=ex.Calibrated(0.02), objective="flops")
    staged = ex.transform(gm, plan, lower=False)
    measured = ex.measure(staged, batches)
    assert measured.flops_dense / 40 == small.report.flops_after
    both = small.report.with_staged(measured)
    dense = small.report.flops_before
    removed = 1 - (measured.flops_staged + measured.flops_overhead) / 40 / dense
    assert removed > small.report.flops_removed >= 0.2
    assert f"{100 * removed:.1f} %" in both
    assert f"{100 * small.report.flops_removed:.1f} %" in both
