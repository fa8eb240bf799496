"""Schemas, fake kernels and dispatch of the fused operators; what they refuse."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from exprune_fx.errors import KernelError
from exprune_fx.ops import native
from exprune_fx.ops.coded import codes_of, numbers_of
from exprune_fx.ops.native import fake
from exprune_fx.ops.split import rest_of
from exprune_fx.staging.arguments import names_of
from tests.ops.native.cases import Arguments, Conv, Linear

LINEAR = Linear(terms=12, out=9, rows=(2, 3), stages=(3, 5), guard="calibrated", residual=True)
CONV = Conv(terms=6, out=5, stages=(2,), guard="bound", stride=(2, 1), residual=True)


def coded() -> Arguments:
    """A convolution's arguments with codes and their numbers."""
    case = Conv(terms=8, out=5, stages=(8,), guard="calibrated", residual=True)
    arguments = case.arguments()
    codes, scales = codes_of(arguments[1])
    return (*arguments, None, codes, numbers_of(codes, scales), rest_of(arguments[1], codes, scales))


CALLS: dict[str, tuple[str, Arguments]] = {
    "linear": ("staged_linear_relu", LINEAR.arguments()),
    "linear of no rows": ("staged_linear_relu", replace(LINEAR, rows=(0,)).arguments()),
    "linear of one row": ("staged_linear_relu", replace(LINEAR, rows=()).arguments()),
    "linear, principal": ("staged_linear_relu", replace(LINEAR, principal=True, stages=(4,)).arguments()),
    "linear in half": ("staged_linear_relu", replace(LINEAR, dtype=torch.bfloat16, x_layout="transposed").arguments()),
    "convolution": ("staged_conv2d_relu", CONV.arguments()),
    "convolution, channels last": ("staged_conv2d_relu", replace(CONV, x_layout="channels_last").arguments()),
    "convolution of one pixel": ("staged_conv2d_relu", replace(CONV, batch=1, space=(1, 1)).arguments()),
    "convolution to one channel": ("staged_conv2d_relu", replace(CONV, out=1).arguments()),
    "convolution, principal": ("staged_conv2d_relu", replace(CONV, principal=True, stages=(3,)).arguments()),
    "convolution, coded": ("staged_conv2d_relu", coded()),
    "feed-forward": ("staged_ffn", LINEAR.ffn_arguments()),
    "gated feed-forward": ("staged_gated_ffn", LINEAR.gated_ffn_arguments()),
}


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:.*_maybe_guard_rel.*was called on a non-relational:UserWarning")
def test_opcheck(name: str) -> None:
    operator, arguments = CALLS[name]
    torch.library.opcheck(getattr(torch.ops.exprune, operator).default, arguments)


@pytest.mark.parametrize("name", CALLS)
def test_shape_dtype_and_layout_are_known_without_computing(name: str) -> None:
    operator, arguments = CALLS[name]
    with FakeTensorMode() as mode:
        faked = [mode.from_tensor(item) if isinstance(item, Tensor) else item for item in arguments]
        result = getattr(fake, operator)(*faked)
    assert result.dtype == arguments[0].dtype
    if operator == "staged_conv2d_relu":
        assert result.is_contiguous(memory_format=torch.channels_last)
    else:
        assert result.is_contiguous()


def names_in_python(operator: str) -> list[str]:
    return list(inspect.signature(getattr(fake, operator)).parameters)


LINEAR_NAMES, CONV_NAMES = names_in_python("staged_linear_relu"), names_in_python("staged_conv2d_relu")


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
@pytest.mark.parametrize("operator", ["staged_linear_relu", "staged_conv2d_relu", "staged_ffn", "staged_gated_ffn"])
def test_arguments_have_one_name_and_place_in_python_and_in_the_schema(operator: str) -> None:
    assert names_of(getattr(torch.ops.exprune, operator).default) == names_in_python(operator)


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
def test_a_gradient_is_never_missing_in_silence() -> None:
    x, *rest = replace(LINEAR, residual=False).arguments()
    with torch.no_grad():
        assert not torch.ops.exprune.staged_linear_relu(x.requires_grad_(), *rest).requires_grad
    result = torch.ops.exprune.staged_linear_relu(x, *rest)
    with pytest.warns(UserWarning, match="exprune::staged_linear_relu: an autograd kernel was not registered"):
        result.sum().backward()


