"""Writes nodes and tensors for one site, in front of its activation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from exprune_fx.graph.edits import fresh_name, insert_call, set_tensor, tensor_at
from exprune_fx.plan import SitePlan
from exprune_fx.sites import Site

SITE_KEY = "exprune_site"  # meta of a staged node: the site's name
ROLE_KEY = "exprune_role"  # "stopped" (bool, after a stage), "finish" (the activation), "gated" (its product), "fused"
STAGE_KEY = "exprune_stage"  # of a "stopped" node: the index of its stage
KEPT_KEY = "exprune_kept"  # of a "finish" node that was not lowered: why


@dataclass(frozen=True, eq=False)
class Emitter:
    """One site in a graph that is being edited.

    Attributes:
        gm: the graph module, which nobody else holds.
        site: the site.
        entry: what was decided for it, not dense.
        nodes: by the names that sites know them by.
        made_by: the name of the pass that asks.
    """

    gm: fx.GraphModule
    site: Site
    entry: SitePlan
    nodes: dict[str, fx.Node]
    made_by: str

    @property
    def reduction(self) -> fx.Node:
        """The dense linear layer or convolution."""
        return self.nodes[self.site.node]

    @property
    def x(self) -> Argument:
        """The reduction's input."""
        return self.reduction.args[0]

    @property
    def weight(self) -> Tensor:
        """The weight's value; only to be read."""
        return tensor_at(self.gm, self.site.weight).detach()

    @property
    def bias(self) -> fx.Node | None:
        """The bias's node."""
        given = self.reduction.args[2] if len(self.reduction.args) > 2 else self.reduction.kwargs.get("bias")
        return given if isinstance(given, fx.Node) else None

    @property
    def residual(self) -> fx.Node | None:
        """The node of what is added before the activation."""
        return self.nodes[self.site.residual] if self.site.residual else None

    @property
    def geometry(self) -> tuple[Argument, ...]:
        """Stride, padding, dilation and groups as an operator takes them; nothing for a linear layer."""
        geometry = self.site.geometry
        if geometry is None:
            return ()
        return (list(geometry.stride), list(geometry.padding), list(geometry.dilation), geometry.groups)

    def call(self, target: torch._ops.OpOverload, *args: Argument) -> fx.Node:
        """Inserts a call in front of the activation."""
        before = self.nodes[self.site.activation_node]
        return insert_call(self.gm, target, args, like=self.reduction, made_by=self.made_by, before=before)

    def call_by_kind(self, name: str, *args: Argument) -> fx.Node:
        """Inserts a call of ``exprune.<name>``, in which {} stands for "linear" or "conv"."""
        kind = "linear" if self.site.geometry is None else "conv"
        return self.call(getattr(torch.ops.exprune, name.format(kind)).default, *args)

    def bind(self, what: str, value: Tensor) -> fx.Node:
        """Gives the graph a tensor of this site's."""
        path = self.site.name.replace(".", "_").replace("#", "_")
        return set_tensor(self.gm, fresh_name(self.gm, f"exprune.{path}.{what}"), value)

    def bind_per_output(self, what: str, numbers: Tensor) -> fx.Node:
        """Gives the graph one number per output, shaped to stand against [N, out, *space] or [..., out]."""
        wide = torch.float64 if self.weight.dtype == torch.float64 else torch.float32
        shaped = numbers.to(device=self.weight.device, dtype=wide)
        return self.bind(what, shaped.reshape(-1, *[1] * self.site.spatial_dims))

    def mark(self, node: fx.Node, role: str) -> None:
        """Notes on a node which part of which site it is."""
        node.meta[SITE_KEY], node.meta[ROLE_KEY] = self.site.name, role
