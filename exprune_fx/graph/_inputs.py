"""Example inputs: what is wrong with them before capture, and which inputs a captured graph accepts afterwards."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sympy
import torch
import torch.fx._pytree as fx_pytree
from torch import Tensor, fx, nn
from torch.fx.experimental.symbolic_shapes import SYMPY_INTERP
from torch.utils import _pytree as pytree

from exprune_fx.errors import CaptureError
from exprune_fx.graph._codegen import DialectCodeGen

_MAX_ACCEPTED = 256  # shapes remembered
_HINT_SHAPE = "capture with dynamic_shapes for the sizes that vary, or call with inputs like the example"


def describe_inputs(args: object, kwargs: object = None) -> str:
    """The inputs' tree with each tensor as ``dtype[shape]``, for messages."""

    def leaf(value: object) -> object:
        if isinstance(value, Tensor):
            return _Text(f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}")
        return value if isinstance(value, int | float | str | bool | None) else _Text(type(value).__name__)

    shown = f"args={pytree.tree_map(leaf, args)!r}"
    return f"{shown}, kwargs={pytree.tree_map(leaf, kwargs)!r}" if kwargs else shown


class _Text(str):
    def __repr__(self) -> str:
        return str(self)


def check_example(model: nn.Module, args: object, kwargs: Mapping[str, Any]) -> None:
    """Refuses example inputs that torch.export would misread.

    Raises:
        CaptureError: `args` is not a tuple, one tensor object is passed twice, or a parameter is passed as an input.
    """
    if not isinstance(args, tuple):
        raise CaptureError(
            f"args must be a tuple of positional arguments, not {type(args).__name__}",
            hint="write capture(model, (x,)) for one input x",
        )
    if not isinstance(kwargs, Mapping):
        raise CaptureError(f"kwargs must be a mapping, not {type(kwargs).__name__}", hint="pass a dict or None")
    owned = {id(t): name for name, t in (*model.named_parameters(), *model.named_buffers())}
    seen: dict[int, str] = {}
    for path, value in pytree.tree_leaves_with_path((args, dict(kwargs))):
        if not isinstance(value, Tensor):
            continue
        where = _show_path(path)
        if id(value) in owned:
            raise CaptureError(
                f"input {where} is the model's own {owned[id(value)]!r}", hint="pass a clone: tensor.detach().clone()"
            )
        if id(value) in seen:
            # torch.export would silently merge the two, and the graph would be wrong on any other pair.
            raise CaptureError(
                f"inputs {seen[id(value)]} and {where} are the same tensor object (shape {list(value.shape)})",
                hint="clone one of them: every input needs its own tensor",
            )
        seen[id(value)] = where


