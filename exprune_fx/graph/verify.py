"""The invariants of the dialect, each a named check; the pass manager runs them before, between and after passes."""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from types import MappingProxyType
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.node import Node, map_arg
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakIdKeyDictionary

from exprune_fx.errors import CaptureError, ExpruneError, VerifyError
from exprune_fx.graph.edits import fake_mode_of, tensor_at
from exprune_fx.ops.shapes import on_fakes

Check = Callable[[fx.GraphModule], list[str]]


def verify(gm: fx.GraphModule, *, after: str = "") -> None:
    """Checks that a graph keeps every invariant of the dialect.

    Args:
        gm: the graph module; it is not changed.
        after: the pass that made it, for the message.

    Raises:
        VerifyError: names the check, the nodes with their module paths, and the pass.
    """
    for name, check in CHECKS.items():
        problems = check(gm)
        if problems:
            where = f" after pass {after!r}" if after else ""
            more = f" (and {len(problems) - 5} more)" if len(problems) > 5 else ""
            raise VerifyError(
                f"check {name!r} fails{where}: {'; '.join(problems[:5])}{more}",
                hint="a pass must leave a graph in the dialect; see exprune_fx.graph.verify"
                if after
                else "give a graph that capture(model, args) made, or that came of one by this library's passes",
            )


def require_graph(gm: object) -> None:
    """Refuses what is no graph at all, a model that was not captured above all.

    Raises:
        CaptureError: it is not an `fx.GraphModule`.
    """
    if not isinstance(gm, fx.GraphModule):
        raise CaptureError(
            f"this takes a captured graph, not a {type(gm).__name__}", hint="capture first: gm = capture(model, args)"
        )


def describe_node(node: Node) -> str:
    """A node's name, operator and module path, for messages."""
    path = node.meta.get("module_path")
    return f"{node.name} = {node.target}" + (f" in module {path!r}" if path else "")


def _lint(gm: fx.GraphModule) -> list[str]:
    try:
        gm.graph.lint()
    except Exception as error:  # noqa: BLE001 - lint raises RuntimeError, ValueError and others; all are reported
        return [str(error)]
    return []


def _kinds(gm: fx.GraphModule) -> list[str]:
    def allowed(node: Node) -> bool:
        if node.op == "call_function":
            return isinstance(node.target, torch._ops.OpOverload) or node.target in _PYTHON_CALLS
        return node.op in ("placeholder", "get_attr", "output")

    return [f"{describe_node(n)} is a {n.op} that the dialect does not have" for n in gm.graph.nodes if not allowed(n)]


# Arithmetic on symbolic sizes is Python's own; everything else is a registered operator.
_PYTHON_CALLS: frozenset[Any] = frozenset(
    {operator.getitem, operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv, operator.mod}
    | {operator.neg, operator.pow, operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge}
    | {torch.sym_max, torch.sym_min, torch.sym_int, torch.sym_float, torch.sym_not, torch.sym_ite, torch.sym_sum}
)


def _no_mutation(gm: fx.GraphModule) -> list[str]:
    return [
        f"{describe_node(n)} writes to its input"
        for n in gm.graph.nodes
        if isinstance(n.target, torch._ops.OpOverload) and n.target._schema.is_mutable
    ]


def _metadata(gm: fx.GraphModule) -> list[str]:
    problems = []
    for node in gm.graph.nodes:
        if node.op != "output" and "val" not in node.meta:
            problems.append(f"{describe_node(node)} has no meta['val']")
        if node.op != "output" and not isinstance(node.meta.get("module_path"), str):
            problems.append(f"{describe_node(node)} has no meta['module_path']")
    return problems


def _tensors(gm: fx.GraphModule) -> list[str]:
    problems, targets, objects = [], set[str](), dict[int, str]()
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        if name in targets:
            problems.append(f"{name!r} has more than one get_attr node")
        targets.add(name)
        try:
            tensor = tensor_at(gm, name)
        except ExpruneError as error:
            problems.append(error.what)
            continue
        other = objects.setdefault(id(tensor), name)
        if other != name:
            problems.append(f"{other!r} and {name!r} are the same tensor object")
        value = node.meta.get("val")
        if isinstance(value, Tensor) and (value.shape != tensor.shape or value.dtype != tensor.dtype):
            problems.append(f"{name!r} is {_show(tensor)}, but its meta['val'] is {_show(value)}")
    return problems


