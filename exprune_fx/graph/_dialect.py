"""From torch.export's unlifted graph to the dialect: one spelling for each thing, and nothing that computes nothing."""

from __future__ import annotations

import operator
import re
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, fx
from torch.fx.node import Node

from exprune_fx.errors import CaptureError
from exprune_fx.graph._module import ALIASES_KEY, CONSTANTS_KEY, assemble

_aten = torch.ops.aten
_KEPT_META = ("val", "nn_module_stack", "stack_trace", "custom")
_ASSERTS = re.compile(r"aten\.(_assert\w*|_functional_assert\w*|sym_constrain_range\w*|_functional_sym_constrain\w*)$")


def to_dialect(graph: fx.Graph, tensors: Mapping[str, Tensor], constants: Collection[str]) -> fx.GraphModule:
    """Cleans `graph` in place (capture owns it) and wraps it in a GraphModule.

    Args:
        graph: what ``ExportedProgram.module()`` made, its parameters as get_attr.
        tensors: every tensor of the program by name; the first name of a shared tensor is kept.
        constants: the names of lifted constants and non-persistent buffers.

    Raises:
        CaptureError: a node is of a kind that the dialect does not have.
    """
    _check_kinds(graph)
    aliases = _one_node_per_tensor(graph, tensors)
    for node in graph.nodes:
        node.meta = {key: node.meta[key] for key in _KEPT_META if key in node.meta} | {"module_path": module_path(node)}
    _drop_asserts(graph)
    _restore_batch_norm(graph)
    for node in reversed(list(graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            graph.erase_node(node)
    graph._tracer_cls = None  # torch.export's tracer cannot be made anew, which unpickling would try
    used = {str(n.target) for n in graph.nodes if n.op == "get_attr"}
    meta = {
        CONSTANTS_KEY: frozenset(used & set(constants)),
        ALIASES_KEY: {alias: kept for alias, kept in aliases.items() if kept in used},
    }
    return assemble(graph, tensors, meta[CONSTANTS_KEY], meta)


def module_path(node: Node) -> str:
    """The path of the module that made `node`: "" is the root, a parameter belongs to the module that holds it."""
    if node.op == "get_attr":
        return str(node.target).rpartition(".")[0]
    stack = node.meta.get("nn_module_stack") or {}
    for path, kind in reversed(list(stack.values())):
        if "_empty_nn_module_stack" in str(path) or "_empty_nn_module_stack" in str(kind):
            continue
        clean = re.sub(r"^L(\['self'\]|__self__)\.?", "", str(path))
        clean = re.sub(r"@\d+", "", clean)  # "@1" marks a module's second call
        return re.sub(r"\[['\"]?(\w+)['\"]?\]", r".\1", clean).strip(".")
    return ""


def _check_kinds(graph: fx.Graph) -> None:
    for node in graph.nodes:
        if node.op == "call_function" and isinstance(node.target, torch._ops.HigherOrderOperator):
            raise CaptureError(
                f"{node.name} in module {module_path(node)!r} is the higher-order operator {node.target}",
                hint="torch.cond, scan and the like are not supported; capture the part without it",
            )
        if node.op not in ("placeholder", "get_attr", "call_function", "output"):
            raise CaptureError(f"{node.name} is a {node.op} node, which the dialect does not have")


def _one_node_per_tensor(graph: fx.Graph, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    kept: dict[int, str] = {}
    for name, tensor in tensors.items():
        kept.setdefault(id(tensor), name)
    aliases = {name: kept[id(tensor)] for name, tensor in tensors.items() if kept[id(tensor)] != name}
    first: dict[str, Node] = {}
    for node in list(graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in tensors:
            raise CaptureError(f"{node.target!r} is not a tensor", hint="the model may hold only tensors as state")
        node.target = aliases.get(str(node.target), node.target)
        if node.target in first:
            node.replace_all_uses_with(first[node.target])
            graph.erase_node(node)
        else:
            first[node.target] = node
    return aliases


def _drop_asserts(graph: fx.Graph) -> None:
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and _ASSERTS.search(str(node.target).rpartition(".")[0]):
            if node.users:  # the _functional_ forms return a token that only other asserts read
                continue
            graph.erase_node(node)


def _restore_batch_norm(graph: fx.Graph) -> None:
    """``_native_batch_norm_legit_no_training(...)[0]`` -> ``batch_norm(..., training=False, ...)``."""
    for node in list(graph.nodes):
        if node.target is not _aten._native_batch_norm_legit_no_training.default:
            continue
        if not all(u.target is operator.getitem and (u.args[1] == 0 or not u.users) for u in node.users):
            continue
        x, weight, bias, mean, var, momentum, eps = node.args
        for user in list(node.users):
            if user.args[1] != 0:
                graph.erase_node(user)
                continue
            with graph.inserting_before(node):
                args = (x, weight, bias, mean, var, False, momentum, eps, False)
                whole = graph.create_node("call_function", _aten.batch_norm.default, args, name="batch_norm")
            whole.meta = dict(user.meta)
            user.replace_all_uses_with(whole)
            graph.erase_node(user)
