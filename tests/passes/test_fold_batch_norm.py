from __future__ import annotations

from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from exprune_fx.graph import capture
from exprune_fx.passes.fold_batch_norm import FoldBatchNormPass
from tests.graph.models import ResidualCnn, randomise
from tests.passes.equivalence import apply, body, captured

# float64, sums of at most a few hundred terms of order one, scaled by 1 / sqrt(0.5): rounding stays far below this.
TOLERANCE = 1e-11


def test_golden() -> None:
    gm, x = captured(ResidualCnn(), 2, 3, 8, 8)
    assert body(gm) == (
        "conv2d = aten.conv2d(x, stem_weight, stem_bias)\n"
        "conv2d_1 = aten.conv2d(conv2d, block_conv1_weight, None, [1, 1], [1, 1])\n"
        "batch_norm = aten.batch_norm(conv2d_1, block_norm1_weight, block_norm1_bias, block_norm1_running_mean, "
        "block_norm1_running_var, False, 0.1, 1e-05, False)\n"
        "relu = aten.relu(batch_norm)\n"
        "conv2d_2 = aten.conv2d(relu, block_conv2_weight, block_conv2_bias, [1, 1], [1, 1])\n"
        "batch_norm_1 = aten.batch_norm(conv2d_2, block_norm2_weight, block_norm2_bias, block_norm2_running_mean, "
        "block_norm2_running_var, False, 0.1, 1e-05, False)\n"
        "add = aten.add.Tensor(batch_norm_1, conv2d)\n"
        "relu_1 = aten.relu(add)\n"
        "mean = aten.mean.dim(relu_1, [2, 3])\n"
        "clone = aten.clone(mean)\n"
        "linear = aten.linear(clone, head_weight, head_bias)\n"
        "return linear\n"
    )
    after = apply(FoldBatchNormPass(), gm, x, edits=2, tolerance=TOLERANCE)
    assert body(after) == (
        "conv2d = aten.conv2d(x, stem_weight, stem_bias)\n"
        "conv2d_1 = aten.conv2d(conv2d, block_conv1_folded_weight, block_conv1_folded_bias, [1, 1], [1, 1])\n"
        "relu = aten.relu(conv2d_1)\n"
        "conv2d_2 = aten.conv2d(relu, block_conv2_folded_weight, block_conv2_folded_bias, [1, 1], [1, 1])\n"
        "add = aten.add.Tensor(conv2d_2, conv2d)\n"
        "relu_1 = aten.relu(add)\n"
        "mean = aten.mean.dim(relu_1, [2, 3])\n"
        "clone = aten.clone(mean)\n"
        "linear = aten.linear(clone, head_weight, head_bias)\n"
        "return linear\n"
    )
    folded = [n for n in after.graph.nodes if n.meta.get("made_by") == "fold-batch-norm" and n.op == "call_function"]
    assert [n.meta["module_path"] for n in folded] == ["block.conv1", "block.conv2"]
    assert not any("running" in name for name in after.state_dict())


FOLDS: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("conv1d", nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6)), (2, 4, 9)),
    ("conv2d", nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (2, 4, 9, 9)),
    ("conv3d", nn.Sequential(nn.Conv3d(4, 6, 2), nn.BatchNorm3d(6)), (2, 4, 5, 5, 5)),
    ("linear", nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), (2, 4)),
    ("no conv bias", nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6)), (2, 4, 9, 9)),
    ("no affine", nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False)), (2, 4, 9, 9)),
    ("large eps", nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.7)), (2, 4, 9, 9)),
    ("grouped", nn.Sequential(nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 4, 9, 9)),
    ("depthwise", nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, stride=2), nn.BatchNorm2d(8)), (2, 4, 9, 9)),
    ("same padding", nn.Sequential(nn.Conv2d(4, 6, 3, padding="same", dilation=2), nn.BatchNorm2d(6)), (2, 4, 9, 9)),
    ("transposed 1d", nn.Sequential(nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d(6)), (2, 4, 9)),
    ("transposed 2d", nn.Sequential(nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6)), (2, 4, 5, 5)),
    ("transposed square", nn.Sequential(nn.ConvTranspose2d(6, 6, 3), nn.BatchNorm2d(6)), (2, 6, 5, 5)),
    (
        "transposed grouped",
        nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2, output_padding=1, stride=2), nn.BatchNorm2d(6)),
        (2, 4, 5, 5),
    ),
    ("transposed 3d", nn.Sequential(nn.ConvTranspose3d(2, 3, 2, bias=False), nn.BatchNorm3d(3)), (2, 2, 3, 3, 3)),
]


@pytest.mark.parametrize(("model", "shape"), [f[1:] for f in FOLDS], ids=[f[0] for f in FOLDS])
def test_folds(model: nn.Module, shape: tuple[int, ...]) -> None:
    gm, x = captured(model, *shape)
    after = apply(FoldBatchNormPass(), gm, x, edits=1, tolerance=TOLERANCE)
    assert "batch_norm" not in body(after)


