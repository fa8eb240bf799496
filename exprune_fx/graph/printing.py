"""A graph as readable Python text, the same in every process: what golden tests compare and people read."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch import Tensor, fx
from torch.fx.node import Node
from torch.utils import _pytree as pytree

_DTYPES = {
    torch.float64: "f64",
    torch.float32: "f32",
    torch.float16: "f16",
    torch.bfloat16: "bf16",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.int16: "i16",
    torch.int8: "i8",
    torch.uint8: "u8",
    torch.bool: "b8",
    torch.complex64: "c64",
    torch.complex128: "c128",
}


def python_text(gm: fx.GraphModule) -> str:
    """The graph as Python: one line a node, with dtype, shape and module path as a comment.

    Names are counted per operator and symbolic sizes are named s0, s1, ... in the order in which they appear, so that
    the text depends neither on memory addresses nor on how torch numbers its nodes. Overload names are left out when
    they are ``default``.
    """
    printer = _Printer(gm)
    return "\n".join(printer.lines()) + "\n"


class _Printer:
    def __init__(self, gm: fx.GraphModule) -> None:
        self._gm = gm
        self._names: dict[Node, str] = {}
        self._taken: set[str] = set()
        self._symbols: dict[sympy.Symbol, sympy.Symbol] = {}

    def lines(self) -> list[str]:
        nodes = list(self._gm.graph.nodes)
        inputs = [n for n in nodes if n.op == "placeholder"]
        for node in inputs:
            self._name(node, str(node.target))
        lines = ["def forward(", *(f"    {self._names[n]},{self._comment(n)}" for n in inputs), "):"]
        if not inputs:
            lines = ["def forward():"]
        for node in nodes:
            if node.op == "get_attr":
                name = self._name(node, str(node.target).replace(".", "_"))
                lines.append(f"    {name} = {_attribute(str(node.target))}{self._comment(node, path=False)}")
            elif node.op == "call_function":
                call = self._call(node)
                name = self._name(node, _short_name(node.target))
                lines.append(f"    {name} = {call}{self._comment(node)}")
            elif node.op == "output":
                lines.append(f"    return {self._output(node)}")
            elif node.op != "placeholder":
                lines.append(f"    {self._name(node, node.op)} = {node.op}({node.target})")
        return lines

    def _name(self, node: Node, base: str) -> str:
        base = base if base.isidentifier() else f"_{base}"
        name, count = base, 0
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._taken.add(name)
        self._names[node] = name
        return name

    def _call(self, node: Node) -> str:
        if node.target is operator.getitem:
            return f"{self._argument(node.args[0])}[{self._argument(node.args[1])}]"
        arguments = [self._argument(a) for a in node.args]
        arguments += [f"{key}={self._argument(value)}" for key, value in node.kwargs.items()]
        return f"{_long_name(node.target)}({', '.join(arguments)})"

    def _argument(self, value: Any) -> str:
        if isinstance(value, Node):
            return self._names.get(value, value.name)
        if isinstance(value, list | tuple | dict | slice):
            return self._container(value)
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._size(value)
        if isinstance(value, torch.device):
            return repr(str(value))
        if isinstance(value, int | float | str | bool | None | torch.dtype | torch.memory_format | torch.layout):
            return repr(value)
        return f"<{type(value).__name__}>"  # a repr might hold a memory address

    def _container(self, value: list[Any] | tuple[Any, ...] | dict[str, Any] | slice) -> str:
        if isinstance(value, dict):
            return f"{{{', '.join(f'{k!r}: {self._argument(v)}' for k, v in value.items())}}}"
        if isinstance(value, slice):
            return f"slice({', '.join(map(self._argument, (value.start, value.stop, value.step)))})"
        inside = ", ".join(map(self._argument, value))
        if isinstance(value, list):
            return f"[{inside}]"
        return f"({inside}{',' if len(value) == 1 else ''})"

    def _output(self, node: Node) -> str:
        flat = [self._argument(a) for a in pytree.tree_leaves(node.args[0])]
        info = getattr(self._gm.graph._codegen, "pytree_info", None)
        if info is None or info.out_spec is None or info.out_spec.num_leaves != len(flat):
            return ", ".join(flat)
        return _nested(info.out_spec, flat)

    def _comment(self, node: Node, *, path: bool = True) -> str:
        parts = [self._value(node.meta.get("val"))]
        if path and node.meta.get("module_path"):
            parts.append(node.meta["module_path"])
        return f"  # {' '.join(parts)}"

    def _value(self, value: Any) -> str:
        if isinstance(value, Tensor):
            return f"{_DTYPES.get(value.dtype, str(value.dtype))}[{', '.join(map(self._size, value.shape))}]"
        if isinstance(value, tuple | list):
            return f"({', '.join(map(self._value, value))})"
        if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._size(value)
        return self._argument(value)

    def _size(self, size: Any) -> str:
        if not isinstance(size, torch.SymInt | torch.SymFloat | torch.SymBool):
            return str(size)
        expression = size.node.expr
        for symbol in sorted(expression.free_symbols - self._symbols.keys(), key=str):
            prefix = "u" if str(symbol).startswith("u") else "s"
            number = sum(str(known).startswith(prefix) for known in self._symbols.values())
            # The same assumptions as torch's symbol, else sympy prints and orders the expression differently.
            self._symbols[symbol] = sympy.Symbol(f"{prefix}{number}", **symbol.assumptions0)
        return str(expression.xreplace(self._symbols))


def _attribute(target: str) -> str:
    """``features.0.weight`` as Python writes it: ``self.features[0].weight``."""
    return "self" + "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in target.split("."))


def _long_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        namespace, _, name = target._schema.name.partition("::")
        return f"{namespace}.{name}" + ("" if target._overloadname == "default" else f".{target._overloadname}")
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__name__', '?')}"


def _short_name(target: Any) -> str:
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.name.partition("::")[2]
    return str(getattr(target, "__name__", "call"))


def _nested(spec: pytree.TreeSpec, flat: Sequence[str]) -> str:
    if spec.is_leaf():
        return flat[0]
    parts, start = [], 0
    for child in spec.children():
        parts.append(_nested(child, flat[start : start + child.num_leaves]))
        start += child.num_leaves
    if spec.type is dict:
        return "{" + ", ".join(f"{key!r}: {part}" for key, part in zip(spec.context, parts, strict=True)) + "}"
    if spec.type is list:
        return f"[{', '.join(parts)}]"
    if spec.type is tuple:
        return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"
    return f"{getattr(spec.type, '__name__', spec.type)}({', '.join(parts)})"
