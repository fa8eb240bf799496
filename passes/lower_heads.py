"""Replaces the readable nodes of staged prediction heads by fused operators with a native kernel."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import fx

from exprune_fx.graph.edits import (
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
from exprune_fx.ops.dominance import in_one_row
from exprune_fx.pass_manager import PassResult
from exprune_fx.staging import KEPT_KEY, ROLE_KEY, SITE_KEY
from exprune_fx.staging.heads import HEAD_KEY, HEAD_ROLE_KEY
from exprune_fx.staging.holding import obstacle_in_tensors

_log = logging.getLogger(__name__)
aten = torch.ops.aten
exprune = torch.ops.exprune


@dataclass(frozen=True)
class LowerHeadsPass:
    """Replaces each staged prediction head's guard and finish by one fused operator.

    Requires: the fused operators registered.
    Ensures: the same winners but for logits within rounding of one another (the operators sum in another order than a
    dense layer); the first of equal logits, among the winners of ``topk`` too. A head that no kernel holds stays
    readable; its finish node's ``meta["exprune_kept"]`` says why, and the log once.
    Not valid after: nothing.
    """

    name: ClassVar[str] = "lower-heads"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Lowers every head of a copy that a kernel holds."""
        if not any(_is_due(node) for node in gm.graph.nodes):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        edits = 0
        for node in [node for node in result.graph.nodes if _is_due(node)]:
            guard = _guard_of(node)
            reason = "its staged nodes are not the ones that staging writes" if guard is None else _obstacle(node)
            if guard is None or reason:
                node.meta[KEPT_KEY] = reason
                _log.info("head %r stays in its readable form: %s", node.meta[HEAD_KEY], reason)
                continue
            _lower(result, node, guard, self.name)
            edits += 1
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=edits)


def _is_due(node: fx.Node) -> bool:
    return node.meta.get(HEAD_ROLE_KEY) == "finish" and KEPT_KEY not in node.meta


def _guard_of(finish: fx.Node) -> fx.Node | None:
    """The guard that looks at what this node finishes, and at nothing else."""
    x, weight, bias, stopped, *k = finish.args
    if not is_call(stopped, aten.lt.Scalar) or not isinstance(stopped, fx.Node):
        return None
    guard, stages = stopped.args
    if not is_call(guard, exprune.guard_dominance.default) or not isinstance(guard, fx.Node):
        return None
    winners = k[0] if k else 1
    same = guard.args[:3] == (x, weight, bias) and guard.args[-1] == winners
    codes = guard.args[3]
    constant = isinstance(codes, fx.Node) and codes.op == "get_attr"
    return guard if same and constant and stages == len(guard.args[8]) else None  # type: ignore[arg-type] # a list


def _obstacle(finish: fx.Node) -> str:
    x, weight, bias = finish.args[:3]
    assert isinstance(weight, fx.Node)
    return obstacle_in_tensors(weight, x, bias)


def _lower(gm: fx.GraphModule, finish: fx.Node, guard: fx.Node, made_by: str) -> None:
    codes, stages = guard.args[3], guard.args[8]
    assert isinstance(codes, fx.Node)
    assert isinstance(stages, list)
    name = str(codes.target)
    row = set_tensor(gm, fresh_name(gm, f"{name}_in_one_row"), in_one_row(tensor_at(gm, name), stages))
    args = (*guard.args[:3], row, *guard.args[4:10])
    chooses_one = is_call(finish, exprune.finish_argmax.default)
    target = (exprune.staged_argmax if chooses_one else exprune.staged_topk).default
    more = () if chooses_one else guard.args[10:]
    made = insert_call(gm, target, (*args, *more), like=finish, made_by=made_by, before=finish)
    made.meta[SITE_KEY], made.meta[ROLE_KEY] = finish.meta[HEAD_KEY], "fused"
    made.meta[HEAD_KEY] = finish.meta[HEAD_KEY]
    replace_node(gm, finish, made)
