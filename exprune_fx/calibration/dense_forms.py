"""The dense ways to compute what a fused operator computes: eager ones, and the ones that Inductor's freezing chooses.

Freezing packs weights for oneDNN or MKL and lets the library apply the activation; a dense form here is that call, on
weights packed once. A form that this build of torch or this processor does not have is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from exprune_fx.calibration.fused_calls import FusedCall
from exprune_fx.sites.site import Activation

_log = logging.getLogger(__name__)
Layer = Callable[[Tensor], Tensor]
Run = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True, eq=False)
class DenseForm:
    """A dense way to compute a site, with whatever its fused operator has joined to it.

    Attributes:
        name: which one it is.
        memory_format: of the input that it is fastest with.
        run: the site's input, and the residual or None, to the result.
    """

    name: str
    memory_format: torch.memory_format
    run: Run


def dense_forms(call: FusedCall, x: Tensor, residual: Tensor | None) -> list[DenseForm]:
    """Every dense form of a site that works here.

    Args:
        call: the fused operator that stands against them.
        x: the site's input: forms are packed for its shape, and tried on it.
        residual: what is added before the activation, or None.
    """
    made = _convolutions(call, x) if call.operator == "staged_conv2d_relu" else _linear_forms(call, x)
    forms = []
    for name, memory_format, make in made:
        try:
            form = DenseForm(name, memory_format, make())
            form.run(x.contiguous(memory_format=memory_format), residual)
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            _log.debug("dense form %r is not to be had: %s", name, str(error).partition("\n")[0])
            continue
        forms.append(form)
    return forms


Made = Iterator[tuple[str, torch.memory_format, Callable[[], Run]]]


def _activated(z: Tensor, residual: Tensor | None, activation: Activation) -> Tensor:
    """The activation of a fresh tensor, in place."""
    if residual is not None:
        z = z.add_(residual)
    if activation == "relu6":
        return z.clamp_(0, 6)
    z = z.relu_()
    return z.square_() if activation == "relu_squared" else z


def _library_activation(activation: Activation) -> tuple[str, list[float | None]]:
    return ("hardtanh", [0.0, 6.0]) if activation == "relu6" else ("relu", [])


# --- convolutions -----------------------------------------------------------------------------------------------------


def _convolutions(call: FusedCall, x: Tensor) -> Made:
    yield "conv2d", torch.contiguous_format, partial(_eager_convolution, call, torch.contiguous_format)
    yield "conv2d, channels-last", torch.channels_last, partial(_eager_convolution, call, torch.channels_last)
    yield "oneDNN convolution", torch.channels_last, partial(_packed_convolution, call, x)


def _eager_convolution(call: FusedCall, memory_format: torch.memory_format) -> Run:
    given = call.arguments
    weight = given["weight"].contiguous(memory_format=memory_format)
    geometry = [given[name] for name in ("stride", "padding", "dilation", "groups")]

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        return _activated(torch.conv2d(x, weight, given["bias"], *geometry), residual, call.activation)

    return run


def _packed_convolution(call: FusedCall, x: Tensor) -> Run:
    """As Inductor's freezing: the weight in oneDNN's own layout, sum and activation inside the library's call."""
    given, ops = call.arguments, torch.ops.mkldnn
    walk = [given[name] for name in ("padding", "stride", "dilation", "groups")]
    packed = ops._reorder_convolution_weight(given["weight"], *walk, list(x.shape))
    attribute, scalars = _library_activation(call.activation)
    squared = call.activation == "relu_squared"

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        if residual is None:
            z: Tensor = ops._convolution_pointwise(x, packed, given["bias"], *walk, attribute, scalars, "")
        else:
            # The library's sum takes a ReLU along, no other activation.
            fused = None if attribute == "hardtanh" else attribute
            z = ops._convolution_pointwise.binary(x, residual, packed, given["bias"], *walk, "add", 1.0, fused, [], "")
            z = z if fused else z.clamp_(0, 6)
        return z.square_() if squared else z

    return run


# --- linear layers, and feed-forwards of them -------------------------------------------------------------------------


def _linear_forms(call: FusedCall, x: Tensor) -> Made:
    call = _by_rows(call)
    rows = x.numel() // max(x.shape[-1], 1)
    layers = {"linear": _eager_linear, "oneDNN linear": _onednn_linear, "MKL linear": _mkl_linear}
    for name, layer in layers.items():
        yield name, torch.contiguous_format, partial(_joined, call, rows, layer)
    if rows == 1:
        yield "matrix times vector", torch.contiguous_format, partial(_joined, call, rows, _vector_linear)


def _by_rows(call: FusedCall) -> FusedCall:
    """The call with row-major weights, which all forms share."""
    names = [name for name in ("weight", "weight_value", "weight_out") if name in call.arguments]
    return replace(call, arguments={**call.arguments, **{name: call.arguments[name].contiguous() for name in names}})


MakeLayer = Callable[[Tensor, Tensor | None, int], Layer]


def _joined(call: FusedCall, rows: int, make: MakeLayer) -> Run:
    """The site's layer with its activation, and the layers that the fused operator has joined to it."""
    given = call.arguments
    first = make(given["weight"], given["bias"], rows)
    value = make(given["weight_value"], given["bias_value"], rows) if "weight_value" in given else None
    second = make(given["weight_out"], given["bias_out"], rows) if "weight_out" in given else None

    def run(x: Tensor, residual: Tensor | None) -> Tensor:
        hidden = _activated(first(x), residual, call.activation)
        if value is not None:
            hidden = hidden.mul_(value(x))
        return hidden if second is None else second(hidden)

    return run


def _eager_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Layer:  # noqa: ARG001 - as the others
    return lambda x: F.linear(x, weight, bias)


def _vector_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Layer:  # noqa: ARG001 - as the others
    def layer(x: Tensor) -> Tensor:
        row = torch.mv(weight, x.reshape(-1)) if bias is None else torch.addmv(bias, weight, x.reshape(-1))
        return row.view(*x.shape[:-1], -1)

    return layer


def _onednn_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Layer:
    ops: Any = torch.ops.mkldnn
    packed = ops._reorder_linear_weight(weight, rows)
    return lambda x: ops._linear_pointwise(x, packed, bias, "none", [], "")


def _mkl_linear(weight: Tensor, bias: Tensor | None, rows: int) -> Layer:
    ops: Any = torch.ops.mkl
    if weight.dtype != torch.float32:
        raise NotImplementedError("MKL packs float32 only")
    packed = ops._mkl_reorder_linear_weight(weight, rows)
    return lambda x: ops._mkl_linear(x, packed, weight, bias, rows)
