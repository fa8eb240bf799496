"""is_nonnegative: proves what holds, and does not prove what some input refutes."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exprune_fx.graph import capture
from exprune_fx.sites.nonnegative import is_nonnegative

Function = Callable[[Tensor], Tensor]
relu = F.relu

PROVED: dict[str, Function] = {
    "relu": relu,
    "relu6": F.relu6,
    "hardtanh 0 6": lambda x: F.hardtanh(x, 0, 6),
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "abs": torch.abs,
    "exp": torch.exp,
    "square": torch.square,
    "power 2": lambda x: x**2,
    "power 4": lambda x: x**4,
    "softmax": lambda x: x.softmax(1),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=1),
    "clamp": lambda x: x.clamp(0.5, 3),
    "clamp_min": lambda x: x.clamp(min=0),
    "max pool": lambda x: F.max_pool2d(relu(x), 2, padding=1),
    "average pool": lambda x: F.avg_pool2d(relu(x), 2),
    "average pool, divisor 3": lambda x: F.avg_pool2d(relu(x), 2, divisor_override=3),
    "adaptive average pool": lambda x: F.adaptive_avg_pool2d(relu(x), 1),
    "mean": lambda x: relu(x).mean(1),
    "sum": lambda x: relu(x).sum(1),
    "amax": lambda x: relu(x).amax(1),
    "nearest": lambda x: F.interpolate(relu(x), scale_factor=2, mode="nearest"),
    "bilinear": lambda x: F.interpolate(relu(x), scale_factor=2, mode="bilinear"),
    "views": lambda x: relu(x).flatten(1).reshape(2, 4, 2, 8).permute(0, 2, 1, 3)[:, 1:].unsqueeze(1),
    "split": lambda x: relu(x).split(2, 1)[1],
    "chunk": lambda x: relu(x).chunk(2, 1)[0],
    "cat": lambda x: torch.cat([relu(x), x.sigmoid()]),
    "sum of two": lambda x: relu(x) + x.abs(),
    "weighted sum of two": lambda x: torch.add(relu(x), x.abs(), alpha=2),
    "shifted up": lambda x: relu(x) + 1,
    "product": lambda x: relu(x) * x.sigmoid(),
    "doubled": lambda x: relu(x) * 2,
    "maximum": lambda x: torch.maximum(relu(x), x.abs()),
    "padded": lambda x: F.pad(relu(x), (1, 1)),
    "padded with one": lambda x: F.pad(relu(x), (1, 1), value=1.0),
    "padded by reflection": lambda x: F.pad(relu(x), (1, 1, 1, 1), mode="reflect"),
    "dropout": lambda x: F.dropout(relu(x), training=False),
}

REFUTED: dict[str, Function] = {
    "input": lambda x: x + 0,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "gelu": F.gelu,
    "silu": F.silu,
    "elu": F.elu,
    "tanh": torch.tanh,
    "power 3": lambda x: x**3,
    "clamp from -1": lambda x: x.clamp(-1, 6),
    "clamp with crossing bounds": lambda x: x.clamp(0, -1),
    "clamp from above": lambda x: x.clamp(max=6),
    "hardtanh": F.hardtanh,
    "negative alpha": lambda x: torch.add(relu(x), x.abs(), alpha=-1),
    "difference": lambda x: relu(x) - x.abs(),
    "shifted down": lambda x: relu(x) - 1,
    "negative scalar added": lambda x: relu(x) + -1,
    "product with the input": lambda x: relu(-x) * x,
    "negated": lambda x: -relu(x),
    "times -1": lambda x: relu(x) * -1,
    "padded with -1": lambda x: F.pad(relu(x), (1, 1), value=-1.0),
    "input padded by reflection": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
    "input padded": lambda x: F.pad(x, (1, 1)),
    "bicubic": lambda x: F.interpolate(relu(x), scale_factor=2, mode="bicubic"),
    "max pool of the input": lambda x: F.max_pool2d(x, 2),
    "average pool, divisor -1": lambda x: F.avg_pool2d(relu(x), 2, divisor_override=-1),
    "mean of the input": lambda x: x.mean(1),
    "cat with the input": lambda x: torch.cat([relu(x), x]),
    "sum with the input": lambda x: relu(x) + x,
    "layer norm": lambda x: F.layer_norm(relu(x), (4,)),
    "standardised": lambda x: relu(x) - relu(x).mean(1, keepdim=True),
    "logarithm": lambda x: relu(x).add(0.1).log(),
    "log softmax": lambda x: x.log_softmax(1),
    "view of the input": lambda x: x.flatten(1),
}


class All(nn.Module):
    """One graph for all functions: to capture each by itself takes a minute."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {name: function(x) for name, function in {**PROVED, **REFUTED}.items()}


@functools.cache
def _verdicts() -> dict[str, bool]:
    gm = capture(All(), (torch.randn(2, 4, 4, 4),))
    (output,) = (node for node in gm.graph.nodes if node.op == "output")
    (values,) = output.args
    values = list(values.values()) if isinstance(values, dict) else values
    return {name: is_nonnegative(value) for name, value in zip({**PROVED, **REFUTED}, values, strict=True)}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)) * 3


@pytest.mark.parametrize("name", PROVED)
def test_what_is_proved_holds(name: str, x: Tensor) -> None:
    assert PROVED[name](x).min() >= 0
    assert _verdicts()[name]


@pytest.mark.parametrize("name", REFUTED)
def test_what_an_input_refutes_is_not_proved(name: str, x: Tensor) -> None:
    assert REFUTED[name](x).min() < 0, "a near miss has to be refutable"
    assert not _verdicts()[name]


@pytest.mark.parametrize(
    ("value", "expected"), [(1, True), (0.0, True), (-1, False), (float("nan"), False), (None, False)]
)
def test_numbers(value: object, expected: bool) -> None:
    assert is_nonnegative(value) is expected
