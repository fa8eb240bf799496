"""Gives the weights that fused operators read the memory layout in which their kernels read them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx, nn

from exprune_fx.graph.edits import copy_graph_module, fresh_name, is_call, recompile, set_args, set_tensor, tensor_at
from exprune_fx.ops.native.fake_site import SQUARES
from exprune_fx.pass_manager import PassResult
from exprune_fx.staging import layout
from exprune_fx.staging.arguments import arguments_of, in_order

aten = torch.ops.aten
exprune = torch.ops.exprune

LARGE_BYTES = 2**19  # what is smaller stays in a cache from one call to the next


@dataclass(frozen=True)
class PackWeightsPass:
    """Rebinds weights to equal tensors in another memory layout: shapes and values are as before.

    A convolution's weight (and its head's second factor, or codes) becomes channels-last, a feed-forward's second
    weight is stored by its columns. A tensor that has its layout already is not copied, one that several nodes read is
    copied once; where two fused operators want one weight in two layouts, the later one gets a tensor of its own.

    The columns (channels) that the first stage of a large weight reads are stored once more in rows of their own: read
    in one stream, they cost half as much as short pieces of long rows. Not where the site has codes: these are such
    rows.

    Requires: the fused operators registered.
    Ensures: the same values; no tensor of the given graph is written to.
    Not valid after: nothing.

    Attributes:
        dense_convolutions: give dense two-dimensional convolutions channels-last weights too where staged ones are
            there, so that values do not change their layout between the two.
    """

    name: ClassVar[str] = "pack-weights"

    dense_convolutions: bool = True

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Rebinds what is not packed yet in a copy."""
        if all(wish.fulfilled(gm) for wish in self._wishes(gm)) and not any(map(_wants_head, gm.graph.nodes)):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        packed: dict[str, layout.Layout] = {}
        edits = 0
        for wish in list(self._wishes(result)):
            edits += _fulfil(result, wish, packed, self.name)
        for node in [node for node in result.graph.nodes if _wants_head(node)]:
            _pack_head(result, node, self.name)
            edits += 1
        recompile(result)
        return PassResult(result, changed=True, edits=edits)

    def _wishes(self, gm: fx.GraphModule) -> Iterator[_Wish]:
        """Those of fused operators first: they have precedence."""
        for node in gm.graph.nodes:
            yield from _fused_wishes(node)
        if not self.dense_convolutions or not any(
            is_call(n, exprune.staged_conv2d_relu.default) for n in gm.graph.nodes
        ):
            return
        for node in gm.graph.nodes:
            if is_call(node, aten.conv2d.default, aten.conv2d.padding) and _is_parameter(node.args[_DENSE_WEIGHT]):
                yield _Wish(node, _DENSE_WEIGHT, layout.CHANNELS_LAST, dense=True)


@dataclass(frozen=True, eq=False)
class _Wish:
    """A node that wants one of its arguments in a layout."""

    node: fx.Node
    index: int
    layout: layout.Layout
    dense: bool = False

    @property
    def source(self) -> fx.Node:
        """The parameter's node."""
        source = self.node.args[self.index]
        assert isinstance(source, fx.Node)
        return source

    def fulfilled(self, gm: fx.GraphModule) -> bool:
        """Whether the tensor has this layout already."""
        return self.layout.holds(tensor_at(gm, str(self.source.target)))


_FIRST = {"weight": layout.ROWS}
_SECOND = {"weight_out": layout.COLUMNS}
_WANTED = {
    "exprune::staged_conv2d_relu": dict.fromkeys(("weight", "up", "codes", "code_rest"), layout.CHANNELS_LAST),
    "exprune::staged_linear_relu": _FIRST,
    "exprune::staged_ffn": _FIRST | _SECOND,
    "exprune::staged_gated_ffn": _FIRST | {"weight_value": layout.ROWS} | _SECOND,
}
_DENSE_WEIGHT = 1  # which argument of a dense convolution


def _is_parameter(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _wanted(node: fx.Node) -> dict[str, layout.Layout]:
    """By argument, the layouts that a fused operator wants; nothing for other nodes."""
    return _WANTED.get(node.target._schema.name, {}) if isinstance(node.target, torch._ops.OpOverload) else {}


def _fused_wishes(node: fx.Node) -> Iterator[_Wish]:
    wanted = _wanted(node)
    given = arguments_of(node) if wanted else {}
    for index, (name, value) in enumerate(given.items()):
        if name in wanted and _is_parameter(value):
            yield _Wish(node, index, wanted[name])


def _fulfil(gm: fx.GraphModule, wish: _Wish, packed: dict[str, layout.Layout], made_by: str) -> int:
    """Rebinds one weight, or gives the node one of its own; returns how many tensors were made."""
    name = str(wish.source.target)
    if name in packed and packed[name] is not wish.layout:
        if wish.dense or wish.fulfilled(gm):
            return 0
        own = fresh_name(gm, f"exprune.{name.replace('.', '_')}.{wish.layout.name}")
        source = set_tensor(gm, own, wish.layout.packed(tensor_at(gm, name)))
        args = list(wish.node.args)
        args[wish.index] = source
        set_args(wish.node, tuple(args), made_by=made_by)
        return 1
    packed[name] = wish.layout
    if wish.fulfilled(gm):
        return 0
    old = tensor_at(gm, name)
    new: Tensor = wish.layout.packed(old)
    set_tensor(gm, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    return 1


def _wants_head(node: fx.Node) -> bool:
    """A prefix head over a weight that comes from memory and has no codes, of a rule that needs no squared terms."""
    if not _wanted(node):
        return False
    given = arguments_of(node)
    weight: Tensor = given["weight"].meta["val"]
    plain = given["guard"] not in SQUARES and bool(given["stages"]) and given["up"] is None and given["down"] is None
    plain &= given["codes"] is None
    return plain and _is_parameter(given["weight"]) and weight.numel() * weight.element_size() >= LARGE_BYTES


def _pack_head(gm: fx.GraphModule, node: fx.Node, made_by: str) -> None:
    given = arguments_of(node)
    name = str(given["weight"].target)
    columns = tensor_at(gm, name)[:, : given["stages"][0] * given.get("block", 1)]
    head = _wanted(node)["weight"].packed(columns)
    source = set_tensor(gm, fresh_name(gm, f"exprune.{name.replace('.', '_')}.head"), head)
    assert isinstance(node.target, torch._ops.OpOverload)
    set_args(node, in_order(node.target, {**given, "up": source}), made_by=made_by)
