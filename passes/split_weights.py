"""Gives large float32 weights that few rows of input meet 16 bits beside their codes: 24 are read in place of 32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import is_fake

from exprune_fx.graph.edits import (
    copy_graph_module,
    recompile,
    set_args,
    tensor_at,
)
from exprune_fx.ops.native.fake_site import SQUARES, ends_of_codes
from exprune_fx.ops.split import rest_by_segments, split_of, splits_well
from exprune_fx.pass_manager import PassResult
from exprune_fx.staging.arguments import arguments_of, in_order
from exprune_fx.staging.fewer_bits import hold_tables, may_have_codes, rows_of, split_pays

_REST, _OUT = "code_rest", ("out_codes", "out_scales", "out_rest")


@dataclass(frozen=True)
class SplitWeightsPass:
    """Completes the codes of weights to 24 bits (`ops.split`), and splits the second weights of feed-forward blocks.

    A kernel then reads three bytes of a weight where it would read four, or two where it has read the codes.

    Requires: codes (code-weights), second weights joined with their sites (fuse-feed-forward), and the fused operators
        registered.
    Ensures: values to the rounding of float32 sums. Only float32 weights of calls that are known to have few rows
        (`codes.MOST_ROWS`) are split: how many others stand beside a row never decides what is computed for it. Half of
        a first weight's bytes more are held, three quarters of a second one's. Left alone: weights that are no
        parameters, that are small, or that 24 bits do not hold well, and sites of rules that read squared terms.
    Not valid after: nothing; passes that rewrite weights come before.
    """

    name: ClassVar[str] = "split-weights"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Adds the tables in a copy."""
        wishes = [(node, wish) for node in gm.graph.nodes if (wish := _wishes(gm, node))]
        if not wishes:
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        nodes = {node.name: node for node in result.graph.nodes}
        for node, wish in wishes:
            _split(result, nodes[node.name], wish, self.name)
        recompile(result)
        return PassResult(result, changed=True, edits=len(wishes))


def _wishes(gm: fx.GraphModule, node: fx.Node) -> tuple[str, ...]:
    """Which weights of a call are to be split: "weight", "weight_out"."""
    if not may_have_codes(node):
        return ()
    given: dict[str, Any] = arguments_of(node)
    rows = rows_of(given["x"].meta["val"])
    wanted = []
    if given["codes"] is not None and given[_REST] is None and given["guard"] not in SQUARES:
        wanted.append("weight")
    if given.get("weight_out") is not None and given[_OUT[0]] is None:
        wanted.append("weight_out")
    return tuple(name for name in wanted if split_pays(given[name].meta["val"], rows) and _holds(gm, name, given[name]))


def _holds(gm: fx.GraphModule, name: str, source: fx.Node) -> bool:
    if source.op != "get_attr":
        return False
    weight = tensor_at(gm, str(source.target))
    return is_fake(weight) or splits_well(weight.T if name == "weight_out" else weight)


def _split(gm: fx.GraphModule, node: fx.Node, wish: tuple[str, ...], made_by: str) -> None:
    given: dict[str, Any] = arguments_of(node)
    for name in wish:
        target = str(given[name].target)
        weight = tensor_at(gm, target)
        given |= hold_tables(gm, target, _rest(gm, given, weight) if name == "weight" else _out(weight))
    assert isinstance(node.target, torch._ops.OpOverload)
    set_args(node, in_order(node.target, given), made_by=made_by)


def _rest(gm: fx.GraphModule, given: dict[str, Any], weight: Tensor) -> dict[str, Tensor]:
    """The rest of a weight, laid out as its codes: segment by segment [out, columns]."""
    codes, numbers = (tensor_at(gm, str(given[key].target)) for key in ("codes", "code_numbers"))
    ends = ends_of_codes(weight.shape[1], given["stages"], given["block"], given["guard"], given["down"] is not None)
    return {_REST: rest_by_segments(weight, codes, numbers[0], ends)}


def _out(weight: Tensor) -> dict[str, Tensor]:
    """A second weight [out, hidden], by hidden units."""
    made = split_of(weight.T)
    return dict(zip(_OUT, (made.codes, made.scales, made.rest), strict=True))
