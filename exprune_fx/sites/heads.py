"""Prediction heads: linear layers of whose outputs only the winner, or the k largest, are wanted."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import fx

from exprune_fx.sites.find import is_reduction

aten = torch.ops.aten

Choice = Literal["argmax", "topk"]
MOST_WINNERS = 64
_SOFTMAX = (aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default)
_CASTS = (aten.to.dtype, aten._to_copy.default)
_SCALINGS = (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar)
_SELECTIONS = (aten.select.int, aten.slice.Tensor)
_LARGEST_SCALE = 2.0**16  # beyond, and below its inverse, half precision overflows, or makes equal what differs


@dataclass(frozen=True)
class PredictionHead:
    """A linear layer of whose outputs only the largest are wanted.

    Attributes:
        name: module path of the layer, made unique as sites' are.
        node: name of its node.
        result_node: name of the node that chooses: ``argmax`` or ``topk``.
        choice: which of the two.
        winners: how many are wanted.
        keepdim: ``argmax`` keeps the axis of the classes.
        weight: the weight's parameter name.
        weight_shape: [classes, features].
        selections: names of the nodes between the two that select rows, in graph order.
        monotone: names of the nodes between the two that keep every row's order, in graph order.
    """

    name: str
    node: str
    result_node: str
    choice: Choice
    winners: int
    keepdim: bool
    weight: str
    weight_shape: tuple[int, ...]
    selections: tuple[str, ...] = ()
    monotone: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Wanted:
    """What a choosing node asks for; the axis is the last."""

    choice: Choice
    winners: int
    keepdim: bool = False
    values: bool = False


def _given(node: fx.Node, place: int, name: str, default: object) -> object:
    return node.args[place] if len(node.args) > place else node.kwargs.get(name, default)


def _rank(node: object) -> int:
    return int(node.meta["val"].dim()) if isinstance(node, fx.Node) else 0


def _is_last(node: object, dim: object) -> bool:
    return isinstance(dim, int) and dim in (-1, _rank(node) - 1)


def _wanted(node: fx.Node) -> _Wanted | None:
    if node.target == aten.argmax.default and _is_last(node.args[0], _given(node, 1, "dim", None)):
        return _Wanted("argmax", 1, keepdim=bool(_given(node, 2, "keepdim", False)))
    if node.target == aten.topk.default and _is_last(node.args[0], _given(node, 2, "dim", -1)):
        k, largest = _given(node, 1, "k", None), _given(node, 3, "largest", True)
        gets = all(user.target is operator.getitem for user in node.users)
        if isinstance(k, int) and 1 <= k <= MOST_WINNERS and largest is True and gets:
            return _Wanted("topk", k, values=any(user.args[1] == 0 for user in node.users))
    return None


def _is_softmax(node: fx.Node) -> bool:
    return node.target in _SOFTMAX and _is_last(node.args[0], node.args[1])


def _is_exact_cast(node: fx.Node) -> bool:
    """To a floating type that holds every number of the one before."""
    if node.target not in _CASTS or not isinstance(node.args[0], fx.Node):
        return False
    before, after = node.args[0].meta["val"].dtype, node.meta["val"].dtype
    return bool(after.is_floating_point and torch.promote_types(before, after) == after)


def _is_positive_scaling(node: fx.Node) -> bool:
    if node.target not in _SCALINGS or len(node.args) != 2 or node.kwargs:
        return False
    value, scale = node.args
    if not isinstance(value, fx.Node) or isinstance(scale, bool) or not isinstance(scale, int | float):
        return False
    same = node.meta["val"].dtype == value.meta["val"].dtype
    return same and math.isfinite(scale) and 1 / _LARGEST_SCALE <= scale <= _LARGEST_SCALE


def _is_selection(node: fx.Node) -> bool:
    """Whole rows of classes are taken, the first and only ones or a range."""
    if node.target not in _SELECTIONS:
        return False
    dim, rank = _given(node, 1, "dim", 0), _rank(node.args[0])
    return isinstance(dim, int) and dim % rank != rank - 1


@dataclass(frozen=True)
class _Path:
    """The way back from the choice to the layer."""

    linear: fx.Node
    selections: tuple[fx.Node, ...] = ()
    monotone: tuple[fx.Node, ...] = ()


def _walk_back(node: object, wanted: _Wanted) -> _Path | None:
    """The layer whose order ``node`` has, row by row; None unless every value on the way has this one use."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if is_reduction(node):
        return _Path(node) if node.target == aten.linear.default else None
    keeps_order = _is_exact_cast(node) or _is_positive_scaling(node)
    if not keeps_order and not _is_selection(node) and not (_is_softmax(node) and not wanted.values):
        return None
    found = _walk_back(node.args[0], wanted)
    if found is None:
        return None
    if _is_selection(node):
        return replace(found, selections=(*found.selections, node))
    return replace(found, monotone=(*found.monotone, node))


def find_heads(gm: fx.GraphModule) -> tuple[PredictionHead, ...]:
    """Every linear layer that only ``argmax(-1)``, or ``topk(k, -1)``, reads, in graph order.

    Between the two there may be what keeps the order of every row's entries: a softmax or log-softmax over the classes
    (unless the values of ``topk`` are read, which would need all of it), a cast to a wider type, multiplying with or
    dividing by a positive number; and what takes some of the rows whole. Two logits that differ by less than such an
    operation's rounding may come out equal of it: the layer itself is no more exact than that.

    Args:
        gm: a captured graph, normalised or not.
    """
    heads: list[PredictionHead] = []
    taken: dict[str, int] = {}
    for node in gm.graph.nodes:
        wanted = _wanted(node) if node.op == "call_function" else None
        path = _walk_back(node.args[0], wanted) if wanted else None
        if wanted is None or path is None:
            continue
        weight = path.linear.args[1]
        assert isinstance(weight, fx.Node)
        shape = tuple(int(size) for size in weight.meta["val"].shape)
        if not weight.meta["val"].dtype.is_floating_point or wanted.winners > shape[0]:
            continue
        module = str(path.linear.meta.get("module_path") or path.linear.name)
        taken[module] = taken.get(module, 0) + 1
        heads.append(
            PredictionHead(
                name=module if taken[module] == 1 else f"{module}#{taken[module]}",
                node=path.linear.name,
                result_node=node.name,
                choice=wanted.choice,
                winners=wanted.winners,
                keepdim=wanted.keepdim,
                weight=str(weight.target),
                weight_shape=shape,
                selections=tuple(each.name for each in path.selections),
                monotone=tuple(each.name for each in path.monotone),
            )
        )
    return tuple(heads)
