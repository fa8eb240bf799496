"""What each op makes of values that are known for every input; see `exprune_fx.static.constants`."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, fx

aten = torch.ops.aten
Known: TypeAlias = "Tensor | list[Tensor | None] | None"
Rule: TypeAlias = "Callable[[Facts, fx.Node], Known]"


class Facts(Protocol):
    """What is known so far."""

    def given(self, argument: Any) -> Tensor | None:
        """What is known of an argument."""
        ...

    def results(self, argument: Any) -> list[Tensor | None]:
        """What is known of a node with several results."""
        ...

    def parameter(self, argument: Any) -> Tensor | None:
        """The tensor that a get_attr argument reads; None for anything else."""
        ...

    def fixed(self, node: fx.Node, dim: int, values: Tensor | float) -> Tensor | None:
        """Values along a dim where its positions go, NaN elsewhere."""
        ...


# NaN in gives NaN out for all of these, so that what is unknown stays unknown.
_POINTWISE_NAMES = """
relu relu6 hardtanh gelu silu sigmoid tanh hardswish hardsigmoid leaky_relu elu selu celu softplus mish
log_sigmoid square exp sqrt rsqrt reciprocal neg abs add sub mul div pow clone alias detach dropout _to_copy
contiguous clamp clamp_min clamp_max
"""
_POINTWISE = {getattr(aten, name) for name in _POINTWISE_NAMES.split()}
_SHAPE_NAMES = """
permute transpose unsqueeze squeeze slice select split split_with_sizes unbind t
"""
_SHAPES = {getattr(aten, name) for name in _SHAPE_NAMES.split()}
_VIEWS = {aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.expand.default}
_SAME_PIXELS = {
    aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default, aten.adaptive_avg_pool3d.default, aten.upsample_nearest2d.vec,
    aten.upsample_nearest2d.default, aten.upsample_bilinear2d.vec, aten.upsample_bilinear2d.default,
}  # fmt: skip
_AVERAGES = {aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default}
_MEANS = {aten.mean.dim, aten.amax.default, aten.amin.default}
_CONVOLUTIONS = {
    aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
    aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
}  # fmt: skip
_TRANSPOSED = {aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input}


def representative(node: fx.Node) -> tuple[int, ...]:
    """The shape of a node's value with every symbolic size as one."""
    return tuple(size if isinstance(size, int) else 1 for size in node.meta["val"].shape)


def rule_of(target: Any) -> Rule | None:
    """The rule of an operator; None where nothing is known of its results."""
    if target in _RULES:
        return _RULES[target]
    packet = getattr(target, "overloadpacket", None)
    if packet in _POINTWISE:
        return _pointwise
    return _rearranged if packet in _SHAPES else None


def _pointwise(state: Facts, node: fx.Node) -> Known:
    values: list[Any] = []
    for argument in node.args:
        if isinstance(argument, fx.Node):
            value = state.given(argument)
            if value is None:
                return _zeros_of_product(state, node)
            values.append(value)
        else:
            values.append(argument)
    if node.target is aten._to_copy.default:
        return values[0] if node.meta["val"].is_floating_point() else None
    if any(isinstance(value, fx.Node) for value in node.kwargs.values()):
        return None
    result: Tensor = node.target(*values, **node.kwargs)  # type: ignore[operator]
    return result


def _zeros_of_product(state: Facts, node: fx.Node) -> Known:
    """Zero times something unknown (and finite) is zero."""
    known = [value for argument in node.args if (value := state.given(argument)) is not None]
    if node.target is not aten.mul.Tensor or len(known) != 1:
        return None
    value = torch.where(known[0] == 0, 0.0, torch.nan)
    return value.reshape([1] * (node.meta["val"].dim() - value.dim()) + list(value.shape))


def _whole(state: Facts, argument: Any) -> Tensor | None:
    value = state.given(argument)
    return None if value is None else value.expand(representative(argument))


def _rearranged(state: Facts, node: fx.Node) -> Known:
    value = _whole(state, node.args[0])
    if value is None or any(isinstance(argument, fx.Node) for argument in node.args[1:]) or node.kwargs:
        return None
    result = node.target(value, *node.args[1:])  # type: ignore[operator]
    shapes = node.meta["val"]
    if isinstance(shapes, (tuple, list)):
        fits = all(tuple(r.shape) == _sizes(s) for r, s in zip(result, shapes, strict=True))
        return list(result) if fits else None
    return result if tuple(result.shape) == representative(node) else None


def _sizes(value: Tensor) -> tuple[int, ...]:
    return tuple(size if isinstance(size, int) else 1 for size in value.shape)


def _view(state: Facts, node: fx.Node) -> Known:
    source, shape = node.args[0], representative(node)
    value = _whole(state, source)
    if value is None:
        return None
    if node.target is aten.expand.default:
        return value.expand(shape)
    return value.reshape(shape) if value.numel() == math.prod(shape) else None


