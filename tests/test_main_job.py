"""The main job on the shipped models and real images: what it saves, and that Bound changes nothing.

`EXPRUNE_TEST_IMAGES=10000 pytest` tries Bound on all test images, where the whole data set is at hand.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor, fx

from exprune_fx import zoo
from exprune_fx.calibration import calibrate
from exprune_fx.graph import capture
from exprune_fx.guards import Bound, Calibrated
from exprune_fx.measurement import measure
from exprune_fx.pipeline import normalise, transform
from tests.passes.staging import plan_for
from tests.zoo.fashion import FOLDER, TEST_IMAGES


@cache
def captured(name: str) -> fx.GraphModule:
    return capture(zoo.load(name), (torch.zeros(2, 1, 28, 28),), dynamic_shapes=({0: torch.export.Dim("batch")},))


def _batches(images: Tensor) -> list[tuple[Tensor]]:
    return [(part,) for part in images.split(250)]


@pytest.mark.parametrize("name", zoo.names())
def test_calibrated_saves_a_third_of_the_flops(name: str) -> None:
    """On images that neither training nor calibration saw; half a point here, as 2,000 images tell no less apart."""
    gm, sample = captured(name), zoo.load_sample()
    staged = transform(gm, calibrate(gm, zoo.calibration_batches(250), Calibrated(0.01), head="principal"), lower=False)
    counted = measure(staged, _batches(sample.test_images[:500]))
    assert counted.fraction_removed >= 0.35
    assert counted.examples == 500
    dense = zoo.accuracy(gm, sample.test_images, sample.test_labels)
    assert zoo.accuracy(staged, sample.test_images, sample.test_labels) >= dense - 0.005


@pytest.mark.parametrize("name", zoo.names())
@torch.no_grad()
def test_bound_changes_no_output_beyond_rounding(name: str) -> None:
    """With every site staged, also where that does not pay."""
    gm = captured(name)
    whole = TEST_IMAGES > 2000 and (FOLDER / "t10k-images-idx3-ubyte.gz").is_file()
    images = (zoo.load_fashion_mnist(FOLDER, "test")[0] if whole else zoo.load_sample().test_images)[:TEST_IMAGES]
    plan = plan_for(normalise(gm), Bound(), count=3)
    staged = transform(gm, plan, lower=False)
    assert len(plan.staged) == len(plan.sites) - 1  # all but the first layer, which has one input channel
    assert any(site.stopped_fraction > 0 for site in measure(staged, [(images[:100],)]).sites)
    worst = max(float((staged(part) - gm(part)).abs().max()) for (part,) in _batches(images))
    # logits are of order 10; float32 sums of about a thousand products, a dozen layers deep, in another order
    assert worst < 1e-3
