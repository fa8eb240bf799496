"""What the fused operators return, without computing it: for export, torch.compile and opcheck.

Every argument is checked here as well, so that a graph with a call that no kernel takes fails where it is traced.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.types import IntLikeType

from exprune_fx.ops.native.fake_coded import CodedHead
from exprune_fx.ops.native.fake_site import MOST_RIVALS, POOLED, Site


def register() -> None:
    """Registers the functions below for the operators, which must be loaded."""
    for function in (staged_linear_relu, staged_conv2d_relu, staged_ffn, staged_gated_ffn):
        torch.library.register_fake(f"exprune::{function.__name__}", function)


def _check_linear(site: Site) -> list[IntLikeType]:
    """Checks a linear site; the shape of its activation."""
    site.require(site.x.dim() >= 1, "x has no dimensions")
    site.require(site.guard != POOLED, "no max pool reads the rows of a linear layer")
    site.require(site.weight.dim() == 2, f"weight is {list(site.weight.shape)}, not [out, K]")
    site.tensor("weight", site.weight, [site.weight.shape[0], site.x.shape[-1]])
    site.check()
    return [*site.x.shape[:-1], site.weight.shape[0]]


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
    number: float,  # noqa: ARG001 - decides values only
    limits: Tensor | None,
    activation: str,
    codes: Tensor | None = None,
    code_numbers: Tensor | None = None,
    code_slack: Tensor | None = None,
    code_rest: Tensor | None = None,
) -> Tensor:
    """[..., K] -> [..., out] in the dtype of ``x``, contiguous.

    Raises:
        KernelError: an argument does not fit.
    """
    tables = (codes, code_numbers, code_slack)
    rule = (stages, block, guard, limits, activation)
    site = Site("staged_linear_relu", x, weight, bias, down, up, *rule, tables, code_rest)
    shape = _check_linear(site)
    site.tensor("residual", residual, shape)
    return x.new_empty(shape)


def staged_conv2d_relu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    guard: str,
    number: float,  # noqa: ARG001 - decides values only
    limits: Tensor | None,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    activation: str,
    window: Sequence[int] | None = None,
    codes: Tensor | None = None,
    code_numbers: Tensor | None = None,
    code_rest: Tensor | None = None,
    pools: bool = False,
) -> Tensor:
    """[N, C, H, W] -> [N, out, H', W'] in the dtype of ``x``, channels last; pooled by ``window`` if it ``pools``.

    Raises:
        KernelError: an argument does not fit, or there are several groups.
    """
    head, rule = CodedHead(codes, code_numbers, code_rest), (guard, limits, activation)
    site = Site("staged_conv2d_relu", x, weight, bias, down, up, stages, 1, *rule, coded=head.is_there)
    site.require(x.dim() == 4, f"x is {list(x.shape)}, not [N, C, H, W]")
    site.require(weight.dim() == 4, f"weight is {list(weight.shape)}, not [out, C, kh, kw]")
    site.require(groups == 1, f"{groups} groups", "leave this site in its readable form")
    for name, numbers, least in (("stride", stride, 1), ("padding", padding, 0), ("dilation", dilation, 1)):
        site.require(len(numbers) == 2 and min(numbers) >= least, f"{name} is {numbers}", f"two, each at least {least}")
    window = window or ()
    in_windows = len(window) == 2 and min(window) >= 1 and math.prod(window) <= MOST_RIVALS
    site.require(in_windows if guard == POOLED else not window, f"guard {guard!r} with windows of {list(window)}")
    site.tensor("weight", weight, [weight.shape[0], x.shape[1], *weight.shape[2:]])
    site.require(not head.is_there or guard in ("calibrated", POOLED), f"guard {guard!r} with a coded head")
    head.check(site.require, weight, stages, down if up is None else up, math.prod(window))
    site.check()
    space = [
        (full + 2 * pad - step * (kernel - 1) - 1) // jump + 1
        for full, pad, step, kernel, jump in zip(x.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True)
    ]
    for size in space:
        site.require(size >= 1, f"x {list(x.shape)} is smaller than the kernel {list(weight.shape[2:])}")
    shape = [x.shape[0], weight.shape[0], *space]
    site.tensor("residual", residual, shape)
    if pools:
        site.require(bool(window), "a pool without a window")
        shape[2:] = [size // step for size, step in zip(space, window, strict=True)]
        site.require(min(shape[2:]) >= 1, f"windows of {list(window)} are larger than the {space} that they pool")
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def staged_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,  # noqa: ARG001 - decides values only
    limits: Tensor | None,
    activation: str,
    weight_out: Tensor,
    bias_out: Tensor | None,
    codes: Tensor | None = None,
    code_numbers: Tensor | None = None,
    code_slack: Tensor | None = None,
    code_rest: Tensor | None = None,
    out_codes: Tensor | None = None,
    out_scales: Tensor | None = None,
    out_rest: Tensor | None = None,
) -> Tensor:
    """``linear(activation(site(x)), weight_out, bias_out)``: [..., K] -> [..., out2] in the dtype of ``x``, contiguous.

    Raises:
        KernelError: an argument does not fit.
    """
    tables = (codes, code_numbers, code_slack)
    rule = (stages, block, guard, limits, activation)
    site = Site("staged_ffn", x, weight, bias, down, up, *rule, tables, code_rest)
    return _ffn(site, weight_out, bias_out, (out_codes, out_scales, out_rest))


def staged_gated_ffn(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    down: Tensor | None,
    up: Tensor | None,
    stages: list[int],
    block: int,
    guard: str,
    number: float,  # noqa: ARG001 - decides values only
    limits: Tensor | None,
    activation: str,
    weight_value: Tensor,
    bias_value: Tensor | None,
    weight_out: Tensor,
    bias_out: Tensor | None,
    codes: Tensor | None = None,
    code_numbers: Tensor | None = None,
    code_slack: Tensor | None = None,
    code_rest: Tensor | None = None,
    out_codes: Tensor | None = None,
    out_scales: Tensor | None = None,
    out_rest: Tensor | None = None,
) -> Tensor:
    """``linear(activation(site(x)) * linear(x, weight_value, bias_value), weight_out, bias_out)``; see `staged_ffn`.

    Raises:
        KernelError: an argument does not fit.
    """
    tables = (codes, code_numbers, code_slack)
    rule = (stages, block, guard, limits, activation)
    site = Site("staged_gated_ffn", x, weight, bias, down, up, *rule, tables, code_rest)
    site.tensor("weight_value", weight_value, [*weight.shape])
    site.tensor("bias_value", bias_value, [weight.shape[0]])
    return _ffn(site, weight_out, bias_out, (out_codes, out_scales, out_rest))


def _ffn(
    site: Site, weight_out: Tensor, bias_out: Tensor | None, split: tuple[Tensor | None, Tensor | None, Tensor | None]
) -> Tensor:
    *rows, hidden = _check_linear(site)
    site.require(weight_out.dim() == 2, f"weight_out is {list(weight_out.shape)}, not [out, hidden]")
    site.tensor("weight_out", weight_out, [weight_out.shape[0], hidden])
    site.tensor("bias_out", bias_out, [weight_out.shape[0]])
    shape = [hidden, weight_out.shape[0]]
    expected = {"codes": (torch.int8, shape), "scales": (torch.float32, shape[:1]), "rest": (torch.int16, shape)}
    given = [table is not None for table in split]
    site.require(all(given) or not any(given), "out_codes, out_scales and out_rest", "give all of them or none")
    for (name, (dtype, sizes)), table in zip(expected.items(), split, strict=True):
        if table is not None:
            site.require(site.x.dtype == torch.float32, f"out_{name} of {site.x.dtype}", "split float32 weights only")
            site.require(table.dtype == dtype, f"out_{name} is {table.dtype}", f"give {dtype}")
            site.shape(f"out_{name}", table, sizes)
            site.require(table.is_contiguous(), f"out_{name} has strides {table.stride()}", "make it contiguous")
    return site.x.new_empty([*rows, weight_out.shape[0]])
