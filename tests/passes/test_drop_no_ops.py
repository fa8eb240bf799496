from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from exprune_fx.graph import capture
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from tests.graph.models import ResidualCnn
from tests.passes.equivalence import apply, body, captured


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], object]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> object:
        return self.function(x)


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 6)
        self.drop = nn.Dropout(0.3)
        self.fc2 = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Any:
        x = self.drop(F.relu(self.fc1(x).detach()))[:, :]
        return self.fc2(x.view(x.shape[0], 6).expand(-1, 6) * 1.0) + 1


AFTER = """\
linear = aten.linear(x, fc1_weight, fc1_bias)
relu = aten.relu(linear)
linear_1 = aten.linear(relu, fc2_weight, fc2_bias)
add = aten.add.Tensor(linear_1, 1)
return add
"""


def test_golden() -> None:
    gm, x = captured(Classifier(), 3, 4)
    before = body(gm)
    for text in ("aten.clone(", "aten.view(", "aten.expand(", "aten.mul.Tensor("):
        assert text in before
    dropped = before.count("\n") - AFTER.count("\n") - before.count("sym_size = ")
    assert body(apply(DropNoOpsPass(), gm, x, edits=dropped)) == AFTER


def test_dropout_in_a_cnn() -> None:
    gm, x = captured(ResidualCnn(), 2, 3, 8, 8)
    assert "clone" in body(gm)
    assert "clone" not in body(apply(DropNoOpsPass(), gm, x, edits=1))


NO_OPS: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ("clone", lambda x: (x + 2).clone() * 3),
    ("to the same dtype", lambda x: (x + 2).to(torch.float64, copy=True) * 3),
    ("view to the same shape", lambda x: (x + 2).view(x.shape[0], 4, 4) * 3),
    ("expand to the same shape", lambda x: (x + 2).expand(-1, 4, 4) * 3),
    ("slice of everything", lambda x: (x + 2)[:, 0:10] * 3),
    ("identity permutation", lambda x: (x + 2).permute(0, 1, 2) * 3),
    ("times one", lambda x: (x + 2) * 1 * 3),
    ("divided by one", lambda x: (x + 2) / 1.0 * 3),
    ("cat of one", lambda x: torch.cat([x + 2], 1) * 3),
    ("dropout in eval", lambda x: F.dropout(x + 2, 0.5, training=False) * 3),
    ("contiguous copy", lambda x: (x + 2).clone(memory_format=torch.contiguous_format) * 3),
]


@pytest.mark.parametrize("function", [f for _, f in NO_OPS], ids=[name for name, _ in NO_OPS])
def test_no_ops(function: Callable[[Tensor], Tensor]) -> None:
    gm, x = captured(Function(function), 2, 4, 4)
    calls = [line for line in body(gm).splitlines() if "sym_size" not in line or "view" in line]
    after = apply(DropNoOpsPass(), gm, x, edits=len(calls) - 3)
    assert body(after) == "add = aten.add.Tensor(x, 2)\nmul = aten.mul.Tensor(add, 3)\nreturn mul\n"


def both(x: Tensor) -> tuple[Tensor, Tensor]:
    return x, x.clone()


KEPT: list[tuple[str, Callable[[Tensor], object]]] = [
    ("other dtype", lambda x: x.to(torch.float32) * 3),
    ("view to another shape", lambda x: x.view(-1, 16) * 3),
    ("expand to another shape", lambda x: x.narrow(1, 0, 1).expand(-1, 4, 4) * 3),
    ("slice of a part", lambda x: x.narrow(1, 1, 3) * 3),
    ("slice with a step", lambda x: torch.ops.aten.slice(x, 1, 0, 4, 2) * 3),
    ("permutation of equal sizes", lambda x: x.permute(0, 2, 1) * 3),
    ("transpose of equal sizes", lambda x: x.transpose(1, 2) * 3),
    ("plus zero", lambda x: (x + 0.0) * 3),  # -0.0 + 0.0 is 0.0
    ("times two", lambda x: x * 2),
    ("times one that broadcasts", lambda x: x.narrow(1, 0, 1) * torch.ones(4, 4, dtype=x.dtype) * 3),
    ("cat of two", lambda x: torch.cat([x, x]) * 3),
    ("copy with other strides", lambda x: x.transpose(1, 2).contiguous() * 3),
    ("copy for a view", lambda x: (x + 2).clone(memory_format=torch.contiguous_format).view(-1, 16) * 3),
    ("copy that is returned", lambda x: x.clone()),
    ("copy of which a view is returned", lambda x: x.clone().view(-1, 16)),
    ("one of two returned copies", lambda x: both(x + 2)),
]


@pytest.mark.parametrize("function", [f for _, f in KEPT], ids=[name for name, _ in KEPT])
def test_near_misses(function: Callable[[Tensor], object]) -> None:
    gm, x = captured(Function(function), 2, 4, 4)
    apply(DropNoOpsPass(), gm, x, edits=0)


def test_plus_zero_is_dropped_for_integers() -> None:
    gm = capture(Function(lambda x: (x + 0) * 3), (torch.arange(4),))
    after = apply(DropNoOpsPass(), gm, torch.arange(4) - 2, edits=1)
    assert body(after) == "mul = aten.mul.Tensor(x, 3)\nreturn mul\n"


def test_writing_into_an_output_does_not_reach_the_input() -> None:
    gm, x = captured(Function(lambda x: x.clone()), 2, 4)
    result = DropNoOpsPass()(gm).graph_module
    given = x.clone()
    result(x).zero_()
    assert torch.equal(x, given)


def test_a_copy_kept_for_a_view_goes_when_the_view_goes() -> None:
    gm, x = captured(
        Function(lambda x: (x + 2).clone(memory_format=torch.contiguous_format).view(x.shape[0], 4) * 3), 2, 4
    )
    apply(DropNoOpsPass(), gm, x, edits=2)


def test_sizes_from_data_are_not_taken_for_equal() -> None:
    class Positive(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = x[x > 0]
            return y[: x[x > 1].shape[0]] * 3

    gm = capture(Positive(), (torch.randn(9, dtype=torch.float64),))
    apply(DropNoOpsPass(), gm, torch.linspace(-3, 3, 9, dtype=torch.float64), edits=0)
