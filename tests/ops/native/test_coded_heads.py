"""Fused convolutions with a coded head, against sums of whole numbers and float64 convolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from exprune_fx.ops import coded, native, reference
from exprune_fx.ops.split import rest_of
from tests.ops.native.alone import check_images_decide_alone

ISAS = ("portable", "avx2", "avx512", "avx512_without_vnni")
LAYOUTS = ("contiguous", "channels_last", "shifted")


@dataclass(frozen=True)
class Case:
    """One call; sizes as in `torch.nn.Conv2d`."""

    channels: int = 12
    out: int = 7
    space: tuple[int, int] = (8, 8)
    batch: int = 2
    kernel: tuple[int, int] = (3, 3)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (1, 1)
    dilation: tuple[int, int] = (1, 1)
    window: tuple[int, int] | None = None
    signed: bool = True
    bias: bool = True
    residual: bool = False
    rest: bool = True
    dtype: torch.dtype = torch.float32
    activation: str = "relu"
    layout: str = "contiguous"
    seed: int = 0

    @property
    def walk(self) -> tuple[list[int], list[int], list[int]]:
        return list(self.stride), list(self.padding), list(self.dilation)


CASES = {
    "four vectors of pixels": Case(16, 20, (16, 16)),
    "several tiles of unequal size": Case(8, 100, (10, 14), batch=3),
    "one vector": Case(36, 50, (4, 4), batch=1),
    "quarters of a vector": Case(64, 40, (2, 2), batch=1),
    "quarters, one pixel": Case(16, 3, (1, 1), batch=1),
    "no quarters: channels are no multiple of 16": Case(36, 21, (2, 2), batch=1),
    "large, a vector": Case(256, 130, (4, 4), batch=1),
    "large, quarters": Case(512, 70, (2, 2), batch=1, window=(2, 2)),
    "large, floats": Case(256, 130, (4, 4), batch=1, rest=False),
    "large, many pixels": Case(128, 240, (6, 6), batch=2),
    "rivals": Case(12, 20, (16, 16), window=(2, 2)),
    "rivals, pixels left over": Case(12, 20, (11, 13), window=(2, 3)),
    "rivals, residual": Case(12, 20, (6, 6), window=(2, 2), residual=True),
    "not negative": Case(signed=False),
    "pointwise": Case(kernel=(1, 1), padding=(0, 0)),
    "strided, dilated, oblong": Case(12, 17, (11, 15), kernel=(1, 3), stride=(1, 2), padding=(0, 2), dilation=(1, 2)),
    "bfloat16": Case(12, 40, (12, 12), dtype=torch.bfloat16, rest=False),
    "bfloat16, an input halfway between two ticks": Case(
        16, 53, (1, 9), 3, (1, 1), padding=(0, 0), signed=False, rest=False, dtype=torch.bfloat16, seed=304
    ),
    "float16": Case(12, 40, (3, 3), dtype=torch.float16, rest=False, window=(3, 1)),
    "relu6": Case(activation="relu6", bias=False),
    "squared": Case(activation="relu_squared"),
}


@dataclass(frozen=True)
class Truth:
    """What a call may return.

    Attributes:
        arguments: of the operator.
        stopped: who stops.
        unsure: rounding of a float32 sum or product may decide otherwise.
        y: the activation of everybody, float64.
        scale: of the sums' magnitudes.
    """

    arguments: list[Any]
    stopped: Tensor
    unsure: Tensor
    y: Tensor
    scale: float


def _laid_out(x: Tensor, layout: str) -> Tensor:
    if layout == "channels_last":
        return x.contiguous(memory_format=torch.channels_last)
    if layout == "shifted":
        return F.pad(x, (1, 2, 1, 0))[:, :, 1:, 1:-2]
    return x


def _estimates(x: Tensor, codes: Tensor, scales: Tensor, case: Case) -> Tensor:
    """The head's sums in float64, from sums of whole numbers: float64 holds them exactly."""
    images = []
    for image in x.float():
        low, high = min(float(image.min()), 0.0), max(float(image.max()), 0.0)
        tick = torch.tensor(high) - torch.tensor(low)
        tick = tick / 255 if float(tick) else torch.tensor(1.0)
        inverse = 1 / tick
        zero = torch.round(-torch.tensor(low) * inverse)
        ticks = (torch.round(image * inverse) + zero).clamp(0, 255) - zero
        sums = F.conv2d(ticks[None].double(), codes.double(), None, *case.walk)
        images.append(sums * scales.double().reshape(-1, 1, 1) * tick.double())
    return torch.cat(images)


