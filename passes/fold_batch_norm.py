"""Fold a batch norm with fixed statistics into the convolution or linear before it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from exprune_fx.graph.edits import (
    CONSTANTS_KEY,
    copy_graph_module,
    fresh_name,
    insert_call,
    is_call,
    recompile,
    remove_dead,
    replace_node,
    set_tensor,
    tensor_at,
)
from exprune_fx.pass_manager import PassResult

_aten = torch.ops.aten
# Operator -> the position of its groups argument when it is transposed (weight: in, out / groups, *kernel), else None
# (weight: out, in / groups, *kernel).
_GROUPS_IF_TRANSPOSED: Mapping[Any, int | None] = MappingProxyType(
    {
        _aten.linear.default: None,
        _aten.conv1d.default: None,
        _aten.conv2d.default: None,
        _aten.conv3d.default: None,
        _aten.conv1d.padding: None,
        _aten.conv2d.padding: None,
        _aten.conv3d.padding: None,
        _aten.conv_transpose1d.default: 6,
        _aten.conv_transpose2d.input: 6,
        _aten.conv_transpose3d.input: 6,
    }
)


@dataclass(frozen=True)
class FoldBatchNormPass:
    """W' = s W and b' = s (b - mean) + beta with s = gamma / sqrt(var + eps), per output channel, computed in float64.

    Requires: a graph in the dialect. Ensures: no batch norm with fixed statistics directly follows a convolution or
    linear that nobody else reads; the folded weight and bias are new tensors (``<module>.folded_weight``), the model's
    own are neither written to nor rebound. Not valid after: a mapping from these weights back to the model's.

    Attributes:
        values_known: leave a batch norm whose folded weight is not finite. Without values, none is folded into float16,
            which alone is narrow enough for that.
        modules: fold into the convolutions and linear layers of these module paths only; None for all.
    """

    name: ClassVar[str] = "fold-batch-norm"

    values_known: bool = True
    modules: tuple[str, ...] | None = None

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Runs the pass."""
        result = copy_graph_module(gm)
        edits = 0
        for norm in list(result.graph.nodes):
            reduction = _match(result, norm)
            if reduction is None or not (self.modules is None or reduction.meta["module_path"] in self.modules):
                continue
            if _fold(result, norm, reduction, self.values_known):
                edits += 1
        if not edits:
            return PassResult(gm, changed=False, edits=0)
        remove_dead(result)
        return PassResult(recompile(result), changed=True, edits=edits)


def _match(gm: fx.GraphModule, norm: Node) -> Node | None:
    """The convolution or linear into which `norm` can be folded."""
    if not is_call(norm, _aten.batch_norm.default) or norm.args[5] is not False:
        return None  # statistics of the batch itself
    reduction = norm.args[0]
    if not isinstance(reduction, Node) or not is_call(reduction, *_GROUPS_IF_TRANSPOSED) or len(reduction.users) != 1:
        return None
    weight, bias = reduction.args[1], _argument(reduction, 2)
    mean, var = norm.args[3:5]
    if not all(_is_state(gm, n) for n in (weight, mean, var)):
        return None
    if not all(n is None or _is_state(gm, n) for n in (bias, norm.args[1], norm.args[2])):
        return None
    out, kernel = reduction.meta["val"], cast(Node, weight).meta["val"]
    # Without a batch dimension, or with a sequence in a linear, dimension 1 is not the output channel.
    same_rank = out.dim() == kernel.dim()
    same_dtype = out.dtype == kernel.dtype == norm.meta["val"].dtype and out.dtype.is_floating_point
    return reduction if same_rank and same_dtype else None


def _argument(node: Node, position: int) -> object:
    """An optional positional argument; the bias may also be given by keyword."""
    return node.args[position] if len(node.args) > position else node.kwargs.get("bias")


def _is_state(gm: fx.GraphModule, node: object) -> bool:
    """A parameter or persistent buffer; constants stay apart, because the symmetry analysis pins them."""
    return isinstance(node, Node) and node.op == "get_attr" and node.target not in gm.meta.get(CONSTANTS_KEY, ())


def _fold(gm: fx.GraphModule, norm: Node, reduction: Node, values_known: bool) -> bool:
    weight_node = cast(Node, reduction.args[1])
    prefix = str(weight_node.target).rpartition(".")[0]
    weight = tensor_at(gm, str(weight_node.target))
    if not values_known and weight.dtype == torch.float16:
        return False
    folded = _folded(gm, norm, reduction, weight)
    if values_known and not all(bool(t.isfinite().all()) for t in folded):
        return False  # a narrow dtype cannot hold the product
    nodes = []
    for kind, tensor in zip(("weight", "bias"), folded, strict=True):
        name = fresh_name(gm, f"{prefix}.folded_{kind}" if prefix else f"folded_{kind}")
        node = set_tensor(gm, name, nn.Parameter(tensor, requires_grad=weight.requires_grad))
        node.meta.update(made_by=FoldBatchNormPass.name, made_from=weight_node.name)
        nodes.append(node)
    args = (reduction.args[0], *nodes, *reduction.args[3:])
    kwargs = {key: value for key, value in reduction.kwargs.items() if key != "bias"}
    target = cast(Any, reduction.target)
    new = insert_call(gm, target, args, kwargs, like=reduction, made_by=FoldBatchNormPass.name, before=norm)
    replace_node(gm, norm, new)
    return True


@torch.no_grad()
def _folded(gm: fx.GraphModule, norm: Node, reduction: Node, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The new weight and bias, in the old weight's dtype."""
    _, gamma, beta, mean, var, _, _, eps, _ = norm.args
    scale = (_float64(gm, var) + cast(float, eps)).rsqrt()
    if gamma is not None:
        scale = scale * _float64(gm, gamma)
    bias = _argument(reduction, 2)
    shift = -scale * _float64(gm, mean) if bias is None else scale * (_float64(gm, bias) - _float64(gm, mean))
    if beta is not None:
        shift = shift + _float64(gm, beta)
    position = _GROUPS_IF_TRANSPOSED[reduction.target]
    kernel_ones = [1] * (weight.dim() - 2)
    if position is None:
        new = weight.double() * scale.view(-1, 1, *kernel_ones)
    else:
        groups = cast(int, reduction.args[position]) if len(reduction.args) > position else 1
        per_group = weight.double().unflatten(0, (groups, -1))  # groups, in / groups, out / groups, *kernel
        new = (per_group * scale.view(groups, 1, -1, *kernel_ones)).flatten(0, 1)
    return new.to(weight.dtype), shift.to(weight.dtype)


def _float64(gm: fx.GraphModule, node: object) -> Tensor:
    return tensor_at(gm, str(cast(Node, node).target)).double()