def _values(gm: fx.GraphModule) -> list[str]:
    """Runs every operator once more on the fake values of its arguments."""
    problems = []
    with _quiet_fake_mode(gm):
        for node in gm.graph.nodes:
            if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
                continue
            try:
                args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
                if _known_good(node, args, kwargs):
                    continue
                again = on_fakes(node.target)(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - whatever an operator's fake raises is reported
                problems.append(f"{describe_node(node)} does not accept its arguments: {str(error).splitlines()[0]}")
                continue
            if not _same(again, node.meta["val"]):
                problems.append(
                    f"{describe_node(node)} gives {_show(again)}, but its meta['val'] is {_show(node.meta['val'])}"
                )
            elif isinstance(node.meta["val"], Tensor):
                _GOOD[node.meta["val"]] = (node.target, *pytree.tree_flatten((args, kwargs)))
    return problems


# Fake value -> the operator and the arguments that were seen to give it. Copies share the values of the nodes that a
# pass did not touch, so that verifying between passes costs only what changed.
_GOOD: MutableMapping[Any, tuple[object, list[Any], pytree.TreeSpec]] = WeakIdKeyDictionary()


def _known_good(node: Node, args: Any, kwargs: Any) -> bool:
    value = node.meta["val"]
    known = _GOOD.get(value) if isinstance(value, Tensor) else None
    if known is None or known[0] is not node.target:
        return False
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return spec == known[2] and all(map(_same_argument, leaves, known[1]))


def _same_argument(a: Any, b: Any) -> bool:
    symbolic = isinstance(a, Tensor | torch.SymInt | torch.SymFloat | torch.SymBool)
    return a is b or (not symbolic and type(a) is type(b) and bool(a == b))


@contextlib.contextmanager
def _quiet_fake_mode(gm: fx.GraphModule) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        mode = fake_mode_of(gm)
        if mode is not None:
            if mode.shape_env is not None:
                stack.enter_context(mode.shape_env.suppress_guards())
                stack.enter_context(mode.shape_env.ignore_fresh_unbacked_symbols())
            stack.enter_context(enable_python_dispatcher())  # as in edits.run_fake
            stack.enter_context(mode)
        stack.enter_context(torch.no_grad())
        yield


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.dtype == b.dtype and a.dim() == b.dim() and all(map(_same_or_unbacked, a.shape, b.shape))
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return False
    return _same_or_unbacked(a, b)


def _same_or_unbacked(a: Any, b: Any) -> bool:
    symbols = getattr(_expression(a), "free_symbols", set()) | getattr(_expression(b), "free_symbols", set())
    # A size that depends on data gets a new symbol each time it is computed: nothing to compare.
    return any(str(s).startswith("u") for s in symbols) or same_size(a, b)


def same_size(a: Any, b: Any) -> bool:
    """Whether two sizes (ints or symbolic) are provably the same expression."""
    left, right = _expression(a), _expression(b)
    if not isinstance(left, sympy.Basic) or not isinstance(right, sympy.Basic):
        return bool(left == right)
    return bool(left == right or sympy.expand(left - right) == 0)


def same_layout(a: object, b: object) -> bool:
    """Whether two fake tensors provably have the same dtype, device, shape and strides."""
    if not isinstance(a, Tensor) or not isinstance(b, Tensor):
        return False
    if a.dtype != b.dtype or a.device != b.device or a.dim() != b.dim():
        return False
    return all(map(same_size, a.shape, b.shape)) and all(map(same_size, a.stride(), b.stride()))


def _expression(value: Any) -> Any:
    if isinstance(value, torch.SymInt | torch.SymFloat):
        return value.node.expr
    return sympy.sympify(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _show(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(map(str, value.shape))}".replace("'", "")
    return f"({', '.join(map(_show, value))})" if isinstance(value, tuple | list) else str(value)


def _no_dead_nodes(gm: fx.GraphModule) -> list[str]:
    return [
        f"{describe_node(n)} is used by nobody"
        for n in gm.graph.nodes
        if n.op in ("call_function", "get_attr") and not n.users
    ]


def _signature(gm: fx.GraphModule) -> list[str]:
    info = getattr(gm.graph._codegen, "pytree_info", None)
    if info is None:
        return ["the graph has no pytree signature"]
    problems = []
    inputs = sum(n.op == "placeholder" for n in gm.graph.nodes)
    if inputs != info.in_spec.num_leaves:
        problems.append(f"{inputs} placeholders, but the input tree has {info.in_spec.num_leaves} leaves")
    outputs = len(pytree.tree_leaves(gm.graph.output_node().args[0]))
    if info.out_spec is not None and outputs != info.out_spec.num_leaves:
        problems.append(f"{outputs} outputs, but the output tree has {info.out_spec.num_leaves} leaves")
    return problems


CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "lint": _lint,
        "kinds": _kinds,
        "no-mutation": _no_mutation,
        "metadata": _metadata,
        "tensors": _tensors,
        "no-dead-nodes": _no_dead_nodes,
        "signature": _signature,
        "values": _values,
    }
)
