"""Registers the readable operators as ``torch.ops.exprune.*``.

They are composite: torch decomposes them into ATen wherever it traces (export, AOTAutograd, Inductor), so they need no
fake kernel and no derivative of their own, while an FX graph keeps each as one readable node.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from exprune_fx.ops import reference

_GEOMETRY = "int[] stride, int[] padding, int[] dilation"
_SCHEMAS: dict[Callable[..., Tensor | tuple[Tensor, Tensor]], str] = {
    reference.partial_linear: "(Tensor x, Tensor weight, int start, int stop, Tensor? partial=None)",
    reference.squares_linear: "(Tensor x, Tensor weight, int start, int stop, int block, Tensor? squares=None)",
    reference.partial_conv: (
        f"(Tensor x, Tensor weight, {_GEOMETRY}, int groups, int start, int stop, Tensor? partial=None)"
    ),
    reference.squares_conv: (
        f"(Tensor x, Tensor weight, {_GEOMETRY}, int groups, int start, int stop, Tensor? squares=None)"
    ),
    reference.principal_linear: "(Tensor x, Tensor down, Tensor up)",
    reference.principal_conv: f"(Tensor x, Tensor down, Tensor up, {_GEOMETRY})",
    reference.coded_conv: f"(Tensor x, Tensor codes, Tensor scales, {_GEOMETRY})",
    reference.constant_term: "(Tensor? bias, Tensor? residual, int spatial_dims)",
    reference.guard_threshold: "(Tensor partial, Tensor? constant, int seen, int terms, float threshold)",
    reference.guard_stats_test: (
        "(Tensor partial, Tensor squares, Tensor? constant, int seen, int terms, float quantile)"
    ),
    reference.guard_finite_population: (
        "(Tensor partial, Tensor squares, Tensor? constant, int seen, int terms, float quantile)"
    ),
    reference.guard_calibrated: "(Tensor partial, Tensor? constant, Tensor thresholds)",
    reference.guard_pooled: (
        "(Tensor partial, Tensor? constant, Tensor thresholds, Tensor margins, int[] window, Tensor? stopped=None)"
    ),
    reference.guard_bound: (
        "(Tensor partial, Tensor? constant, Tensor rest_weight_norm, Tensor rest_input_norm, Tensor weight_norm, "
        "Tensor input_norm, int elements)"
    ),
    reference.input_norm_linear: "(Tensor x, int start, int stop)",
    reference.input_norm_conv: (
        f"(Tensor x, int[] kernel, {_GEOMETRY}, int groups, int outputs_per_group, int start, int stop)"
    ),
    reference.finish_linear_relu: (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? partial, Tensor stopped, int start, "
        "str activation)"
    ),
    reference.finish_conv_relu: (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, Tensor? partial, Tensor stopped, "
        f"{_GEOMETRY}, int groups, int start, str activation)"
    ),
    reference.gated_linear: "(Tensor gate, Tensor x, Tensor weight, Tensor? bias)",
    reference.guard_dominance: (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor codes, Tensor numbers, Tensor? center, Tensor? basis, "
        "Tensor slack, int[] stages, float[] reach, int winners)"
    ),
    reference.finish_argmax: "(Tensor x, Tensor weight, Tensor? bias, Tensor stopped)",
    reference.finish_topk: "(Tensor x, Tensor weight, Tensor? bias, Tensor stopped, int k)",
}
_RESULTS: dict[Callable[..., Tensor | tuple[Tensor, Tensor]], str] = {
    reference.finish_topk: "(Tensor values, Tensor indices)"
}  # else a tensor

_library = torch.library.Library("exprune", "FRAGMENT")
for _function, _arguments in _SCHEMAS.items():
    _library.define(f"{_function.__name__}{_arguments} -> {_RESULTS.get(_function, 'Tensor')}")
    _library.impl(_function.__name__, _function, "CompositeImplicitAutograd")

OPERATORS: tuple[str, ...] = tuple(function.__name__ for function in _SCHEMAS)
