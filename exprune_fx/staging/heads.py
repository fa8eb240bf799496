"""A prediction head's staged form: who cannot win any more, and the winners among the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.fx.node import Argument

from exprune_fx.graph.edits import fresh_name, insert_call, replace_node, set_tensor, tensor_at
from exprune_fx.ops.dominance import tables_of
from exprune_fx.plan import HeadPlan
from exprune_fx.sites import PredictionHead

aten = torch.ops.aten
exprune = torch.ops.exprune

HEAD_KEY = "exprune_head"  # meta of a staged head's nodes: its name
HEAD_ROLE_KEY = "exprune_head_role"  # "after" (int8: the stage that stopped a class), "finish"


def stage_head(
    gm: fx.GraphModule, head: PredictionHead, entry: HeadPlan, nodes: dict[str, fx.Node], made_by: str
) -> None:
    """Replaces a head's choice by its staged form, in place; the dense nodes are left without users.

    Args:
        gm: the graph module to edit, which nobody else holds.
        head: a head of it.
        entry: what was decided for it, with stages.
        nodes: by the names that heads know them by.
        made_by: the name of the pass that asks.
    """
    linear, result = nodes[head.node], nodes[head.result_node]
    given = linear.args[2] if len(linear.args) > 2 else linear.kwargs.get("bias")
    bias = given if isinstance(given, fx.Node) else None

    def call(target: torch._ops.OpOverload, *args: Argument) -> fx.Node:
        return insert_call(gm, target, args, like=linear, made_by=made_by, before=result)

    x = linear.args[0]
    for name in head.selections:
        x = call(nodes[name].target, x, *nodes[name].args[1:])  # type: ignore[arg-type] # an overload, as found
    read = (x, linear.args[1], bias)
    tables = _bound_tables(gm, head, entry, bias)
    stages, reach = list(entry.stages), list(entry.reach)
    after = call(exprune.guard_dominance.default, *read, *tables, stages, reach, head.winners)
    stopped = call(aten.lt.Scalar, after, len(stages))
    if head.choice == "argmax":
        finish = call(exprune.finish_argmax.default, *read, stopped)
        last = call(aten.unsqueeze.default, finish, -1) if head.keepdim else finish
    else:
        finish = last = call(exprune.finish_topk.default, *read, stopped, head.winners)
    for node, role in ((after, "after"), (finish, "finish")):
        node.meta[HEAD_KEY], node.meta[HEAD_ROLE_KEY] = head.name, role
    replace_node(gm, result, last)
    if head.choice == "topk":
        _redo_on_values(gm, head, finish, nodes, made_by)


def _bound_tables(
    gm: fx.GraphModule, head: PredictionHead, entry: HeadPlan, bias: fx.Node | None
) -> tuple[fx.Node | None, ...]:
    """The nodes of codes, numbers, center, basis and slack."""
    weight = tensor_at(gm, head.weight).detach()
    bias_value = None if bias is None else tensor_at(gm, str(bias.target)).detach()
    center = None if entry.center is None else entry.center.tensor().to(weight.device)
    basis = None if entry.basis is None else entry.basis.tensor().to(weight.device)
    tables = tables_of(weight, bias_value, entry.stages, center, basis)
    path = head.name.replace(".", "_").replace("#", "_")

    def bound(what: str) -> fx.Node | None:
        value = getattr(tables, what)
        return None if value is None else set_tensor(gm, fresh_name(gm, f"exprune.{path}.{what}"), value)

    return tuple(bound(what) for what in ("codes", "numbers", "center", "basis", "slack"))


def _redo_on_values(
    gm: fx.GraphModule, head: PredictionHead, finish: fx.Node, nodes: dict[str, fx.Node], made_by: str
) -> None:
    """What was done to all logits is done to the largest."""
    if not head.monotone:
        return
    for taken in [user for user in finish.users if user.args[1] == 0]:
        value: Any = taken
        readers = list(taken.users)
        for name in head.monotone:
            step = nodes[name]
            args = (value, *step.args[1:])
            value = insert_call(gm, step.target, args, dict(step.kwargs), like=step, made_by=made_by, after=value)  # type: ignore[arg-type] # an overload, as found
        for reader in readers:
            reader.replace_input_with(taken, value)