def truth_of(case: Case) -> Truth:
    generator = torch.Generator().manual_seed(case.seed)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(*size, generator=generator) * scale).to(case.dtype)

    x = normal(case.batch, case.channels, *case.space)
    x = _laid_out(x if case.signed else x.relu(), case.layout)
    weight = normal(case.out, case.channels, *case.kernel, scale=(case.channels * math.prod(case.kernel)) ** -0.5)
    weight = weight.contiguous(memory_format=torch.channels_last)
    codes, scales = coded.codes_of(weight)
    z = F.conv2d(x.double(), weight.double(), None, *case.walk)
    bias = normal(case.out, scale=0.2) if case.bias else None
    residual = normal(*z.shape) if case.residual else None
    constant = torch.zeros_like(z)
    constant = constant if bias is None else constant + bias.double().reshape(-1, 1, 1)
    constant = constant if residual is None else constant + residual.double()
    limits = torch.randn(1, case.out, generator=generator) * 0.3
    guard, window = "calibrated", None
    known = _estimates(x, codes, scales, case) + constant
    scale = float(known.abs().max())
    near = 8 * torch.finfo(torch.float32).eps * scale
    if case.window is None:
        stopped = known < limits[0].double().reshape(-1, 1, 1)
        unsure = (known - limits[0].double().reshape(-1, 1, 1)).abs() < near
    else:
        guard, window = "pooled", list(case.window)
        margins = torch.rand(1, case.out, generator=generator) * 0.5
        limits = torch.stack([limits, margins], 1).contiguous()

        def stops(off: float) -> Tensor:
            numbers = [
                (row.double() + way * off).reshape(-1, 1, 1) for row, way in zip(limits[0], (1, -1), strict=True)
            ]
            return reference.guard_pooled(known, None, numbers[0], numbers[1], window, None)

        stopped, unsure = stops(0.0), stops(-near) != stops(near)
    y = (z + constant).relu()
    y = y.clamp_max(6) if case.activation == "relu6" else y.square() if case.activation == "relu_squared" else y
    rest = rest_of(weight, codes, scales) if case.rest else None
    last = torch.channels_last
    tables: list[Any] = [codes.contiguous(memory_format=last), coded.numbers_of(codes, scales)]
    tables += [None if rest is None else rest.contiguous(memory_format=last)]
    head = [None, None, [case.channels], guard, 0.0, limits]
    arguments = [x, weight, bias, residual, *head, *case.walk, 1, case.activation, window, *tables]
    return Truth(arguments, stopped, unsure, y, scale)


def _check(case: Case) -> Truth:
    """Runs a case and holds it against its truth, and its pool against the pool of it."""
    truth = truth_of(case)
    result = torch.ops.exprune.staged_conv2d_relu(*truth.arguments)
    if case.window is not None:
        pooled = torch.ops.exprune.staged_conv2d_relu(*truth.arguments, pools=True)
        assert torch.equal(pooled, F.max_pool2d(result, case.window))
        assert pooled.is_contiguous(memory_format=torch.channels_last)
    assert result.dtype == case.dtype
    assert result.shape == truth.y.shape
    sure = ~truth.unsure
    assert bool((result[truth.stopped & sure] == 0).all())
    # Rounding of sums of up to 4,608 products, and of weights in 24 bits: both far below 64 units of float32's last place.
    rounding = 64 * torch.finfo(torch.float32).eps * max(truth.scale, 1.0)
    rounding *= 2 * max(truth.scale, 1.0) if case.activation == "relu_squared" else 1
    if case.dtype != torch.float32:
        rounding += float(truth.y.max()) * torch.finfo(case.dtype).eps
    going = ~truth.stopped & sure
    assert float((result.double() - truth.y)[going].abs().amax().item() if going.any() else 0.0) <= rounding
    return truth


@pytest.mark.parametrize("isa", ISAS, indirect=True)
@pytest.mark.parametrize("name", CASES)
def test_stops_and_values_are_those_of_the_sums(name: str, isa: str) -> None:  # noqa: ARG001 - it sets the kernels
    truth = _check(CASES[name])
    assert float(truth.unsure.double().mean()) < 0.02
    # A stop is 0 and so may be an activation: the test means something only where many go on, and many of those are not.
    assert 0.2 < float(truth.stopped.double().mean()) < 0.95
    assert float((truth.y[~truth.stopped] > 0).double().mean()) > 0.5


_small, _side = st.integers(1, 3), st.integers(1, 9)


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    kernel = (draw(_small), draw(_small))
    padding = (draw(st.integers(0, kernel[0] - 1)), draw(st.integers(0, kernel[1] - 1)))
    dilation = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    reach = [d * (k - 1) + 1 - 2 * p for k, p, d in zip(kernel, padding, dilation, strict=True)]
    space = tuple(max(draw(_side), least) for least in reach)
    rest = draw(st.booleans())
    stride = (draw(st.integers(1, 2)), draw(st.integers(1, 2)))
    out = [(size - least) // step + 1 for size, least, step in zip(space, reach, stride, strict=True)]
    windows = [window for window in ((2, 2), (1, 3)) if window[0] <= out[0] and window[1] <= out[1]]
    return Case(
        channels=4 * draw(st.integers(1, 9)),
        out=draw(st.integers(1, 60)),
        space=(space[0], space[1]),
        batch=draw(_small),
        kernel=kernel,
        stride=stride,
        padding=padding,
        dilation=dilation,
        window=draw(st.sampled_from([None, *windows])),
        signed=draw(st.booleans()),
        bias=draw(st.booleans()),
        residual=draw(st.booleans()),
        rest=rest,
        dtype=torch.float32 if rest else draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16])),
        activation=draw(st.sampled_from(["relu", "relu6", "relu_squared"])),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(max_examples=60, deadline=None)
