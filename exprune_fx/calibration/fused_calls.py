"""What a lowered site calls, with its weights, ready to be timed on the site's values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.graph.edits import tensor_at
from exprune_fx.sites.site import Activation
from exprune_fx.staging import ROLE_KEY, SITE_KEY
from exprune_fx.staging.arguments import arguments_of


@dataclass(frozen=True, eq=False)
class FusedCall:
    """One fused operator of a lowered graph.

    Attributes:
        operator: its name, without the namespace.
        target: the operator.
        arguments: by the schema's names, weights as tensors; x and the residual are None.
        has_residual: something is added before the activation.
    """

    operator: str
    target: Callable[..., Tensor]
    arguments: Mapping[str, Any]
    has_residual: bool

    @property
    def activation(self) -> Activation:
        """What the pre-activation meets."""
        activation: Activation = self.arguments["activation"]
        return activation

    def __call__(self, x: Tensor, residual: Tensor | None) -> Tensor:
        """The operator on a site's input."""
        given: dict[str, Any] = {**self.arguments, "x": x}
        if self.has_residual:
            given["residual"] = residual
        return self.target(*given.values())


def fused_calls(gm: fx.GraphModule) -> dict[str, FusedCall]:
    """The fused operators of a lowered graph, by the name of their site."""
    return {node.meta[SITE_KEY]: _call_of(gm, node) for node in gm.graph.nodes if node.meta.get(ROLE_KEY) == "fused"}


def _call_of(gm: fx.GraphModule, node: fx.Node) -> FusedCall:
    assert isinstance(node.target, torch._ops.OpOverload)
    operator = node.target._schema.name.partition("::")[2]
    arguments = arguments_of(node)
    has_residual = arguments.get("residual") is not None
    if arguments.get("pools"):  # as the dense forms beside it: without
        arguments["pools"] = False
    for name, value in arguments.items():
        if isinstance(value, fx.Node):
            activation = name in ("x", "residual")
            arguments[name] = None if activation else tensor_at(gm, str(value.target)).detach()
    return FusedCall(operator, node.target, arguments, has_residual)
