from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from exprune_fx.graph import capture
from exprune_fx.graph.edits import insert_call, recompile, replace_node
from exprune_fx.passes.commute_relu_max_pool import CommuteReluMaxPoolPass
from tests.passes.equivalence import apply, body, captured

aten = torch.ops.aten


def test_golden() -> None:
    gm, x = captured(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.MaxPool2d(3, 2, padding=1, ceil_mode=True), nn.ReLU()), 2, 3, 8, 8
    )
    conv = "conv2d = aten.conv2d(input, _0_weight, _0_bias)\n"
    assert body(gm) == conv + (
        "max_pool2d = aten.max_pool2d(conv2d, [3, 3], [2, 2], [1, 1], [1, 1], True)\n"
        "relu = aten.relu(max_pool2d)\n"
        "return relu\n"
    )
    after = apply(CommuteReluMaxPoolPass(), gm, x, edits=1)
    assert body(after) == conv + (
        "relu = aten.relu(conv2d)\n"
        "max_pool2d = aten.max_pool2d(relu, [3, 3], [2, 2], [1, 1], [1, 1], True)\n"
        "return max_pool2d\n"
    )
    paths = {n.target: n.meta["module_path"] for n in after.graph.nodes if n.op == "call_function"}
    assert paths[aten.relu.default] == "2"
    assert paths[aten.max_pool2d.default] == "1"


COMMUTES: list[tuple[str, nn.Module, tuple[int, ...], int]] = [
    ("1d", nn.Sequential(nn.MaxPool1d(2), nn.ReLU()), (2, 3, 8), 1),
    ("3d", nn.Sequential(nn.MaxPool3d(2), nn.ReLU()), (2, 3, 4, 4, 4), 1),
    ("two pools", nn.Sequential(nn.MaxPool2d(2), nn.MaxPool2d(2), nn.ReLU()), (2, 3, 8, 8), 2),
    ("in place", nn.Sequential(nn.MaxPool2d(2), nn.ReLU(inplace=True)), (2, 3, 8, 8), 1),
    ("dilated, no padding", nn.Sequential(nn.MaxPool2d(2, 1, dilation=3), nn.ReLU()), (2, 3, 8, 8), 1),
]


@pytest.mark.parametrize(("model", "shape", "edits"), [c[1:] for c in COMMUTES], ids=[c[0] for c in COMMUTES])
def test_commutes(model: nn.Module, shape: tuple[int, ...], edits: int) -> None:
    gm, x = captured(model, *shape)
    apply(CommuteReluMaxPoolPass(), gm, x, edits=edits)


def test_not_a_number_stays_where_it_was() -> None:
    gm, x = captured(nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), 2, 3, 8, 8)
    x[0, 0, 0, 0], x[0, 1, 0, 0], x[0, 2, :2, :2] = float("nan"), float("inf"), -float("inf")
    after = CommuteReluMaxPoolPass()(gm).graph_module
    torch.testing.assert_close(after(x), gm(x), rtol=0, atol=0, equal_nan=True)


def with_indices(indices_read: bool) -> fx.GraphModule:
    """The same pattern in the form that also gives indices, which other exporters produce."""

    class Pool(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor] | Tensor:
            values, indices = F.max_pool2d(x, 2, return_indices=True)
            return (torch.relu(values), indices) if indices_read else torch.relu(values)

    return capture(Pool(), (torch.randn(2, 3, 8, 8),))


def test_pool_with_indices() -> None:
    gm = with_indices(indices_read=False)
    assert "with_indices" in body(gm)
    after = apply(CommuteReluMaxPoolPass(), gm, torch.randn(2, 3, 8, 8), edits=1)
    assert body(after).startswith("relu = aten.relu(x)\nmax_pool2d_with_indices = aten.max_pool2d_with_indices(relu")


def test_indices_that_are_read_keep_the_order() -> None:
    """relu makes ties among the negative elements of a window, and so changes the indices."""
    apply(CommuteReluMaxPoolPass(), with_indices(indices_read=True), torch.randn(2, 3, 8, 8), edits=0)


def test_a_relu_of_the_indices_is_not_taken_for_one_of_the_values() -> None:
    gm = with_indices(indices_read=True)
    relu = next(n for n in gm.graph.nodes if n.target is aten.relu.default)
    indices = next(n for n in gm.graph.nodes if n.args[1:] == (1,))
    double = insert_call(gm, aten.relu.default, (indices,), like=indices, made_by="test", after=indices)
    replace_node(gm, indices, double)
    gm.graph.output_node().args = ((double, double),)
    gm.graph.erase_node(relu)
    recompile(gm)
    assert CommuteReluMaxPoolPass()(gm).edits == 0


class Wired(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:  # noqa: PLR0911 - one line for each way
        y = F.max_pool2d(x, 2)
        if self.how == "pool read twice":
            return torch.relu(y) + y
        if self.how == "average pool":
            return torch.relu(F.avg_pool2d(x, 2))
        if self.how == "leaky":
            return F.leaky_relu(y, 0.1)
        if self.how == "gelu":
            return F.gelu(y)
        if self.how == "relu first":
            return F.max_pool2d(torch.relu(x), 2)
        if self.how == "minus between":
            return torch.relu(-y)
        if self.how == "adaptive":
            return torch.relu(F.adaptive_max_pool2d(x, 3))
        return torch.relu(F.max_pool2d(x, 2, 1, padding=1, dilation=3))


@pytest.mark.parametrize(
    "how", ["pool read twice", "average pool", "leaky", "gelu", "relu first", "minus between", "adaptive", "holes"]
)
def test_near_misses(how: str) -> None:
    gm, x = captured(Wired(how), 2, 3, 8, 8)
    apply(CommuteReluMaxPoolPass(), gm, x, edits=0)


def test_holes_with_padding_are_a_real_near_miss() -> None:
    x = -torch.ones(1, 1, 1)
    assert F.max_pool1d(torch.relu(x), 2, 1, padding=1, dilation=2).item() == -float("inf")
    assert torch.relu(F.max_pool1d(x, 2, 1, padding=1, dilation=2)).item() == 0


def test_without_holes_every_window_holds_an_element() -> None:
    """What the pass relies on, for every small pool that torch accepts."""
    for kernel in range(1, 6):
        for padding in range(kernel // 2 + 1):
            for stride in range(1, 5):
                for size in range(max(1, kernel - 2 * padding), 8):
                    for ceil_mode in (False, True):
                        x = -torch.ones(1, 1, size)
                        pooled = F.max_pool1d(x, kernel, stride, padding, 1, ceil_mode)
                        assert bool((pooled == -1).all()), (kernel, padding, stride, size, ceil_mode)