REFUSED: dict[str, tuple[dict[str, object], str]] = {
    "x in float64": ({"x": torch.zeros(2, 3, 12).double()}, "weight is torch.float32, x is torch.float64"),
    "x of other features": ({"x": torch.zeros(2, 3, 11)}, r"weight is \[9, 12\], not \[9, 11\]"),
    "bias of other outputs": ({"bias": torch.zeros(8)}, r"bias is \[8\], not \[9\]"),
    "bias in half": ({"bias": torch.zeros(9).half()}, "bias is torch.float16, x is torch.float32"),
    "residual that broadcasts": ({"residual": torch.zeros(9)}, r"residual is \[9\], not \[2, 3, 9\]"),
    "stages that fall": ({"stages": [5, 3]}, r"stages \[5, 3\] of 12 terms"),
    "stages to the end": ({"stages": [3, 12]}, r"stages \[3, 12\] of 12 terms"),
    "stage of nothing": ({"stages": [0, 4]}, r"stages \[0, 4\] of 12 terms"),
    "a guard without stages": ({"stages": []}, r"guard 'calibrated' with stages \[\]"),
    "blocks that do not fit": ({"block": 5}, "12 features in blocks of 5"),
    "unknown guard": ({"guard": "hope"}, "guard is 'hope'"),
    "unknown activation": ({"activation": "gelu"}, "activation is 'gelu'"),
    "no limits": ({"limits": None}, "guard 'calibrated' without limits"),
    "limits of other stages": ({"limits": torch.zeros(1, 9)}, r"limits is \[1, 9\], not \[2, 9\]"),
    "limits in float64": ({"limits": torch.zeros(2, 9).double()}, "limits are torch.float64"),
    "down without up": ({"down": torch.zeros(4, 12)}, "down without up"),
    "a rank that is no stage": (
        {"down": torch.zeros(4, 12), "up": torch.zeros(9, 4)},
        r"a principal head of rank 4 with stages \[3, 5\]",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_arguments_that_do_not_fit_are_refused_with_a_reason(name: str) -> None:
    changes, message = REFUSED[name]
    arguments = dict(zip(LINEAR_NAMES, LINEAR.arguments(), strict=False)) | changes
    with pytest.raises(KernelError, match=f"exprune::staged_linear_relu: {message}"):
        fake.staged_linear_relu(**arguments)


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
@pytest.mark.parametrize("name", REFUSED)
def test_the_kernel_itself_refuses_or_returns_a_result_but_never_reads_elsewhere(name: str) -> None:
    """Eager calls see no fake kernel; under the sanitizer this shows whether the C++ checks what it reads."""
    changes, _ = REFUSED[name]
    arguments = dict(zip(LINEAR_NAMES, LINEAR.arguments(), strict=False)) | changes
    try:
        result = torch.ops.exprune.staged_linear_relu(**arguments)
    except RuntimeError as error:
        assert "exprune" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert result.shape == (2, 3, 9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 2}, "2 groups"),
        ({"x": torch.zeros(2, 6, 5)}, r"x is \[2, 6, 5\], not \[N, C, H, W\]"),
        ({"weight": torch.zeros(5, 6, 3)}, r"weight is \[5, 6, 3\], not"),
        ({"stride": [1]}, r"stride is \[1\]"),
        ({"stride": [0, 1]}, r"stride is \[0, 1\]"),
        ({"padding": [0, -1]}, r"padding is \[0, -1\]"),
        ({"dilation": [3, 3], "padding": [0, 0]}, r"x \[2, 6, 5, 4\] is smaller than the kernel \[3, 3\]"),
    ],
)
def test_convolutions_that_no_kernel_takes_are_refused(changes: dict[str, object], message: str) -> None:
    arguments = dict(zip(CONV_NAMES, CONV.arguments(), strict=False)) | changes
    with pytest.raises(KernelError, match=f"exprune::staged_conv2d_relu: {message}"):
        fake.staged_conv2d_relu(**arguments)


