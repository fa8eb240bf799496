"""Fused convolutions whose neurons are rivals in the windows of a max pool, against float64 sums and loops."""

from __future__ import annotations

import contextlib
import functools
import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from exprune_fx.errors import KernelError
from exprune_fx.ops import native, reference
from tests.ops.native.alone import check_images_decide_alone


@dataclass(frozen=True)
class Case:
    """One call."""

    window: tuple[int, int]
    space: tuple[int, int] = (8, 8)
    batch: int = 2
    channels: int = 12
    out: int = 7
    kernel: int = 3
    stages: tuple[int, ...] = (4,)
    rank: int = 0
    residual: bool = False
    bias: bool = True
    dtype: torch.dtype = torch.float32
    activation: str = "relu"
    stride: int = 1
    seed: int = 0

    @property
    def walk(self) -> tuple[list[int], list[int], list[int]]:
        return [self.stride] * 2, [self.kernel // 2] * 2, [1, 1]


CASES = {
    "lanes": Case((2, 2), (16, 16), out=20),
    "lanes, several tiles of unequal size": Case((2, 2), (10, 14), batch=3, out=100),
    "lanes, pixels left over": Case((2, 2), (11, 13), out=5),
    "lanes, oblong": Case((2, 3), (12, 9)),
    "lanes, one column": Case((3, 1), (9, 10)),
    "lanes, principal": Case((2, 2), (12, 12), stages=(3,), rank=3),
    "lanes, panels with pixels left over": Case((2, 3), (12, 12), out=30, residual=True),
    "lanes, several panels and stages": Case((2, 2), (12, 14), stages=(2, 6), out=30),
    "lanes, residual": Case((2, 2), (12, 12), residual=True),
    "lanes, large windows": Case((4, 4), (16, 12)),
    "lists": Case((2, 2), (6, 6)),
    "lists, small images": Case((2, 2), (4, 4), batch=9, channels=40, out=33),
    "lists, one small image": Case((2, 2), (4, 4), batch=1, channels=70, out=50, stages=(9,), rank=9),
    "lists, small images of many channels": Case((2, 2), (4, 4), batch=5, channels=260, out=40, stages=(32, 100)),
    "lists, small images of many channels, principal": Case((2, 2), (4, 4), channels=256, rank=20, stages=(20,)),
    "lists, few pixels": Case((2, 2), (2, 2), batch=5),
    "lists, pixels left over": Case((3, 2), (7, 7), batch=2),
    "lists, one window": Case((7, 7), (7, 7)),
    "windows of 64": Case((8, 8), (16, 9)),
    "three stages": Case((2, 2), (6, 6), stages=(2, 5, 9)),
    "three stages in lanes": Case((2, 2), (12, 12), stages=(2, 5, 9), residual=True),
    "no bias": Case((2, 2), bias=False),
    "strided": Case((2, 2), (17, 15), stride=2),
    "pointwise": Case((2, 2), kernel=1),
    "bfloat16": Case((2, 2), (12, 12), dtype=torch.bfloat16),
    "float16": Case((2, 2), (6, 6), dtype=torch.float16, rank=3, stages=(3,)),
    "relu6": Case((2, 2), activation="relu6"),
    "squared": Case((2, 2), activation="relu_squared"),
}


@dataclass(frozen=True)
class Truth:
    """What a call may return.

    Attributes:
        stopped: after all stages.
        unsure: rounding may decide otherwise.
        y: the activation of everybody, float64.
        scale: of the sums' magnitudes.
    """

    arguments: list[Any]
    stopped: Tensor
    unsure: Tensor
    y: Tensor
    scale: float


def _conv(x: Tensor, weight: Tensor, case: Case) -> Tensor:
    stride, padding, dilation = case.walk
    return F.conv2d(x, weight, None, stride, padding, dilation)


@functools.cache
def truth_of(case: Case) -> Truth:
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(case.dtype)

    x = normal(case.batch, case.channels, *case.space)
    weight = normal(case.out, case.channels, case.kernel, case.kernel, scale=0.3)
    z = _conv(x.double(), weight.double(), case)
    bias = normal(case.out) if case.bias else None
    residual = normal(*z.shape) if case.residual else None
    constant = torch.zeros_like(z)
    constant = constant if bias is None else constant + bias.double().reshape(-1, 1, 1)
    constant = constant if residual is None else constant + residual.double()
    down = normal(case.rank, case.channels, scale=0.5) if case.rank else None
    up = normal(case.out, case.rank, case.kernel, case.kernel, scale=0.5) if case.rank else None
    thresholds = torch.randn(len(case.stages), case.out, generator=generator) * 0.5 - 1
    margins = torch.rand(len(case.stages), case.out, generator=generator) * 2
    thresholds[:, 0], margins[:, 1], margins[:, 2] = -math.inf, 0.0, 3e38
    stopped, unsure = torch.zeros_like(z, dtype=torch.bool), torch.zeros_like(z, dtype=torch.bool)
    scale = float(_conv(x.double().abs(), weight.double().abs(), case).max() + constant.abs().max())
    if down is not None and up is not None:
        hidden = torch.einsum("rc,nchw->nrhw", down.double(), x.double())
        scale += float(
            _conv(torch.einsum("rc,nchw->nrhw", down.double().abs(), x.double().abs()), up.double().abs(), case).max()
        )

    def numbers(stage: int, off: float) -> tuple[Tensor, Tensor]:
        """Thresholds and margins that stop a little more."""
        t, m = thresholds[stage].double() + off, (margins[stage].double() - off).clamp_min(0.0)
        return t.reshape(-1, 1, 1), m.reshape(-1, 1, 1)

    near = 64 * torch.finfo(torch.float32).eps * scale
    for stage, seen in enumerate(case.stages):
        head = (
            _conv(hidden, up.double(), case)
            if up is not None
            else _conv(x[:, :seen].double(), weight[:, :seen].double(), case)
        )
        h = head + constant
        less, more, now = (
            reference.guard_pooled(h, None, *numbers(stage, off), list(case.window), gone)
            for off, gone in ((-near, stopped | unsure), (near, stopped & ~unsure), (0.0, stopped))
        )
        unsure |= less != more
        stopped |= now
    y = (z + constant).relu()
    y = y.clamp_max(6) if case.activation == "relu6" else y.square() if case.activation == "relu_squared" else y
    limits = torch.stack([thresholds, margins], 1).contiguous()
    rest = [list(case.stages), "pooled", 0.0, limits, *case.walk, 1, case.activation, list(case.window)]
    packed = weight.contiguous(memory_format=torch.channels_last)
    return Truth([x, packed, bias, residual, down, up, *rest], stopped, unsure, y, scale)


@pytest.mark.parametrize("name", CASES)
def test_stops_and_values_are_those_of_the_sums(name: str, isa: str) -> None:  # noqa: ARG001 - it sets the kernels
    case = CASES[name]
    truth = truth_of(case)
    result = torch.ops.exprune.staged_conv2d_relu(*truth.arguments)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == case.dtype
    assert float(truth.unsure.double().mean()) < 0.02
    sure = ~truth.unsure
    assert bool((result[truth.stopped & sure] == 0).all())
    rounding = 64 * torch.finfo(torch.float32).eps * truth.scale
    if case.activation == "relu_squared":
        rounding *= 2 * truth.scale
    if case.dtype != torch.float32:
        rounding += float(truth.y.max()) * torch.finfo(case.dtype).eps
    going = ~truth.stopped & sure
    assert float((result.double() - truth.y)[going].abs().max()) <= rounding
    # a stop is 0 and so may be an activation: the test means something only where going ones are not
    assert float((truth.y[going] > 0).double().mean()) > 0.3
    assert float(truth.stopped.double().mean()) > 0.2


def test_an_image_decides_alone_and_threads_do_not_matter() -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    for case in (Case((2, 2), (10, 10), batch=5, out=50), Case((2, 2), (4, 4), batch=9, channels=40)):
        check_images_decide_alone(truth_of(case).arguments)


@pytest.mark.parametrize(
    "change",
    [
        {"window": []},
        {"window": [2]},
        {"window": [0, 2]},
        {"window": [9, 8]},
        {"guard": "calibrated"},
        {"limits": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("fake", [False, True])
def test_what_is_no_window_is_refused(change: dict[str, Any], fake: bool) -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    operator = torch.ops.exprune.staged_conv2d_relu.default
    names = [argument.name for argument in operator._schema.arguments]
    given = {**dict(zip(names, truth_of(Case((2, 2))).arguments, strict=False)), **change}
    mode = FakeTensorMode(allow_non_fake_inputs=True) if fake else contextlib.nullcontext()
    with mode, pytest.raises(KernelError if fake else RuntimeError):
        operator(*given.values())
