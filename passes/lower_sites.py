"""Replaces the readable nodes of staged sites by fused operators with a native kernel."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, fx

from exprune_fx.graph.edits import (
    copy_graph_module,
    fresh_name,
    insert_call,
    recompile,
    remove_dead,
    replace_node,
    set_tensor,
    tensor_at,
)
from exprune_fx.ops.coded import numbers_of
from exprune_fx.ops.native.fake_coded import MOST_CODED_RIVALS
from exprune_fx.ops.native.fake_site import MOST_RIVALS
from exprune_fx.ops.split import rest_of
from exprune_fx.pass_manager import PassResult
from exprune_fx.staging import KEPT_KEY, ROLE_KEY, SITE_KEY
from exprune_fx.staging.arguments import in_order
from exprune_fx.staging.holding import obstacle_in_tensors
from exprune_fx.staging.readable import UNKNOWN, ReadableSite, read_site

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LowerSitesPass:
    """Replaces each staged site's head, guards and finish by one fused operator.

    Requires: staged sites, and the fused operators registered; no `aten.view` behind a staged convolution (see
    reshape-views), since a fused convolution gives channels-last.
    Ensures: the same stops but for pre-activations within rounding of a threshold, and the same values to rounding. A
    site that no kernel holds stays readable; its finish node's ``meta["exprune_kept"]`` says why, and the log once.
    Not valid after: skip-gated-rows and whatever else looks for ``finish_*`` nodes has nothing to find.
    """

    name: ClassVar[str] = "lower-sites"

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Lowers every site of a copy that a kernel holds."""
        if not any(_is_due(node) for node in gm.graph.nodes):
            return PassResult(gm, changed=False, edits=0)
        result = copy_graph_module(gm)
        edits = 0
        for node in [node for node in result.graph.nodes if _is_due(node)]:
            site = read_site(node)
            reason = UNKNOWN if site is None else obstacle(site)
            if site is None or reason:
                node.meta[KEPT_KEY] = reason
                _log.info("site %r stays in its readable form: %s", node.meta[SITE_KEY], reason)
                continue
            _lower(result, site, self.name)
            edits += 1
        remove_dead(result)
        recompile(result)
        return PassResult(result, changed=True, edits=edits)


def _is_due(node: fx.Node) -> bool:
    return node.meta.get(ROLE_KEY) == "finish" and KEPT_KEY not in node.meta


def obstacle(site: ReadableSite) -> str:
    """Why no kernel holds this site; "" if one does."""
    others = (site.x, site.bias, site.residual, site.down, site.up)
    if reason := obstacle_in_tensors(site.weight, *others):
        return reason
    if site.is_linear:
        return ""
    dimensions = site.weight.meta["val"].dim() - 2
    if dimensions != 2:
        return f"no kernel convolves in {dimensions} dimensions"
    if (rivals := math.prod(site.window)) > (MOST_RIVALS if site.codes is None else MOST_CODED_RIVALS):
        return f"no kernel holds windows of {rivals} rivals" + ("" if site.codes is None else " behind a coded head")
    return "" if site.geometry[3] == 1 else "its convolution is grouped"


def _lower(gm: fx.GraphModule, site: ReadableSite, made_by: str) -> None:
    operators = torch.ops.exprune
    target = (operators.staged_linear_relu if site.is_linear else operators.staged_conv2d_relu).default
    walk = dict(zip(("stride", "padding", "dilation", "groups"), site.geometry, strict=not site.is_linear))
    lists = {"stages": list(site.stages), "window": list(site.window) or None}
    given = {**vars(site), **walk, **lists, "pools": False, "limits": _limits(gm, site), **_code_tables(gm, site)}
    made = insert_call(gm, target, in_order(target, given), like=site.finish, made_by=made_by, before=site.finish)
    made.meta[SITE_KEY], made.meta[ROLE_KEY] = site.finish.meta[SITE_KEY], "fused"
    replace_node(gm, site.finish, made)


def _limits(gm: fx.GraphModule, site: ReadableSite) -> fx.Node | None:
    """The numbers per output of all stages in one float32 tensor: [stages, out], or [stages, 2, out] of two a stage."""
    if not site.limits:
        return None
    rows = [
        torch.stack([tensor_at(gm, str(node.target)).detach().reshape(-1).float() for node in row])
        for row in site.limits
    ]
    table = torch.stack(rows)
    if table.shape[1] == 1:
        table = table.squeeze(1)
    return _table(gm, site, "limits", table)


def _code_tables(gm: fx.GraphModule, site: ReadableSite) -> dict[str, fx.Node]:
    """What a kernel reads beside the codes of a coded head; of a float32 weight also what it reads in its place."""
    if site.codes is None or site.scales is None:
        return {}
    codes, scales = (tensor_at(gm, str(node.target)) for node in (site.codes, site.scales))
    made = {"code_numbers": numbers_of(codes, scales)}
    if site.weight.op == "get_attr" and site.weight.meta["val"].dtype == torch.float32:
        made["code_rest"] = rest_of(tensor_at(gm, str(site.weight.target)).detach(), codes, scales)
    return {name: _table(gm, site, name, table) for name, table in made.items()}


def _table(gm: fx.GraphModule, site: ReadableSite, what: str, table: Tensor) -> fx.Node:
    path = site.finish.meta[SITE_KEY].replace(".", "_").replace("#", "_")
    return set_tensor(gm, fresh_name(gm, f"exprune.{path}.{what}"), table)
