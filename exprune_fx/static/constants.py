"""What a removed channel still gives: the constants that flow from biases and shifts once its weights are zero.

A removed member's producing weights count as zero: rows of linear layers and convolutions, columns of embeddings,
scales of batch norms; biases and shifts stay. Its value is then a constant, which pointwise ops, pooling and views pass
on. A value here is a small tensor that broadcasts to the node's value: numbers where the value is known for every
input, NaN where it is not; None where nothing is known.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from exprune_fx.graph.edits import tensor_at
from exprune_fx.static.units import Removal, removed_along
from exprune_fx.symmetry import SymmetryReport

aten = torch.ops.aten
Known: TypeAlias = "Tensor | list[Tensor | None] | None"
_Rule: TypeAlias = "Callable[[Propagation, fx.Node], Known]"

# NaN in gives NaN out for all of these, so that what is unknown stays unknown.
_POINTWISE = {
    getattr(aten, name)
    for name in [
        "relu",
        "relu6",
        "hardtanh",
        "gelu",
        "silu",
        "sigmoid",
        "tanh",
        "hardswish",
        "hardsigmoid",
        "leaky_relu",
        "elu",
        "selu",
        "celu",
        "softplus",
        "mish",
        "log_sigmoid",
        "square",
        "exp",
        "sqrt",
        "rsqrt",
        "reciprocal",
        "neg",
        "abs",
        "add",
        "sub",
        "mul",
        "div",
        "pow",
        "clone",
        "alias",
        "detach",
        "dropout",
        "_to_copy",
        "contiguous",
        "clamp",
        "clamp_min",
        "clamp_max",
    ]
}
_SHAPES = {
    getattr(aten, name)
    for name in [
        "permute",
        "transpose",
        "unsqueeze",
        "squeeze",
        "slice",
        "select",
        "split",
        "split_with_sizes",
        "unbind",
        "t",
    ]
}
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


class Propagation:
    """Constants of every node of a graph in which members are removed.

    Args:
        gm: the dense graph.
        report: its symmetries.
        removals: what goes.
    """

    def __init__(self, gm: fx.GraphModule, report: SymmetryReport, removals: Sequence[Removal]) -> None:
        self._gm = gm
        self._report = report
        self._removals = removals
        self.known: dict[fx.Node, Known] = {}
        with torch.no_grad():
            for node in gm.graph.nodes:
                self.known[node] = self._value(node)

    def removed(self, node: fx.Node, dim: int) -> Tensor | None:
        """Which positions along a dim of a node's value go, or None."""
        axes = self._report.analysis.axes.get(node.name)
        if not isinstance(axes, tuple) or not axes:
            return None
        return removed_along(self._report, axes, dim % len(axes), self._removals)

    def given(self, argument: Any) -> Tensor | None:
        """What is known of an argument."""
        found = self.known.get(argument) if isinstance(argument, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def parameter(self, argument: Any) -> Tensor | None:
        """The float64 tensor that a get_attr argument reads, None for anything else."""
        if not isinstance(argument, fx.Node) or argument.op != "get_attr":
            return None
        return tensor_at(self._gm, str(argument.target)).detach().to(torch.float64)

    def fixed(self, node: fx.Node, dim: int, values: Tensor | float) -> Tensor | None:
        """`values` along a dim where its positions go, NaN elsewhere."""
        gone = self.removed(node, dim)
        if gone is None or not gone.any():
            return None
        rank = gone.dim()
        if isinstance(values, Tensor):
            values = values.reshape([-1 if i == dim % rank else 1 for i in range(rank)])
        return torch.where(gone.to(_device(values)), values, torch.nan).to(torch.float64)

    def _value(self, node: fx.Node) -> Known:
        if node.op == "get_attr":
            held = tensor_at(self._gm, str(node.target)).detach()
            return held.to(torch.float64) if held.is_floating_point() and held.numel() < 10**7 else None
        if node.op != "call_function":
            return None
        rule = _rule_of(node.target)
        result = rule(self, node) if rule is not None else None
        if isinstance(result, list):
            return [_compressed(each) for each in result]
        return _compressed(result)


def _device(values: Tensor | float) -> torch.device:
    return values.device if isinstance(values, Tensor) else torch.device("cpu")


def _compressed(value: Tensor | None) -> Tensor | None:
    """The same with every dim of size 1 along which nothing differs; None where nothing is known."""
    if value is None or bool(value.isnan().all()):
        return None
    for dim, size in enumerate(value.shape):
        first = value.narrow(dim, 0, 1)
        if size > 1 and bool(((value == first) | (value.isnan() & first.isnan())).all()):
            value = first
    return value


def _rule_of(target: Any) -> _Rule | None:
    if target in _RULES:
        return _RULES[target]
    packet = getattr(target, "overloadpacket", None)
    if packet in _POINTWISE:
        return _pointwise
    return _rearranged if packet in _SHAPES else None


def _pointwise(state: Propagation, node: fx.Node) -> Known:
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


def _zeros_of_product(state: Propagation, node: fx.Node) -> Known:
    """Zero times something unknown (and finite) is zero."""
    known = [value for argument in node.args if (value := state.given(argument)) is not None]
    if node.target is not aten.mul.Tensor or len(known) != 1:
        return None
    value = torch.where(known[0] == 0, 0.0, torch.nan)
    return value.reshape([1] * (node.meta["val"].dim() - value.dim()) + list(value.shape))


def _whole(state: Propagation, argument: Any) -> Tensor | None:
    value = state.given(argument)
    return None if value is None else value.expand(representative(argument))


def _rearranged(state: Propagation, node: fx.Node) -> Known:
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


def _view(state: Propagation, node: fx.Node) -> Known:
    source, shape = node.args[0], representative(node)
    value = _whole(state, source)
    if value is None:
        return None
    if node.target is aten.expand.default:
        return value.expand(shape)
    return value.reshape(shape) if value.numel() == math.prod(shape) else None


def _cat(state: Propagation, node: fx.Node) -> Known:
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
        pieces.append(torch.full(size, torch.nan, dtype=torch.float64) if part is None else part.cpu().expand(size))
    return torch.cat(pieces, dim)


def _getitem(state: Propagation, node: fx.Node) -> Known:
    found = state.known.get(node.args[0])  # type: ignore[arg-type]
    return found[node.args[1]] if isinstance(found, list) else None  # type: ignore[index]


def _same(state: Propagation, node: fx.Node) -> Known:
    """Pooling and resizing: a map that is the same at all pixels stays as it is."""
    value = state.given(node.args[0])
    pixels = {1: 1, 2: 2, 3: 3}[2 if "2d" in str(node.target) else 3 if "3d" in str(node.target) else 1]
    return value if value is not None and all(size == 1 for size in value.shape[-pixels:]) else None


def _average(state: Propagation, node: fx.Node) -> Known:
    arguments = dict(zip((a.name for a in node.target._schema.arguments), node.args, strict=False)) | node.kwargs  # type: ignore[union-attr]
    padding = arguments.get("padding", 0)
    padded = any(padding) if isinstance(padding, (list, tuple)) else bool(padding)
    if (padded and arguments.get("count_include_pad", True)) or arguments.get("divisor_override") is not None:
        return None
    return _same(state, node)


def _mean(state: Propagation, node: fx.Node) -> Known:
    value = state.given(node.args[0])
    dims = node.args[1] if len(node.args) > 1 else None
    if value is None or not isinstance(dims, (list, tuple)) or node.kwargs:
        return None
    where = [dim % value.dim() for dim in dims]
    if any(value.shape[dim] != 1 for dim in where):
        return None
    keep = bool(node.args[2]) if len(node.args) > 2 else False
    return value if keep else value.reshape([size for dim, size in enumerate(value.shape) if dim not in where])


def _linear(state: Propagation, node: fx.Node) -> Known:
    """The bias, where the rows go."""
    return _produced(state, node, -1)


def _convolution(state: Propagation, node: fx.Node) -> Known:
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    spatial = weight.meta["val"].dim() - 2
    return _produced(state, node, node.meta["val"].dim() - spatial - 1)


def _produced(state: Propagation, node: fx.Node, dim: int) -> Known:
    weight = node.args[1]
    if state.parameter(weight) is None:
        return None
    bias = node.args[2] if len(node.args) > 2 else None
    if bias is None:
        return state.fixed(node, dim, 0.0)
    values = state.parameter(bias)
    return None if values is None else state.fixed(node, dim, values)


def _embedding(state: Propagation, node: fx.Node) -> Known:
    return state.fixed(node, -1, 0.0)


def _batch_norm(state: Propagation, node: fx.Node) -> Known:
    """The shift: what the norm gives for a channel that stands at its running mean."""
    bias = state.parameter(node.args[2])
    return state.fixed(node, 1, 0.0 if bias is None else bias)


def _attention(state: Propagation, node: fx.Node) -> Known:
    """Weights of a softmax sum up to one: values that are the same at all places come out as they are."""
    value = state.given(node.args[2])
    if value is None or value.shape[-2] != 1 or value.dim() != node.meta["val"].dim():
        return None
    if len(node.args) > 4 and node.args[4]:  # dropout
        return None
    return value if all(a in (1, b) for a, b in zip(value.shape[:-2], representative(node)[:-2], strict=True)) else None


def _select(state: Propagation, node: fx.Node) -> Known:
    """Rows chosen by data, of a value that is the same in all rows."""
    value = state.given(node.args[0])
    dim = node.args[1]
    return value if value is not None and isinstance(dim, int) and value.shape[dim] == 1 else None


def _scatter_add(state: Propagation, node: fx.Node) -> Known:
    """Zeros added anywhere change nothing."""
    into, source = state.given(node.args[0]), state.given(node.args[3])
    if into is None or source is None:
        return None
    dim = node.args[1]
    assert isinstance(dim, int)
    if source.shape[dim] != 1 or into.shape[dim] != 1:
        return None
    return into + torch.where(source == 0, 0.0, torch.nan)


def _fill(_: Propagation, node: fx.Node) -> Known:
    value = {aten.new_zeros.default: 0.0, aten.zeros.default: 0.0, aten.new_ones.default: 1.0, aten.ones.default: 1.0}
    return torch.full([1] * node.meta["val"].dim(), value[node.target], dtype=torch.float64)  # type: ignore[index]


_RULES: dict[Any, _Rule] = {
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