def coded_but(**changes: object) -> dict[str, object]:
    return dict(zip(CONV_NAMES, coded(), strict=False)) | changes


REFUSED_CODED: dict[str, tuple[dict[str, object], str]] = {
    "no numbers": ({"code_numbers": None}, "codes and code_numbers"),
    "no codes": ({"codes": None}, "codes and code_numbers"),
    "a rest of nothing": ({"codes": None, "code_numbers": None}, "code_rest without codes"),
    "a rest of another shape": (
        {"code_rest": torch.zeros(5, 8, 3, 1, dtype=torch.int16)},
        r"code_rest is \[5, 8, 3, 1\], not \[5, 8, 3, 3\]",
    ),
    "a rest in int32": ({"code_rest": torch.zeros(5, 8, 3, 3, dtype=torch.int32)}, "code_rest is torch.int32"),
    "a rest of a half weight": (
        {
            "x": torch.zeros(2, 8, 5, 4).half(),
            "weight": torch.zeros(5, 8, 3, 3).half(),
            "bias": torch.zeros(5).half(),
            "residual": None,
        },
        "code_rest of torch.float16",
    ),
    "another rule": ({"guard": "bound", "limits": torch.zeros(1, 2, 5)}, "guard 'bound' with a coded head"),
    "some terms": ({"stages": [4]}, r"a coded head with stages \[4\]"),
    "two stages": ({"stages": [4, 8], "limits": torch.zeros(2, 5)}, r"a coded head with stages \[4, 8\]"),
    "two heads": ({"down": torch.zeros(8, 8), "up": torch.zeros(5, 8, 3, 3)}, "a coded head and a principal one"),
    "codes of another shape": ({"codes": torch.zeros(5, 4, 3, 3, dtype=torch.int8)}, r"codes is \[5, 4, 3, 3\], not"),
    "codes in float32": ({"codes": torch.zeros(5, 8, 3, 3)}, "codes are torch.float32"),
    "numbers of other outputs": ({"code_numbers": torch.zeros(2, 4)}, r"code_numbers is \[2, 4\], not \[2, 5\]"),
    "numbers in float64": ({"code_numbers": torch.zeros(2, 5).double()}, "code_numbers are torch.float64"),
    "many rivals": (
        {"guard": "pooled", "limits": torch.zeros(1, 2, 5), "window": [3, 3]},
        "a coded head with windows of 9 rivals",
    ),
    "three channels": (
        {"x": torch.zeros(2, 3, 5, 4), "weight": torch.zeros(5, 3, 3, 3)},
        "no coded head: its 3 input channels are no multiple of 4",
    ),
}


@pytest.mark.parametrize("name", REFUSED_CODED)
def test_coded_heads_that_no_kernel_takes_are_refused(name: str) -> None:
    changes, message = REFUSED_CODED[name]
    with pytest.raises(KernelError, match=f"exprune::staged_conv2d_relu: {message}"):
        fake.staged_conv2d_relu(**coded_but(**changes))  # type: ignore[arg-type]


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
@pytest.mark.parametrize("name", REFUSED_CODED)
def test_the_kernel_itself_takes_coded_heads_that_fit_it_or_refuses(name: str) -> None:
    try:
        result = torch.ops.exprune.staged_conv2d_relu(**coded_but(**REFUSED_CODED[name][0]))
    except RuntimeError as error:
        assert "exprune" in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert result.shape == (2, 5, 5, 4)


@pytest.mark.skipif(not native.available(), reason="native kernels cannot be built here")
def test_a_graph_with_symbolic_rows_compiles_once_for_all_sizes() -> None:
    x, *rest = replace(LINEAR, residual=False).arguments()

    class Model(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = torch.ops.exprune.staged_linear_relu(x, *rest)
            return result

    exported = torch.export.export(Model(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    for batch in (2, 5):
        rows = torch.randn(batch, 3, 12)
        assert torch.equal(exported.module()(rows), Model()(rows))
