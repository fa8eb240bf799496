"""The way from a captured graph and a plan to a staged graph: what loading goes, and saving goes once to check."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, fx, nn

from exprune_fx.graph import copy_graph_module, python_text, tensor_at, tensor_names
from exprune_fx.graph.edits import recompile, set_tensor
from exprune_fx.passes.drop_no_ops import DropNoOpsPass
from exprune_fx.pipeline import readable_form, transform
from exprune_fx.plan import Plan


def replayed(captured: fx.GraphModule, plan: Plan, *, lowered: bool, fused: bool) -> fx.GraphModule:
    """What ``transform`` makes of the graph; its readable form unless ``fused``."""
    staged = transform(captured, plan, lower=lowered)
    return staged if fused else readable_form(staged)


def bound(gm: fx.GraphModule, tensors: Mapping[str, Tensor]) -> fx.GraphModule:
    """A copy of the graph with these tensors in the place of its own."""
    result = copy_graph_module(gm)
    for name in set(tensor_names(gm)) & tensors.keys():
        set_tensor(result, name, as_replacement(tensors[name], tensor_at(gm, name)))
    return recompile(result)


def as_replacement(new: Tensor, old: Tensor) -> Tensor:
    """The new tensor on the old one's device, and a parameter if the old one is."""
    moved = new.detach().to(old.device)
    return nn.Parameter(moved, old.requires_grad) if isinstance(old, nn.Parameter) else moved


def graph_text(captured: fx.GraphModule) -> str:
    """The text that tells two models apart: without no-ops, which torch leaves or not by how sizes were given."""
    return python_text(DropNoOpsPass()(captured).graph_module)


def shown(tensor: Tensor) -> str:
    """Dtype and shape, for messages."""
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def shortened(items: list[str], separator: str = "\n    ", most: int = 12) -> str:
    """The first items, and how many more there are."""
    more = f"{separator}and {len(items) - most} more" if len(items) > most else ""
    return separator.join(items[:most]) + more
