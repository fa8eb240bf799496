"""Which linear layers are prediction heads, and which only look like one."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exprune_fx import capture, find_heads

Forward = Callable[["Model", Tensor], object]


class Model(nn.Module):
    def __init__(self, forward: Forward) -> None:
        super().__init__()
        self.lm_head = nn.Linear(6, 9)
        self.temperature = nn.Parameter(torch.tensor(0.7))
        self._forward = forward

    def forward(self, x: Tensor) -> object:
        return self._forward(self, x)


HEADS: dict[str, tuple[Forward, tuple[str, int, bool]]] = {
    "argmax": (lambda m, x: m.lm_head(x).argmax(-1), ("argmax", 1, False)),
    "argmax over the last axis by its number": (lambda m, x: m.lm_head(x).argmax(2), ("argmax", 1, False)),
    "argmax that keeps the axis": (lambda m, x: m.lm_head(x).argmax(-1, keepdim=True), ("argmax", 1, True)),
    "topk": (lambda m, x: m.lm_head(x).topk(4), ("topk", 4, False)),
    "classes of topk of softmax": (lambda m, x: m.lm_head(x).softmax(-1).topk(4).indices, ("topk", 4, False)),
    "softmax": (lambda m, x: m.lm_head(x).softmax(-1).argmax(-1), ("argmax", 1, False)),
    "log-softmax": (lambda m, x: m.lm_head(x).log_softmax(-1).argmax(-1), ("argmax", 1, False)),
    "cast": (lambda m, x: m.lm_head(x).double().argmax(-1), ("argmax", 1, False)),
    "scaled": (lambda m, x: (m.lm_head(x) / 0.7 * 2).topk(2), ("topk", 2, False)),
    "last position": (lambda m, x: m.lm_head(x)[:, -1].argmax(-1), ("argmax", 1, False)),
    "result goes on": (lambda m, x: m.lm_head(x).argmax(-1) + 1, ("argmax", 1, False)),
}

NEAR_MISSES: dict[str, Forward] = {
    "logits returned too": lambda m, x: (logits := m.lm_head(x), logits.argmax(-1)),
    "logits read elsewhere": lambda m, x: (logits := m.lm_head(x)).argmax(-1) + logits.sum(-1).long(),
    "another axis": lambda m, x: m.lm_head(x).argmax(1),
    "all axes": lambda m, x: m.lm_head(x).argmax(),
    "softmax over another axis": lambda m, x: m.lm_head(x).softmax(1).argmax(-1),
    "values of topk of softmax": lambda m, x: m.lm_head(x).softmax(-1).topk(4),
    "negative scale": lambda m, x: (m.lm_head(x) * -2).argmax(-1),
    "scale zero": lambda m, x: (m.lm_head(x) * 0.0).argmax(-1),
    "scale so small that logits come out equal": lambda m, x: (m.lm_head(x) * 1e-30).argmax(-1),
    "temperature of unknown sign": lambda m, x: (m.lm_head(x) / m.temperature).argmax(-1),
    "scale by class": lambda m, x: (m.lm_head(x) * torch.arange(1.0, 10.0)).argmax(-1),
    "smallest": lambda m, x: m.lm_head(x).topk(2, largest=False),
    "argmin": lambda m, x: m.lm_head(x).argmin(-1),
    "narrowing cast": lambda m, x: m.lm_head(x).half().argmax(-1),
    "to whole numbers": lambda m, x: m.lm_head(x).long().argmax(-1),
    "relu makes ties": lambda m, x: m.lm_head(x).relu().argmax(-1),
    "some classes only": lambda m, x: m.lm_head(x)[..., 2:].argmax(-1),
    "reshaped": lambda m, x: m.lm_head(x).reshape(2, -1).argmax(-1),
    "no parameter": lambda m, x: (x @ x.transpose(1, 2)).argmax(-1),
    "weight computed": lambda m, x: nn.functional.linear(x, m.lm_head.weight * 2).argmax(-1),
}


@pytest.mark.parametrize("name", HEADS)
def test_heads(name: str) -> None:
    forward, expected = HEADS[name]
    (head,) = find_heads(capture(Model(forward).eval(), (torch.randn(2, 3, 6),)))
    assert (head.choice, head.winners, head.keepdim) == expected
    assert (head.name, head.weight, head.weight_shape) == ("lm_head", "lm_head.weight", (9, 6))


@pytest.mark.parametrize("name", NEAR_MISSES)
def test_near_misses(name: str) -> None:
    assert find_heads(capture(Model(NEAR_MISSES[name]).eval(), (torch.randn(2, 3, 6),))) == ()


def test_more_winners_than_the_kernels_count_are_no_head() -> None:
    layer = nn.Linear(6, 100)

    class Many(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Tensor:
            indices: Tensor = self.layer(x).topk(65).indices
            return indices

    assert find_heads(capture(Many().eval(), (torch.randn(2, 6),))) == ()