def _cat(state: Facts, node: fx.Node) -> Known:
    nodes = node.args[0]
    dim = node.args[1] if len(node.args) > 1 else 0
    assert isinstance(nodes, (list, tuple))
    assert isinstance(dim, int)
    parts = [state.given(each) for each in nodes]
    rank = len(representative(node))
    shape = [1] * rank
    for part in parts:
        if part is not None:
            shape = [max(a, b) for a, b in zip(shape, part.shape, strict=True)]
    pieces = []
    for each, part in zip(nodes, parts, strict=True):
        assert isinstance(each, fx.Node)
        size = list(shape)
        size[dim % rank] = representative(each)[dim % rank]
        pieces.append(torch.full(size, torch.nan, dtype=torch.float64) if part is None else part.expand(size))
    return torch.cat(pieces, dim)


def _getitem(state: Facts, node: fx.Node) -> Known:
    found = state.results(node.args[0])
    return found[node.args[1]] if found else None  # type: ignore[index]


def _same(state: Facts, node: fx.Node) -> Known:
    """Pooling and resizing: a map that is the same at all pixels stays as it is."""
    value = state.given(node.args[0])
    pixels = {1: 1, 2: 2, 3: 3}[2 if "2d" in str(node.target) else 3 if "3d" in str(node.target) else 1]
    return value if value is not None and all(size == 1 for size in value.shape[-pixels:]) else None


def _average(state: Facts, node: fx.Node) -> Known:
    arguments = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore[union-attr]
    padding = arguments.get("padding", 0)
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    if (padded and arguments.get("count_include_pad", True)) or arguments.get("divisor_override") is not None:
        return None
    return _same(state, node)


def _mean(state: Facts, node: fx.Node) -> Known:
    value = state.given(node.args[0])
    dims = node.args[1] if len(node.args) > 1 else None
    if value is None or not isinstance(dims, (list, tuple)) or node.kwargs:
        return None
    where = [dim % value.dim() for dim in dims]
    if any(value.shape[dim] != 1 for dim in where):
        return None
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    return value if keep else value.reshape([size for dim, size in enumerate(value.shape) if dim not in where])


def _linear(state: Facts, node: fx.Node) -> Known:
    """The bias, where the rows go."""
    return _produced(state, node, -1)


def _convolution(state: Facts, node: fx.Node) -> Known:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    spatial = weight.meta["val"].dim() - 2
    return _produced(state, node, node.meta["val"].dim() - spatial - 1)


def _produced(state: Facts, node: fx.Node, dim: int) -> Known:
    weight = node.args[1]
    if state.parameter(weight) is None:
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is None:
        return state.fixed(node, dim, 0.0)
    values = state.parameter(bias)
    return None if values is None else state.fixed(node, dim, values)


def _embedding(state: Facts, node: fx.Node) -> Known:
    return state.fixed(node, -1, 0.0)


def _batch_norm(state: Facts, node: fx.Node) -> Known:
    """The shift: what the norm gives for a channel that stands at its running mean."""
    bias = state.parameter(node.args[2])
    return state.fixed(node, 1, 0.0 if bias is None else bias)


def _attention(state: Facts, node: fx.Node) -> Known:
    """Weights of a softmax sum up to one: values that are the same at all places come out as they are."""
    value = state.given(node.args[2])
    if value is None or value.shape[-2] != 1 or value.dim() != node.meta["val"].dim():
        return None
    if len(node.args) > 4 and node.args[4]:  # dropout
        return None
    return value if all(a in (1, b) for a, b in zip(value.shape[:-2], representative(node)[:-2], strict=True)) else None


def _select(state: Facts, node: fx.Node) -> Known:
    """Rows chosen by data, of a value that is the same in all rows."""
    value = state.given(node.args[0])
    dim = node.args[1]
    return value if value is not None and isinstance(dim, int) and value.shape[dim] == 1 else None


def _scatter_add(state: Facts, node: fx.Node) -> Known:
    """Zeros added anywhere change nothing."""
    into, source = state.given(node.args[0]), state.given(node.args[3])
    if into is None or source is None:
        return None
    dim = node.args[1]
    assert isinstance(dim, int)
    if source.shape[dim] != 1 or into.shape[dim] != 1:
        return None
    return into + torch.where(source == 0, 0.0, torch.nan)


def _fill(_: Facts, node: fx.Node) -> Known:
    value = {aten.new_zeros.default: 0.0, aten.zeros.default: 0.0, aten.new_ones.default: 1.0, aten.ones.default: 1.0}
    return torch.full([1] * node.meta["val"].dim(), value[node.target], dtype=torch.float64)  # type: ignore[index]


_RULES: dict[Any, Rule] = {
    **dict.fromkeys(_VIEWS, _view),
    **dict.fromkeys(_SAME_PIXELS, _same),
    **dict.fromkeys(_AVERAGES, _average),
    **dict.fromkeys(_MEANS, _mean),
    **dict.fromkeys(_CONVOLUTIONS | _TRANSPOSED, _convolution),
    **dict.fromkeys((aten.new_zeros.default, aten.zeros.default, aten.new_ones.default, aten.ones.default), _fill),
    aten.linear.default: _linear,
    aten.embedding.default: _embedding,
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _batch_norm,
    aten.cat.default: _cat,
    aten.scaled_dot_product_attention.default: _attention,
    aten.index_select.default: _select,
    aten.scatter_add.default: _scatter_add,
    operator.getitem: _getitem,
}
