"""The fused operators for tests of passes: the native ones, or stand-ins of the same schema that the reference computes.

What a pass writes can so be tested where no kernel can be built.
"""

from __future__ import annotations

from typing import Any

import torch

from exprune_fx.ops import native, reference

_SITE = "Tensor x, Tensor weight, Tensor? bias"
_HEAD = "Tensor? down, Tensor? up, int[] stages"
_RULE = "str guard, float number, Tensor? limits"
# Which change no result, but for its last bits.
_CODES = "Tensor? codes=None, Tensor? code_numbers=None, Tensor? code_slack=None, Tensor? code_rest=None"
_OUT_CODES = "Tensor? out_codes=None, Tensor? out_scales=None, Tensor? out_rest=None"
_WALK = "int[] stride, int[] padding, int[] dilation, int groups"
SCHEMAS = {
    "staged_linear_relu": f"{_SITE}, Tensor? residual, {_HEAD}, int block, {_RULE}, str activation, {_CODES}",
    "staged_conv2d_relu": f"{_SITE}, Tensor? residual, {_HEAD}, {_RULE}, {_WALK}, str activation, "
    "int[]? window=None, Tensor? codes=None, Tensor? code_numbers=None, Tensor? code_rest=None, bool pools=False",
    "staged_ffn": (
        f"{_SITE}, {_HEAD}, int block, {_RULE}, str activation, Tensor weight_out, Tensor? bias_out, {_CODES}, "
        f"{_OUT_CODES}"
    ),
    "staged_gated_ffn": (
        f"{_SITE}, {_HEAD}, int block, {_RULE}, str activation, Tensor weight_value, Tensor? bias_value, "
        f"Tensor weight_out, Tensor? bias_out, {_CODES}, {_OUT_CODES}"
    ),
}