def dense_layouts(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example with tensors that skip or repeat memory, such as ``x[::2]``, as copies that do not.

    torch.export would note the distance between their rows, and the graph would refuse inputs that lie otherwise.
    Permuted ones (channels last) are given as they are.
    """
    if not any(_is_gappy(value) for value in pytree.tree_leaves((args, kwargs))):
        return args, kwargs
    return pytree.tree_map_only(_is_gappy, _copied, (args, kwargs))  # type: ignore[no-any-return] # it keeps the tree


def _is_gappy(value: object) -> bool:
    if not isinstance(value, Tensor) or value.layout is not torch.strided:
        return False
    return torch.empty_like(value, device="meta").stride() != value.stride()  # which keeps what is dense


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone().requires_grad_(value.requires_grad)


def _show_path(path: Sequence[Any]) -> str:
    root = "args" if path[0].idx == 0 else "kwargs"
    return root + pytree.keystr(tuple(path[1:]))


def bind_inputs(
    gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[Any]]:
    """A call's arguments by name, and flattened to one value for each placeholder.

    Raises:
        CaptureError: the call does not fit the captured signature, or its structure is another one.
    """
    try:
        bound = inspect.signature(gm.forward).bind(*args, **kwargs).arguments
    except TypeError as error:
        raise CaptureError(
            f"the call does not fit the captured signature: {error}",
            hint="pass every argument that was given at capture, defaults too, and no other",
        ) from error
    in_spec = gm.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined] # the dialect's code generator
    positional = in_spec.child(0).num_children
    values = list(bound.values())
    tree = (values[:positional], dict(zip(in_spec.child(1).context, values[positional:], strict=True)))
    try:
        return bound, fx_pytree.tree_flatten_spec(tree, in_spec)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        raise CaptureError(
            f"the inputs {describe_inputs(args, kwargs)} have another structure than the example's: {error}"
        ) from error


@dataclass(frozen=True)
class InputCheck:
    """Refuses inputs for which the captured graph was not traced; the graph's own code calls it first.

    Attributes:
        leaves: one entry for each placeholder: ``("size", dims)`` for a tensor, ``("value", constant)`` for anything
            that was baked in, ``("any", None)`` for a symbolic number. A dim is an int or a sympy expression's text.
        ranges: symbol -> (lowest, highest) size.
        guards: conditions on ``L['argument']`` that torch.export relied on.
    """

    leaves: tuple[tuple[str, Any], ...]
    ranges: tuple[tuple[str, int, float], ...]
    guards: tuple[str, ...] = ()
    _accepted: set[tuple[torch.Size, ...]] = field(default_factory=set, compare=False, repr=False)

    @staticmethod
    def of(gm: nn.Module) -> InputCheck | None:
        """The check that hangs on a module."""
        found = getattr(gm, "input_check", None)
        return found if isinstance(found, InputCheck) else None

    @staticmethod
    def from_graph(graph: fx.Graph, ranges: Mapping[Any, Any], guards: Sequence[str]) -> InputCheck:
        """Reads the check off the placeholders' fake values and torch.export's range constraints."""
        leaves = tuple(_expected(n.meta.get("val")) for n in graph.nodes if n.op == "placeholder")
        # torch reads a lower end of 2 as "not specialised to 0 or 1", not as a bound: a batch of one is fine.
        known = tuple(
            (str(symbol), 0 if r.lower <= 2 else int(r.lower), _number(r.upper)) for symbol, r in ranges.items()
        )
        return InputCheck(leaves, known, tuple(guards))

    def attach(self, gm: fx.GraphModule) -> None:
        """Lets the code of `gm`, a graph of the dialect, begin with the check."""
        codegen = gm.graph._codegen
        assert isinstance(codegen, DialectCodeGen)
        gm.__dict__["input_check"] = self  # neither a tensor nor a module
        codegen.checked = True
        gm.recompile()

    def __call__(self, gm: fx.GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> None:
        """Checks one call's inputs; symbols of a tracer pass.

        Raises:
            CaptureError: a size, or a baked-in value, is not one for which the graph is valid.
        """
        # Of tensors alone, only the shapes matter: a serving loop pays for the full check once per shape.
        key = None if kwargs or not all(type(a) is Tensor for a in args) else tuple(a.shape for a in args)
        if key is not None and key in self._accepted:
            return
        if any(isinstance(value, fx.Proxy) for value in args):
            return
        bound, flat = bind_inputs(gm, args, kwargs or {})
        names = [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"]
        problem = self._problem(names, flat) or self._guard_problem(bound)
        if problem:
            raise CaptureError(f"{problem}; got {describe_inputs(args, kwargs)}", hint=_HINT_SHAPE)
        if key is not None and len(self._accepted) < _MAX_ACCEPTED:
            self._accepted.add(key)

    def _problem(self, names: Sequence[str], flat: Sequence[Any]) -> str:
        sizes: dict[str, int] = {}
        derived: list[tuple[str, int, str]] = []
        for name, (kind, expected), value in zip(names, self.leaves, flat, strict=True):
            if kind == "value" and not _same_value(value, expected):
                return f"input {name!r} was captured as the constant {expected!r}"
            if kind != "size":
                continue
            if not isinstance(value, Tensor) or value.dim() != len(expected):
                return f"input {name!r} must be a tensor with {len(expected)} dimensions"
            for axis, (dim, size) in enumerate(zip(expected, value.shape, strict=True)):
                where = f"size {axis} of input {name!r}"
                if isinstance(dim, int):
                    if dim != size:
                        return f"{where} must be {dim}, as in the example"
                elif dim.isidentifier():
                    if sizes.setdefault(dim, size) != size:
                        return f"{where} must be {sizes[dim]}, as another input's size that was tied to it"
                else:
                    derived.append((dim, size, where))
        return self._range_problem(sizes) or _derived_problem(sizes, derived)

    def _range_problem(self, sizes: Mapping[str, int]) -> str:
        for symbol, low, high in self.ranges:
            if symbol in sizes and not low <= sizes[symbol] <= high:
                return f"a symbolic size is {sizes[symbol]}, but must lie between {low} and {high}"
        return ""

    def _guard_problem(self, bound: Mapping[str, Any]) -> str:
        for guard in self.guards:
            # The conditions are torch.export's own text over input sizes, made in this process.
            if not eval(guard, dict(_GUARD_NAMESPACE), {"L": _Bound(bound)}):
                return f"the graph is valid only when {guard}"
        return ""


class _Bound(dict[str, Any]):
    """Arguments by name; a variadic name gives the list of its flattened arguments (``args_0``, ``args_1``...)."""

    def __missing__(self, name: str) -> list[Any]:
        return [value for key, value in self.items() if key.rpartition("_")[0] == name]


_GUARD_NAMESPACE: dict[str, Any] = {**SYMPY_INTERP, "math": math, "torch": torch}


def _expected(value: object) -> tuple[str, Any]:
    if isinstance(value, Tensor):
        return "size", tuple(d if isinstance(d, int) else str(d.node.expr) for d in value.shape)
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        return "any", None
    return "value", value


def _same_value(value: object, expected: object) -> bool:
    both_nan = isinstance(value, float) and isinstance(expected, float) and math.isnan(value) and math.isnan(expected)
    return both_nan or (type(value) is type(expected) and bool(value == expected))


def _derived_problem(sizes: Mapping[str, int], derived: Sequence[tuple[str, int, str]]) -> str:
    for text, size, where in derived:
        expression = sympy.sympify(text).subs(sizes)
        if expression.is_number and int(expression) != size:
            return f"{where} must be {text} = {expression}"
    return ""


def _number(bound: Any) -> float:
    return float(int(bound)) if getattr(bound, "is_Integer", isinstance(bound, int)) else math.inf
