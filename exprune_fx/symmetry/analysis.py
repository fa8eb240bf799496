"""Run the axis rules over a graph: which axes are tied, which are pinned and why."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from exprune_fx.errors import SymmetryError
from exprune_fx.symmetry.families import settle_families
from exprune_fx.symmetry.layouts import Axes, as_size
from exprune_fx.symmetry.rules import RULES
from exprune_fx.symmetry.rules.table import Context, State
from exprune_fx.symmetry.unify import Unifier


@dataclass(frozen=True)
class Analysis:
    """Axes of every value of one graph.

    Attributes:
        unifier: what the atoms stand for, and which are pinned.
        axes: node name -> layouts of its dims (a list of those for several results).
        parameters: get_attr target -> layouts of its dims, for parameters and persistent buffers, in graph order.
        shapes: get_attr target -> static shape.
        state: events of the ops.
        fingerprint: identifies the graph and the shapes of its parameters.
    """

    unifier: Unifier
    axes: Mapping[str, Any]
    parameters: Mapping[str, Axes]
    shapes: Mapping[str, tuple[int, ...]]
    state: State
    fingerprint: str

    def values(self) -> Iterator[tuple[str, Axes]]:
        """Every tensor value: its node's name and the layouts of its dims."""
        for name, axes in self.axes.items():
            if isinstance(axes, list):
                yield from ((name, each) for each in axes)
            else:
                yield name, axes


def fingerprint(gm: fx.GraphModule) -> str:
    """A text that tells this graph, with its parameters' shapes, from others."""
    lines: list[str] = []
    for node in gm.graph.nodes:
        lines.append(node.format_node() or node.name)
        if node.op == "get_attr" and isinstance(value := fetch(gm, node.target), torch.Tensor):
            lines.append(str(tuple(value.shape)))
    return "\n".join(lines)


def fetch(gm: fx.GraphModule, target: str) -> Any:
    """The attribute that a get_attr node reads."""
    return functools.reduce(getattr, target.split("."), gm)


def analyse(gm: fx.GraphModule) -> Analysis:
    """Tie and pin the axes of every value in the graph.

    Args:
        gm: a graph in the dialect of `exprune_fx.capture`, with `meta["val"]` on every node. It is not changed.

    Raises:
        SymmetryError: a tensor node has no `meta["val"]`.
    """
    state = State()
    constants = set(gm.meta.get("exprune_constants", ()))
    stored = gm.state_dict()
    parameters = state.parameters
    for node in gm.graph.nodes:
        if node.op == "get_attr" and isinstance(tensor := fetch(gm, node.target), torch.Tensor):
            axes = tuple(state.unifier.fresh(size) for size in tensor.shape)
            state.axes[node.name] = parameters.setdefault(node.target, axes)
            state.shapes[node.target] = tuple(tensor.shape)
            if node.target in constants or node.target not in stored:
                del parameters[node.target]
                _pin_constant(state.unifier, axes, tensor, node.target)
        elif node.op == "placeholder":
            _pin_all(state, node, "the model's input")
        elif node.op == "call_function":
            _apply_rule(state, node)
        elif node.op == "output":
            for source in node.all_input_nodes:
                _pin_output(state, source)
        elif node.op != "get_attr":
            raise SymmetryError(
                f"node {node.name} is a {node.op}, which the dialect does not have",
                hint="bring the model in by capture()",
            )
    settle_families(state)
    return Analysis(state.unifier, state.axes, parameters, state.shapes, state, fingerprint(gm))


def _pin_all(state: State, node: fx.Node, what: str) -> None:
    value = node.meta.get("val")
    if not isinstance(value, torch.Tensor):
        return
    axes = tuple(state.unifier.fresh(as_size(size)) for size in value.shape)
    for i, layout in enumerate(axes):
        state.unifier.pin(layout, f"is axis {i} of {what} {node.name}")
    state.axes[node.name] = axes


def _pin_output(state: State, node: fx.Node) -> None:
    axes = state.axes.get(node.name, ())
    for each in axes if isinstance(axes, list) else [axes]:
        for i, layout in enumerate(each):
            state.unifier.pin(layout, f"is axis {i} of the model's output {node.name}")


def _pin_constant(unifier: Unifier, axes: Axes, tensor: torch.Tensor, target: str) -> None:
    """A constant is not permuted, so its axes are told apart, but for those along which it does not vary."""
    known = not isinstance(tensor, torch._subclasses.FakeTensor) and tensor.device.type != "meta"
    for dim, layout in enumerate(axes):
        uniform = known and tensor.numel() > 0 and bool((tensor == tensor.narrow(dim, 0, 1)).all())
        if not uniform:
            unifier.pin(layout, f"is axis {dim} of the constant {target}")


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return dict(node.kwargs)
    found = {a.name: a.default_value for a in schema.arguments if a.has_default_value()}
    found.update(zip((a.name for a in schema.arguments), node.args, strict=False))
    return {**found, **node.kwargs}


def _has_tensor(value: Any) -> bool:
    if isinstance(value, (tuple, list)):
        return any(_has_tensor(entry) for entry in value)
    return isinstance(value, torch.Tensor)


def _apply_rule(state: State, node: fx.Node) -> None:
    if "val" not in node.meta and not isinstance(node.meta.get("example_value"), torch.Tensor):
        _pin_operands(state, node)
        return
    value = node.meta["val"]
    context = Context(state, node, _arguments(node))
    found = RULES.get(node.target)
    if not _has_tensor(value):
        if found is None and not _reads_no_values(node):
            _pin_operands(state, node)
        return
    if found is None:
        _pin_operands(state, node)
        state.axes[node.name] = _unknown(context, value)
        return
    result = found(context)
    _check(state, node, result, value)
    state.axes[node.name] = result


def _reads_no_values(node: fx.Node) -> bool:
    """Sizes, and checks of sizes and dtypes, without a tensor as the result."""
    name = str(node.target)
    return name.startswith(("aten.sym_", "aten._assert", "aten.size", "<built-in")) or "sym_constrain" in name


def _no_rule(node: fx.Node) -> str:
    path = node.meta.get("module_path") or ""
    return f"meets {node.target}, which has no symmetry rule (node {node.name}" + (f" in {path})" if path else ")")


def _pin_operands(state: State, node: fx.Node) -> None:
    for operand in node.all_input_nodes:
        axes = state.axes.get(operand.name, ())
        for each in axes if isinstance(axes, list) else [axes]:
            for layout in each:
                state.unifier.pin(layout, _no_rule(node))


def _unknown(context: Context, value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [_unknown(context, entry) for entry in value]
    axes = tuple(context.fresh(as_size(size)) for size in value.shape) if isinstance(value, torch.Tensor) else ()
    for layout in axes:
        context.unifier.pin(layout, _no_rule(context.node))
    return axes


def _check(state: State, node: fx.Node, result: Any, value: Any) -> None:
    """A rule's result must have the dims that the value has: a wrong rule must not go unseen."""
    if isinstance(result, list) and isinstance(value, (tuple, list)):
        for each, part in zip(result, value, strict=False):
            if isinstance(part, torch.Tensor) and part.numel() != 0:
                _check(state, node, each, part)
        return
    sizes = [state.unifier.size(layout) for layout in result]
    if len(sizes) != value.dim() or any(a != as_size(b) for a, b in zip(sizes, value.shape, strict=True)):
        raise SymmetryError(
            f"the symmetry rule of {node.target} gives sizes {sizes} for node {node.name}, which has shape "
            f"{tuple(value.shape)}",
            hint="report this as a bug of the rule",
        )