def _decide(
    x: Any,
    weight: Any,
    partial: Any,
    squares: Any,
    constant: Any,
    stop: Any,
    block: Any,
    guard: Any,
    number: Any,
    limits: Any,
    walk: Any,
    first: Any,
    window: Any = None,
) -> Any:
    """One stage's guard, by the reference rules."""
    seen, terms = stop // block, weight.shape[1] // block
    if guard == "threshold":
        return reference.guard_threshold(partial, constant, seen, terms, number)
    if guard in ("stats_test", "finite_population"):
        rule = getattr(reference, f"guard_{guard}")
        return rule(partial, squares, constant, seen, terms, number)
    shape = [-1, *[1] * (weight.dim() - 2)]
    if guard == "calibrated":
        return reference.guard_calibrated(partial, constant, limits.reshape(shape))
    if guard == "pooled":
        assert first == 0, "stand-ins know rivals at one stage only"
        thresholds, margins = (row.reshape(shape) for row in limits)
        return reference.guard_pooled(partial, constant, thresholds, margins, list(window))
    rest, whole = (row.reshape(shape) for row in limits)
    last = weight.shape[1]
    if walk:
        kernel, out = list(weight.shape[2:]), weight.shape[0]
        norm: Any = reference.input_norm_conv
        norms = [norm(x, kernel, *walk, out // walk[3], start, last) for start in (first, 0)]
    else:
        norms = [reference.input_norm_linear(x, start, last) for start in (first, 0)]
    return reference.guard_bound(partial, constant, rest, norms[0], whole, norms[1], weight[0].numel())


def _site(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    down: Any,
    up: Any,
    stages: Any,
    block: Any,
    guard: Any,
    number: Any,
    limits: Any,
    walk: Any,
    activation: Any,
    window: Any = None,
    codes: Any = None,
    code_numbers: Any = None,
    code_rest: Any = None,
    pools: bool = False,
) -> Any:
    """The reference chain of one site: head, guards, finish; and the pool."""
    if pools:
        unpooled = (bias, residual, down, up, stages, block, guard, number, limits, walk, activation, window)
        result = _site(x, weight, *unpooled, codes, code_numbers, code_rest)
        return torch.nn.functional.max_pool2d(result, window).contiguous(memory_format=torch.channels_last)
    kind, dims = ("conv", weight.dim() - 2) if walk else ("linear", 0)
    constant = None if bias is None and residual is None else reference.constant_term(bias, residual, dims)
    finish = getattr(reference, f"finish_{kind}_relu")
    partial = squares = stopped = None
    start = 0
    if down is not None or codes is not None:
        if codes is None:
            partial = getattr(reference, f"principal_{kind}")(x, down, up, *walk[:3])
        else:
            partial = reference.coded_conv(x, codes, code_numbers[0], *walk[:3])
        row = None if limits is None else limits[0]
        stopped = _decide(x, weight, partial, None, constant, 1, 1, guard, number, row, walk, 0, window)
        return finish(x, weight, bias, residual, None, stopped, *walk, 0, activation)
    for index, seen in enumerate(stages):
        stop = seen * block
        partial = getattr(reference, f"partial_{kind}")(x, weight, *walk, start, stop, partial)
        if guard in ("stats_test", "finite_population"):
            per_term = () if walk else (block,)
            squares = getattr(reference, f"squares_{kind}")(x, weight, *walk, start, stop, *per_term, squares)
        row = None if limits is None else limits[index]
        now = _decide(x, weight, partial, squares, constant, stop, block, guard, number, row, walk, stop)
        stopped = now if stopped is None else stopped | now
        start = stop
    if stopped is None:
        z = torch.nn.functional.conv2d(x, weight, bias, *walk) if walk else torch.nn.functional.linear(x, weight, bias)
        stopped = torch.zeros_like(z, dtype=torch.bool)
    return finish(x, weight, bias, residual, partial, stopped, *walk, start, activation)


def _staged_linear_relu(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    down: Any,
    up: Any,
    stages: Any,
    block: Any,
    guard: Any,
    number: Any,
    limits: Any,
    activation: Any,
    *_codes: Any,
) -> Any:
    return _site(x, weight, bias, residual, down, up, stages, block, guard, number, limits, (), activation)


def _staged_conv2d_relu(
    x: Any,
    weight: Any,
    bias: Any,
    residual: Any,
    down: Any,
    up: Any,
    stages: Any,
    guard: Any,
    number: Any,
    limits: Any,
    *more: Any,
) -> Any:
    walk, activation, tables = tuple(more[:4]), more[4], more[5:]
    result = _site(x, weight, bias, residual, down, up, stages, 1, guard, number, limits, walk, activation, *tables)
    return result.contiguous(memory_format=torch.channels_last)


def _staged_ffn(
    x: Any,
    weight: Any,
    bias: Any,
    down: Any,
    up: Any,
    stages: Any,
    block: Any,
    guard: Any,
    number: Any,
    limits: Any,
    activation: Any,
    weight_out: Any,
    bias_out: Any,
    *_codes: Any,
) -> Any:
    hidden = _site(x, weight, bias, None, down, up, stages, block, guard, number, limits, (), activation)
    return torch.nn.functional.linear(hidden, weight_out, bias_out)


def _staged_gated_ffn(
    x: Any,
    weight: Any,
    bias: Any,
    down: Any,
    up: Any,
    stages: Any,
    block: Any,
    guard: Any,
    number: Any,
    limits: Any,
    activation: Any,
    *more: Any,
) -> Any:
    value, value_bias, weight_out, bias_out = more[:4]
    gate = _site(x, weight, bias, None, down, up, stages, block, guard, number, limits, (), activation)
    return torch.nn.functional.linear(reference.gated_linear(gate, x, value, value_bias), weight_out, bias_out)


_library: torch.library.Library | None = None


def need_operators() -> None:
    """Makes ``torch.ops.exprune.staged_*`` callable: natively where that can be, else by stand-ins."""
    global _library  # noqa: PLW0603 - a Library unregisters its operators when it dies
    if _library is not None or native.available():
        return
    _library = torch.library.Library("exprune", "FRAGMENT")
    functions: dict[str, Any] = {
        "staged_linear_relu": _staged_linear_relu,
        "staged_conv2d_relu": _staged_conv2d_relu,
        "staged_ffn": _staged_ffn,
        "staged_gated_ffn": _staged_gated_ffn,
    }
    for name, schema in SCHEMAS.items():
        _library.define(f"{name}({schema}) -> Tensor")
        _library.impl(name, functions[name], "CompositeImplicitAutograd")
