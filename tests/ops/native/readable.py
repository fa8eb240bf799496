"""The readable form of each fused operator, under the operator's own name and with its own arguments.

Pure functions of the readable operators, put together as the staging pass does. Fused operators are held against them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor

from exprune_fx.ops import reference
from exprune_fx.ops.reference.walk import wide

_SQUARES = ("stats_test", "finite_population")


def staged_linear_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
) -> Tensor:
    """[..., K] -> [..., out]."""
    stopped, partial = linear_stops(x, weight, bias, residual, down, up, stages, block, guard, number, limits)
    start = stages[-1] * block if partial is not None and stages else 0
    return reference.finish_linear_relu(x, weight, bias, residual, partial, stopped, start, activation)


def linear_stops(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Who stops, bool [..., out], and the partial sum to go on from; None is from nothing."""
    out, features = weight.shape
    constant = None if bias is None and residual is None else reference.constant_term(bias, residual, 0)

    def test(index: int, partial: Tensor, squares: Tensor | None, seen: int) -> Tensor:
        def norm(start: int) -> Tensor:
            return reference.input_norm_linear(x, start, features)

        first = 0 if down is not None else seen * block
        return _guard(
            guard, number, limits, index, partial, squares, constant, seen, features // block, first, norm, features, 0
        )

    none = torch.zeros(*x.shape[:-1], out, dtype=torch.bool)
    if down is not None and up is not None:
        return none | test(0, reference.principal_linear(x, down, up), None, down.shape[0]), None
    tests, partial, squares, start = [none], None, None, 0
    for index, seen in enumerate(stages):
        partial = reference.partial_linear(x, weight, start, seen * block, partial)
        if guard in _SQUARES:
            squares = reference.squares_linear(x, weight, start, seen * block, block, squares)
        tests.append(test(index, partial, squares, seen))
        start = seen * block
    return reduce(torch.logical_or, tests), partial


def staged_conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    guard: str,
    number: float,
    limits: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    window: list[int] | None = None,
    codes: Tensor | None = None,
    code_numbers: Tensor | None = None,
    code_rest: Tensor | None = None,  # noqa: ARG001 - the weight itself is at hand
    pools: bool = False,
) -> Tensor:
    """[N, C, H, W] -> [N, out, H', W']."""
    assert window is None, "rivals are held against a truth of their own"
    assert not pools, "so are pools"
    tables = None if codes is None or code_numbers is None else (codes, code_numbers)
    stopped, partial = conv_stops(
        x, weight, bias, residual, down, up, stages, guard, number, limits, stride, padding, dilation, groups, tables
    )
    start = stages[-1] if partial is not None and stages else 0
    return reference.finish_conv_relu(
        x, weight, bias, residual, partial, stopped, stride, padding, dilation, groups, start, activation
    )


def conv_stops(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    guard: str,
    number: float,
    limits: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    tables: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor | None]:
    """`linear_stops` for a convolution; ``tables`` are codes and their numbers."""
    out, terms, *kernel = weight.shape
    geometry = (stride, padding, dilation)
    constant = None if bias is None and residual is None else reference.constant_term(bias, residual, 2)

    def test(index: int, partial: Tensor, squares: Tensor | None, seen: int) -> Tensor:
        def norm(start: int) -> Tensor:
            return reference.input_norm_conv(x, kernel, *geometry, groups, out // groups, start, terms)

        first, elements = 0 if down is not None else seen, weight[0].numel()
        return _guard(guard, number, limits, index, partial, squares, constant, seen, terms, first, norm, elements, 2)

    empty = F.conv2d(torch.zeros(x.shape), torch.zeros(weight.shape), None, *geometry, groups)
    none = torch.zeros_like(empty, dtype=torch.bool)
    if down is not None and up is not None:
        return none | test(0, reference.principal_conv(x, down, up, *geometry), None, down.shape[0]), None
    if tables is not None:
        return none | test(0, reference.coded_conv(x, tables[0], tables[1][0], *geometry), None, terms), None
    tests, partial, squares, start = [none], None, None, 0
    for index, seen in enumerate(stages):
        partial = reference.partial_conv(x, weight, *geometry, groups, start, seen, partial)
        if guard in _SQUARES:
            squares = reference.squares_conv(x, weight, *geometry, groups, start, seen, squares)
        tests.append(test(index, partial, squares, seen))
        start = seen
    return reduce(torch.logical_or, tests), partial


def _guard(
    guard: str,
    number: float,
    limits: Tensor | None,
    index: int,
    partial: Tensor,
    squares: Tensor | None,
    constant: Tensor | None,
    seen: int,
    terms: int,
    first: int,
    norm: Callable[[int], Tensor],
    elements: int,
    spatial_dims: int,
) -> Tensor:
    """Who stops at one test; ``norm(start)`` is the norm of the inputs from ``start`` on."""
    if guard == "none":
        return torch.zeros_like(partial, dtype=torch.bool)
    if guard == "threshold":
        return reference.guard_threshold(partial, constant, seen, terms, number)
    if guard in _SQUARES:
        assert squares is not None
        rule = reference.guard_stats_test if guard == "stats_test" else reference.guard_finite_population
        return rule(partial, squares, constant, seen, terms, number)
    assert limits is not None
    numbers = limits.reshape(*limits.shape, *[1] * spatial_dims)[index]
    if guard == "calibrated":
        return reference.guard_calibrated(partial, constant, numbers)
    assert guard == "bound", guard
    return reference.guard_bound(partial, constant, numbers[0], norm(first), numbers[1], norm(0), elements)


def staged_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
    weight_out: Tensor,
    bias_out: Tensor | None,
) -> Tensor:
    """[..., K] -> [..., out2]; hidden activations are rounded to the dtype of ``x``, sums are at least float32."""
    site = (x, weight, bias, None, down, up, stages, block, guard, number, limits, activation)
    return _out(staged_linear_relu(*site), weight_out, bias_out)


def staged_gated_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,
    limits: Tensor | None,
    activation: str,
    weight_value: Tensor,
    bias_value: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
) -> Tensor:
    """[..., K] -> [..., out2]."""
    site = (x, weight, bias, None, down, up, stages, block, guard, number, limits, activation)
    return _out(reference.gated_linear(staged_linear_relu(*site), x, weight_value, bias_value), weight_out, bias_out)


def _out(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.linear(wide(hidden), wide(weight), None if bias is None else wide(bias)).to(hidden.dtype)