@given(case=_cases())
def test_random_shapes(case: Case) -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    _check(case)


@pytest.mark.parametrize("name", ["four vectors of pixels", "one vector", "quarters of a vector", "rivals"])
def test_all_instruction_sets_stop_the_same(name: str) -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    found = {}
    arguments = truth_of(CASES[name]).arguments
    arguments[2] = torch.full((CASES[name].out,), 40.0)  # whoever is computed is far above zero
    arguments[9] = arguments[9] + (40.0 if CASES[name].window is None else torch.tensor([[[40.0], [0.0]]]))
    try:
        for isa in ISAS:
            try:
                torch.ops.exprune._force_isa(isa)
            except RuntimeError:
                continue
            found[isa] = torch.ops.exprune.staged_conv2d_relu(*arguments) == 0
    finally:
        torch.ops.exprune._force_isa("")
    first = next(iter(found.values()))
    assert 0.1 < float(first.double().mean()) < 0.95
    assert all(torch.equal(stopped, first) for stopped in found.values())


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf])
def test_an_image_that_is_not_finite_is_computed_and_others_are_not_touched(wrong: float) -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    case = Case(batch=3)
    arguments = truth_of(case).arguments
    arguments[9] = torch.full_like(arguments[9], 1e9)  # everybody stops who can be told to
    arguments[2] = torch.full((case.out,), 50.0)
    x = arguments[0].clone()
    x[1, 3, 5, 5] = wrong
    result = torch.ops.exprune.staged_conv2d_relu(x, *arguments[1:])
    assert not result[0].any()
    assert not result[2].any()
    computed = (F.conv2d(x[1:2], arguments[1], arguments[2], *case.walk)).relu()[0]
    reached = torch.zeros_like(computed, dtype=torch.bool)
    reached[:, 4:7, 4:7] = True
    torch.testing.assert_close(result[1][~reached], computed[~reached], rtol=1e-5, atol=1e-4)
    assert bool((result[1][reached].isnan() | result[1][reached].isinf() | (result[1][reached] == 0)).all())


def test_an_image_decides_alone_and_threads_do_not_matter() -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    for case in (Case(16, 50, (10, 10), batch=5, window=(2, 2)), Case(40, 70, (4, 4), batch=9), Case(32, 9, (2, 2), 5)):
        check_images_decide_alone(truth_of(case).arguments)


def test_what_is_not_a_number_wins_a_window_wherever_it_stands() -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    arguments = truth_of(Case(batch=1, window=(2, 2))).arguments
    arguments[0] = arguments[0].clone()
    arguments[0][0, 3, 5, 4] = math.nan  # it reaches 3 x 3 pixels: all of some windows, and parts of others
    result = torch.ops.exprune.staged_conv2d_relu(*arguments)
    pooled = torch.ops.exprune.staged_conv2d_relu(*arguments, pools=True)
    assert 0 < int(pooled.isnan().sum()) < pooled.numel()
    assert torch.equal(pooled.isnan(), F.max_pool2d(result, 2).isnan())


@pytest.mark.parametrize(
    ("case", "place", "value"),
    [
        (Case(), 6, [6]),
        (Case(), 7, "threshold"),
        (Case(), 17, None),
        (Case(channels=10), 0, None),
        (Case(), 16, torch.zeros(7, 12, 3, 3)),
        (Case(), 16, torch.zeros(7, 12, 3, 1, dtype=torch.int8)),
        (Case(), 18, torch.zeros(7, 12, 3, 3, dtype=torch.int8)),
        (replace(Case(), dtype=torch.bfloat16), 0, None),
        (Case(space=(9, 9), window=(3, 3)), 0, None),
    ],
    ids=["stages", "guard", "numbers", "channels", "floats", "shape", "rest", "dtype", "window"],
)
def test_wrong_calls_are_refused(case: Case, place: int, value: object) -> None:
    if not native.available():
        pytest.skip("native kernels cannot be built here")
    arguments = truth_of(case).arguments
    if place:
        arguments[place] = value
    with pytest.raises(RuntimeError, match="exprune"):
        torch.ops.exprune.staged_conv2d_relu(*arguments)
