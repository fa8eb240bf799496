"""Rewrites planned prediction heads into their readable staged form: guard, finish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import fx

from exprune_fx.errors import PlanError
from exprune_fx.graph.edits import copy_graph_module, recompile, remove_dead
from exprune_fx.pass_manager import PassResult
from exprune_fx.plan import HeadPlan
from exprune_fx.sites import PredictionHead, find_heads
from exprune_fx.staging.heads import HEAD_KEY, stage_head


@dataclass(frozen=True)
class StageHeadsPass:
    """Splits each planned prediction head: who cannot win any more, and the winners among the others.

    Requires: nothing.
    Ensures: each planned head's ``argmax`` or ``topk`` is a ``finish_*`` node, which gives the dense one's result where
    the guard is sound; heads that the plan leaves dense, or does not name, and all else, are as before.
    Not valid after: nothing.

    Attributes:
        entries: of a plan.

    Raises:
        PlanError: an entry does not fit the graph's heads.
    """

    name: ClassVar[str] = "stage-heads"

    entries: tuple[HeadPlan, ...] = ()

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Stages every planned head of a copy."""
        done = {node.meta[HEAD_KEY] for node in gm.graph.nodes if HEAD_KEY in node.meta}
        due = [entry for entry in self.entries if entry.is_staged and entry.head not in done]
        if not due:
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        heads = {head.name: head for head in find_heads(result)}
        nodes = {node.name: node for node in result.graph.nodes}
        for entry in due:
            stage_head(result, _fitting(entry, heads, self.name), entry, nodes, self.name)
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=len(due))


def _fitting(entry: HeadPlan, heads: dict[str, PredictionHead], pass_name: str) -> PredictionHead:
    at = f"{pass_name}: head {entry.head!r}"
    head = heads.get(entry.head)
    if head is None:
        raise PlanError(
            f"{at} is in the plan, not in the graph, whose heads are {', '.join(map(repr, heads)) or 'none'}",
            hint="give the plan that was made for this model",
        )
    if (head.weight_shape, head.winners) != (entry.weight_shape, entry.winners):
        raise PlanError(
            f"{at} has weight {list(head.weight_shape)} and {head.winners} winners, the plan was made for "
            f"{list(entry.weight_shape)} and {entry.winners}",
            hint="give the plan that was made for this model",
        )
    return head
