"""The shrunk model is the masked dense model, on every architecture of the symmetry tests.

In float64 the two differ by the order of summation alone: 1e-10 of the largest output is far above that (1e-16 times a
few thousand terms) and far below what one misplaced channel or forgotten constant does (1e-3).
"""

from __future__ import annotations

import pytest
import torch

from exprune_fx.static import Random, shrink
from tests.static.masked import masked
from tests.symmetry.architectures.registry import ARCHITECTURES
from tests.symmetry.test_architectures import analysed, error, outputs

TOLERANCE = 1e-10
READS_ZERO = {
    # What aggregates neighbours gives a constant channel times a number that depends on the neighbours.
    "sage": ("conv2.lin_l",),
    "gin": ("conv1.nn.0", "conv2.nn.0"),
    # A query head that went leaves the values of its key-value head behind, which other query heads still read.
    "llama": ("layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj"),
}


@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_shrunk_graph_is_the_masked_dense_model(name: str, fraction: float) -> None:
    architecture, gm, _ = analysed(name)
    small = shrink(gm, criterion=Random(1), fraction_removed=fraction, ranking="layer")
    reference = masked(architecture.model, small.plan, READS_ZERO.get(name, ()))
    assert error(outputs(small.model, architecture), outputs(reference, architecture)) < TOLERANCE
    for group in small.plan.rounds[0].groups:
        counts = {len(row) for row in group.removed}
        assert len(counts) == 1, "as many for each index"
        assert abs(counts.pop() - fraction * group.size) <= 2, "about the fraction"
    assert small.report.params_removed > fraction / 4 or fraction == 0.1


def test_the_comparison_sees_a_forgotten_constant() -> None:
    """Guards the test above: without the constants, the outputs differ."""
    architecture, gm, _ = analysed("vgg_bn")
    dropped = shrink(gm, criterion=Random(1), fraction_removed=0.5, ranking="layer", constants="drop")
    reference = masked(architecture.model, dropped.plan)
    assert error(outputs(dropped.model, architecture), outputs(reference, architecture)) > 1e-3


def test_the_comparison_sees_a_misplaced_channel() -> None:
    """Guards the test above: with one other channel in one layer, the outputs differ."""
    architecture, gm, _ = analysed("resnet_basic")
    small = shrink(gm, criterion=Random(1), fraction_removed=0.5, ranking="layer")
    other = shrink(gm, criterion=Random(2), fraction_removed=0.5, ranking="layer")
    reference = masked(architecture.model, other.plan)
    assert error(outputs(small.model, architecture), outputs(reference, architecture)) > 1e-3
    assert torch.is_tensor(small.model.get_parameter("conv1.weight"))
