"""The readable and the fused operators against what float64 sums and the rounding of float32 ones allow."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch
from hypothesis import HealthCheck, event, given, settings
from torch import Tensor

from exprune_fx.ops.native.fake_site import DTYPES
from tests.ops.native import cases, readable, truth
from tests.ops.native.cases import Arguments, Conv, Linear


def check(operator: str, arguments: Arguments, result: Tensor) -> int:
    """Asserts that a result may be; the number of neurons whose stop rounding decides."""
    allowed = getattr(truth, operator)(*arguments)
    assert result.dtype == arguments[0].dtype
    assert result.shape == allowed.low.shape
    refused = allowed.refuses(result)
    if refused.any():
        at = tuple(refused.nonzero()[0].tolist())
        reference = getattr(readable, operator)(*arguments)
        raise AssertionError(
            f"{int(refused.sum())} of {refused.numel()} refused; at {at}: {result[at]}, readable {reference[at]}, "
            f"allowed [{allowed.low[at]}, {allowed.high[at]}], may stop {allowed.may_stop[at]}, "
            f"must {allowed.must_stop[at]}"
        )
    return int(allowed.borderline.sum())


@given(cases.linears())
@settings(deadline=None)
def test_the_readable_linear_operators_return_what_the_sums_allow(case: Linear) -> None:
    event(f"{check('staged_linear_relu', case.arguments(), readable.staged_linear_relu(*case.arguments()))} borderline")
    check("staged_ffn", case.ffn_arguments(), readable.staged_ffn(*case.ffn_arguments()))
    check("staged_gated_ffn", case.gated_ffn_arguments(), readable.staged_gated_ffn(*case.gated_ffn_arguments()))


@given(cases.convs())
@settings(deadline=None)
def test_the_readable_convolution_returns_what_the_sums_allow(case: Conv) -> None:
    event(f"{check('staged_conv2d_relu', case.arguments(), readable.staged_conv2d_relu(*case.arguments()))} borderline")


def fused(operator: str, arguments: Arguments) -> Tensor:
    result: Tensor = getattr(torch.ops.exprune, operator)(*arguments)
    return result


on_every_isa = pytest.mark.usefixtures("isa")
the_isa_stays = settings(
    max_examples=min(40, settings().max_examples),  # of each instruction set: they differ in the width of their vectors
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@given(case=cases.linears())
@the_isa_stays
@on_every_isa
def test_the_fused_linear_operator_returns_what_the_sums_allow(case: Linear) -> None:
    result = fused("staged_linear_relu", case.arguments())
    check("staged_linear_relu", case.arguments(), result)
    assert result.is_contiguous()


@given(case=cases.linears())
@the_isa_stays
@on_every_isa
def test_the_fused_feed_forward_operators_return_what_the_sums_allow(case: Linear) -> None:
    check("staged_ffn", case.ffn_arguments(), fused("staged_ffn", case.ffn_arguments()))
    check("staged_gated_ffn", case.gated_ffn_arguments(), fused("staged_gated_ffn", case.gated_ffn_arguments()))


@given(case=cases.convs())
@the_isa_stays
@on_every_isa
def test_the_fused_convolution_returns_what_the_sums_allow(case: Conv) -> None:
    result = fused("staged_conv2d_relu", case.arguments())
    check("staged_conv2d_relu", case.arguments(), result)
    assert result.is_contiguous(memory_format=torch.channels_last)


GUARDED: tuple[tuple[str, float], ...] = (
    ("threshold", 0.01), ("stats_test", -0.1), ("finite_population", 0.1), ("calibrated", 0.0), ("bound", 0.0),
)  # fmt: skip
LAYERS: dict[str, Linear | Conv] = {
    "staged_linear_relu": Linear(terms=384, out=300, rows=(64,), residual=True),
    "staged_conv2d_relu": Conv(terms=48, out=80, batch=2, space=(16, 15), residual=True),
}


@on_every_isa
@pytest.mark.parametrize("head", ["prefix", "principal"])
@pytest.mark.parametrize(("guard", "number"), GUARDED)
@pytest.mark.parametrize("operator", LAYERS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_both_forms_stop_the_same_neurons_of_a_whole_layer_but_where_rounding_decides(
    operator: str, guard: str, number: float, head: str, dtype: torch.dtype
) -> None:
    if head == "principal" and guard not in ("calibrated", "bound"):
        pytest.skip(f"{guard} has no principal head")
    layer = LAYERS[operator]
    stages = (layer.terms // 8,) if head == "principal" else (layer.terms // 8, layer.terms // 3)
    case = replace(layer, stages=stages, principal=head == "principal", guard=guard, number=number, dtype=dtype)
    arguments = replace(case, shrink=0.05).arguments()
    allowed = getattr(truth, operator)(*arguments)
    ours, reference = fused(operator, arguments), getattr(readable, operator)(*arguments)
    assert not allowed.refuses(ours).any()
    assert not allowed.refuses(reference).any()
    lively = allowed.low > 0.05  # neurons whose output tells whether they stopped
    differs = ((ours == 0) != (reference == 0)) & lively
    assert not (differs & ~allowed.borderline).any()
    # 24 000 to 38 400 neurons, each with a chance of about sum|w*x| * m * u, 1e-4 and less, to lie that near
    assert int(differs.sum()) <= 3, "rounding alone does not explain so many"
    assert (allowed.borderline.double().mean()) < 1e-3
    seen = (allowed.must_stop & lively).double().mean() / lively.double().mean()
    assert seen > 0.02, "nothing of interest stops: the test would miss a guard that does nothing"


@given(case=cases.linears().filter(lambda case: math.prod(case.rows) > 1))
@the_isa_stays
@on_every_isa
def test_a_row_alone_equals_the_row_among_others_to_the_bit(case: Linear) -> None:
    for operator, arguments in (
        ("staged_linear_relu", case.arguments()),
        ("staged_ffn", case.ffn_arguments()),
        ("staged_gated_ffn", case.gated_ffn_arguments()),
    ):
        together = fused(operator, arguments).flatten(0, -2)
        with threads(2):
            assert torch.equal(fused(operator, arguments).flatten(0, -2), together), f"{operator} with two threads"
        for row in (0, together.shape[0] // 2, together.shape[0] - 1):
            alone = list(arguments)
            alone[0] = arguments[0].flatten(0, -2)[row : row + 1]
            if operator == "staged_linear_relu" and arguments[3] is not None:
                alone[3] = arguments[3].flatten(0, -2)[row : row + 1]
            assert torch.equal(fused(operator, tuple(alone))[0], together[row]), f"{operator}, row {row}"


@given(case=cases.convs().map(lambda case: replace(case, batch=7)))
@the_isa_stays
@on_every_isa
def test_an_image_alone_equals_the_image_among_others_to_the_bit(case: Conv) -> None:
    _alone_and_among_others(case)


@on_every_isa
def test_an_image_read_where_it_lies_equals_the_same_image_copied_to_the_bit() -> None:
    case = Conv(1, 40, batch=7, space=(3, 9), kernel=(1, 4), padding=(0, 0), x_layout="expanded")
    for seed in range(4):
        _alone_and_among_others(replace(case, seed=seed))


def _alone_and_among_others(case: Conv) -> None:
    x, weight, bias, residual, *rest = case.arguments()
    together = fused("staged_conv2d_relu", (x, weight, bias, residual, *rest))
    with threads(2):
        assert torch.equal(fused("staged_conv2d_relu", (x, weight, bias, residual, *rest)), together)
    for image in (0, 3, 6):
        own = slice(image, image + 1)
        alone = (x[own], weight, bias, None if residual is None else residual[own], *rest)
        assert torch.equal(fused("staged_conv2d_relu", alone), together[own])


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@on_every_isa
def test_what_is_not_a_number_stays_so() -> None:
    linear = Linear(terms=40, out=20, rows=(4,), stages=(8,), guard="calibrated")
    x, *rest = linear.arguments()
    x[2, 30] = torch.nan
    result, reference = fused("staged_linear_relu", (x, *rest)), readable.staged_linear_relu(x, *rest)
    assert torch.equal(result.isnan(), reference.isnan())
    assert result[2].isnan().any()


WIDE = Linear(terms=2061, out=37, rows=(70,), stages=(257, 700), guard="calibrated", hidden_out=1030, sparse=True)
DEEP = Conv(terms=333, out=35, batch=3, space=(9, 9), stages=(41, 130), guard="calibrated", residual=True)
LARGE: dict[str, Linear | Conv] = {
    "linear": WIDE,
    "linear in bfloat16": replace(WIDE, dtype=torch.bfloat16),
    "linear in blocks": replace(WIDE, terms=229, block=9, stages=(30,)),
    "linear with squares": replace(WIDE, guard="stats_test", number=-0.5),
    "linear with squares in blocks": replace(WIDE, terms=229, block=9, stages=(30,), guard="finite_population"),
    "linear with norms": replace(WIDE, guard="bound", shrink=0.1),
    "linear, principal": replace(WIDE, principal=True, stages=(130,)),
    "linear without a head": replace(WIDE, guard="none", stages=()),
    "convolution": DEEP,
    "convolution in float16": replace(DEEP, dtype=torch.float16),
    "convolution of few pixels": replace(DEEP, space=(2, 2)),
    "convolution of many images of few rows": replace(DEEP, terms=33, stages=(7,), batch=7, space=(3, 3)),
    "convolution of pixels in the padding alone": replace(
        DEEP, terms=33, stages=(7,), batch=7, space=(3, 8), kernel=(1, 2), stride=(3, 2), padding=(3, 1)
    ),
    "convolution of small images": replace(DEEP, space=(4, 4), batch=7),
    "convolution of small images, stages of whole vectors": replace(
        DEEP, terms=320, stages=(32, 64), space=(3, 5), batch=7, sparse=True, dtype=torch.bfloat16
    ),
    "convolution of small images in long strides": replace(
        DEEP,
        terms=256,
        stages=(128,),
        batch=3,
        space=(9, 6),
        kernel=(5, 3),
        stride=(3, 2),
        padding=(2, 2),
        dilation=(1, 2),
    ),
    "convolution of small images, many taps": replace(
        DEEP, terms=257, stages=(15,), space=(4, 3), kernel=(7, 7), padding=(3, 3), guard="bound", shrink=0.1
    ),
    "convolution of small images with squares": replace(DEEP, space=(4, 4), guard="stats_test", number=-0.5),
    "convolution of small images, principal": replace(DEEP, principal=True, stages=(40,), space=(4, 4), batch=9),
    "convolution of small images without a head": replace(DEEP, space=(4, 4), guard="none", stages=()),
    "convolution with squares": replace(DEEP, guard="stats_test", number=-0.5, batch=2),
    "convolution with norms": replace(DEEP, guard="bound", shrink=0.1),
    "convolution, principal": replace(DEEP, principal=True, stages=(40,)),
    "convolution, principal, of few pixels": replace(DEEP, principal=True, stages=(140,), space=(3, 2)),
    "pointwise convolution": replace(DEEP, kernel=(1, 1), padding=(0, 0), x_layout="channels_last"),
}


LARGE_CALLS = [
    (name, operator)
    for name, case in LARGE.items()
    for operator in (
        ("staged_conv2d_relu",) if isinstance(case, Conv) else ("staged_linear_relu", "staged_ffn", "staged_gated_ffn")
    )
]


@on_every_isa
@pytest.mark.parametrize(("name", "operator"), LARGE_CALLS)
def test_large_layers_return_what_the_sums_allow_and_no_row_depends_on_others(name: str, operator: str) -> None:
    """Sums longer than a cache's block, rows in all of the ways that a kernel may divide them."""
    arguments = LARGE[name].call(operator)
    together = fused(operator, arguments)
    check(operator, arguments, together)
    with threads(2):
        assert torch.equal(fused(operator, arguments), together)
    for rows in (slice(0, 1), slice(1, 3), slice(0, 9), slice(1, 34), slice(-1, None)):
        some = (arguments[0][rows], *arguments[1:])
        if operator in ("staged_linear_relu", "staged_conv2d_relu") and arguments[3] is not None:
            some = (arguments[0][rows], *arguments[1:3], arguments[3][rows], *arguments[4:])
        assert torch.equal(fused(operator, some), together[rows]), f"rows {rows}"
