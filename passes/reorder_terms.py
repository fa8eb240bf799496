"""Puts the members of symmetry groups into another order, so that the first terms of a reduction say the most."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import fx

from exprune_fx.errors import PlanError
from exprune_fx.graph.edits import copy_graph_module
from exprune_fx.pass_manager import PassResult
from exprune_fx.symmetry import GroupElement, symmetries


@dataclass(frozen=True)
class ReorderTermsPass:
    """Permutes free groups: new position i holds the old member ``orders[group][i]``.

    Requires: a captured graph in which every named group is free and has no repeats.
    Ensures: the same function, to rounding; the same nodes; new tensors (those given are not written to).
    Not valid after: nothing. The pass is its own kind of idempotent: the orders that were applied are remembered in
    ``gm.meta["exprune_orders"]``, and a second run with the same orders changes nothing.

    Raises:
        PlanError: a group is missing, is not free, or has another size.
    """

    name: ClassVar[str] = "reorder-terms"

    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Applies every order to a copy."""
        done: dict[str, tuple[int, ...]] = dict(gm.meta.get("exprune_orders", {}))
        due = {name: tuple(order) for name, order in self.orders.items() if done.get(name) != tuple(order)}
        if not due:
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        groups = {group.name: group for group in symmetries(result)}
        for name, order in due.items():
            group = groups.get(name)
            if group is None or not group.free or group.repeats != 1 or sorted(order) != list(range(group.size)):
                found = "no such group" if group is None else f"size {group.size}, free: {group.free}"
                raise PlanError(
                    f"{self.name}: cannot order group {name!r} by {len(order)} members ({found})",
                    hint="give the plan that was made for this model",
                )
            group.apply_(result, _element(name, order))
        result.meta["exprune_orders"] = {**done, **due}
        return PassResult(result, changed=True, edits=len(due))


def _element(group: str, order: tuple[int, ...]) -> GroupElement:
    """The element that brings old member ``order[i]`` to position i."""
    return GroupElement(group, torch.argsort(torch.tensor(order)).unsqueeze(0))
