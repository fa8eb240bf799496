"""Gives large linear weights 8-bit codes, from which kernels prove which neurons stop or are zero."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import fx

from exprune_fx.graph.edits import (
    copy_graph_module,
    recompile,
    set_args,
    tensor_at,
)
from exprune_fx.ops.codes import Codes
from exprune_fx.ops.native.fake_site import ends_of_codes
from exprune_fx.pass_manager import PassResult
from exprune_fx.staging.arguments import arguments_of, in_order
from exprune_fx.staging.fewer_bits import codes_pay, hold_tables, may_have_codes, rows_of


@dataclass(frozen=True)
class CodeWeightsPass:
    """Adds to each fused linear operator whose weight comes from memory the codes of that weight (`ops.codes`).

    A kernel reads codes for few rows of input, and of the weight then only the rows that the codes do not decide.

    Requires: lowered sites, and the fused operators registered.
    Ensures: the same values to the last bit. A quarter of a float32 weight's bytes more are held, half of a 16-bit
    one's. Weights that are no parameters, or that are small, and calls known to have many rows are left alone.
    Not valid after: nothing; passes that rewrite weights come before.
    """

    name: ClassVar[str] = "code-weights"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Adds codes in a copy."""
        if not any(map(_pays, gm.graph.nodes)):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        nodes = [node for node in result.graph.nodes if _pays(node)]
        for node in nodes:
            _add_codes(result, node, self.name)
        recompile(result)
        return PassResult(result, changed=True, edits=len(nodes))


def _pays(node: fx.Node) -> bool:
    if not may_have_codes(node):
        return False
    given = arguments_of(node)
    weight = given["weight"]
    if given["codes"] is not None or weight.op != "get_attr":
        return False
    return codes_pay(weight.meta["val"], rows_of(given["x"].meta["val"]))


def _add_codes(gm: fx.GraphModule, node: fx.Node, made_by: str) -> None:
    given: dict[str, Any] = arguments_of(node)
    name = str(given["weight"].target)
    weight = tensor_at(gm, name)
    stages, block, guard = (given[key] for key in ("stages", "block", "guard"))
    made = Codes.of(weight, ends_of_codes(weight.shape[1], stages, block, guard, given["down"] is not None))
    tables = {"codes": made.codes, "code_numbers": made.numbers, "code_slack": made.slack}
    given |= hold_tables(gm, name, tables)
    assert isinstance(node.target, torch._ops.OpOverload)
    set_args(node, in_order(node.target, given), made_by=made_by)