def test_against_values_by_hand() -> None:
    """y = gamma (w x + b - mean) / sqrt(var + eps) + beta with numbers for which every step is exact."""
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1, eps=1.0)).double().eval()
    linear, norm = cast(nn.Linear, model[0]), cast(nn.BatchNorm1d, model[1])
    values = {linear.weight: 3.0, linear.bias: 5.0, norm.weight: 4.0, norm.bias: 7.0}
    with torch.no_grad():
        for parameter, value in values.items():
            parameter.fill_(value)
    norm.running_mean, norm.running_var = torch.tensor([2.0]).double(), torch.tensor([15.0]).double()
    gm = FoldBatchNormPass()(capture(model, (torch.ones(2, 1, dtype=torch.float64),))).graph_module
    # scale = 4 / sqrt(16) = 1: weight 3, bias (5 - 2) + 7 = 10
    assert gm.state_dict()["0.folded_weight"].item() == 3.0
    assert gm.state_dict()["0.folded_bias"].item() == 10.0


def test_dtype_is_kept_and_the_product_is_made_in_float64() -> None:
    gm, x = captured(nn.Sequential(nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), 2, 4, 9, 9, dtype=torch.float32)
    after = FoldBatchNormPass()(gm).graph_module
    assert {t.dtype for t in after.state_dict().values()} == {torch.float32}
    # float32, 36 terms of order one.
    torch.testing.assert_close(after(x), gm(x), rtol=1e-4, atol=1e-4)


class Wired(nn.Module):
    """A conv and a batch norm, wired in a way that must not be folded (or only partly)."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv = nn.Conv2d(4, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4, track_running_stats=how != "batch statistics")

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        if self.how == "conv read twice":
            return self.norm(y) + y
        if self.how == "relu between":
            return self.norm(torch.relu(y))
        if self.how == "norm first":
            return self.conv(self.norm(x))
        if self.how == "computed weight":
            return self.norm(nn.functional.conv2d(x, self.conv.weight * 2, self.conv.bias))
        if self.how == "computed statistics":
            return nn.functional.batch_norm(y, self.norm.running_mean, cast(Tensor, self.norm.running_var) + 1)
        return self.norm(y)


@pytest.mark.parametrize(
    "how",
    ["conv read twice", "relu between", "norm first", "computed weight", "computed statistics", "batch statistics"],
)
def test_near_misses(how: str) -> None:
    gm, x = captured(Wired(how), 2, 4, 6, 6)
    apply(FoldBatchNormPass(), gm, x, edits=0)


def test_a_norm_over_the_positions_of_a_sequence_is_not_folded() -> None:
    """On (batch, positions, features) a batch norm works on the positions, a linear on the features."""
    gm, x = captured(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), 2, 6, 4)
    apply(FoldBatchNormPass(), gm, x, edits=0)


def test_a_constant_weight_is_not_folded() -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.randn(6, 4, dtype=torch.float64)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm(nn.functional.linear(x, self.weight))
            return result

    gm, x = captured(Constant(), 2, 4)
    apply(FoldBatchNormPass(), gm, x, edits=0)


def test_a_product_that_overflows_is_not_folded() -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))).half().eval()
    with torch.no_grad():
        for weight in (model[0].weight, model[1].weight):
            cast(Tensor, weight).fill_(6e4)
    gm = capture(model, (torch.zeros(2, 4, dtype=torch.float16),))
    assert FoldBatchNormPass()(gm).edits == 0


@pytest.mark.parametrize(("dtype", "edits"), [(torch.float16, 0), (torch.bfloat16, 1), (torch.float32, 1)])
def test_without_values_nothing_is_folded_into_float16(dtype: torch.dtype, edits: int) -> None:
    model = randomise(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6))).to(dtype).eval()
    gm = capture(model, (torch.zeros(2, 4, dtype=dtype),))
    assert FoldBatchNormPass(values_known=False)(gm).edits == edits


def test_only_named_modules_are_folded() -> None:
    gm, x = captured(ResidualCnn(), 2, 3, 8, 8)
    after = apply(FoldBatchNormPass(modules=("block.conv2", "stem")), gm, x, edits=1, tolerance=TOLERANCE)
    assert {n for n in after.state_dict() if "folded" in n} == {f"block.conv2.folded_{k}" for k in ("weight", "bias")}


def test_a_weight_with_another_use_keeps_it() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)
            self.norm1 = nn.BatchNorm2d(4)
            self.norm2 = nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.norm1(self.conv(x)) + self.norm2(self.conv(x + 1)) + self.conv(x + 2)
            return result

    gm, x = captured(Twice(), 2, 4, 6, 6)
    after = apply(FoldBatchNormPass(), gm, x, edits=2, tolerance=TOLERANCE)
    weights = {n for n in after.state_dict() if n.startswith("conv.") and "weight" in n}
    assert weights == {"conv.weight", "conv.folded_weight", "conv.folded_weight_1"}
    assert after.get_parameter("conv.weight") is gm.get_parameter("conv.weight")
