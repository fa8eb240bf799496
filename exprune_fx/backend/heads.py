"""The prediction heads of a plan in one of Dynamo's graphs."""

from __future__ import annotations

from dataclasses import replace

from torch import fx

from exprune_fx.backend import once
from exprune_fx.backend.options import Options
from exprune_fx.plan import HeadPlan
from exprune_fx.sites import find_heads


def heads_for_graph(options: Options, dense: fx.GraphModule) -> tuple[HeadPlan, ...]:
    """The entries of the options' plan for the heads of one graph, under the graph's own names.

    A graph may be a part of the model, or hold it as a part: a head is taken for the planned one whose name ends as its
    own does, or the other way round, if shape and winners are the same and there is no second.
    """
    planned = () if options.plan is None else options.plan.staged_heads
    if not planned:
        return ()
    if not options.freeze:
        names = ", ".join(entry.head for entry in planned)
        once.inform(f"prediction heads {names} stay dense: their codes are made once, which option freeze=True allows")
        return ()
    found = []
    for head in find_heads(dense):
        key = (head.weight_shape, head.winners)
        fitting = [
            each for each in planned if (each.weight_shape, each.winners) == key and _alike(each.head, head.name)
        ]
        if len(fitting) == 1:
            found.append(replace(fitting[0], head=head.name))
    return tuple(found)


def _alike(a: str, b: str) -> bool:
    return a == b or a.endswith(f".{b}") or b.endswith(f".{a}")
