"""What a captured graph is called with, as plain data: enough to make example inputs and to capture or export again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ShapesCollection
from torch.utils import _pytree as pytree

from exprune_fx.errors import CaptureError
from exprune_fx.graph._inputs import InputCheck

_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class TensorInput:
    """One tensor of a call.

    Attributes:
        shape: of the example; the size that it had where a size is symbolic.
        dtype: by name, without "torch.".
        symbolic: dimension -> (lowest, highest) size, None where there is no limit.
    """

    shape: tuple[int, ...]
    dtype: str
    symbolic: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)

    def example(self, device: torch.device | str) -> Tensor:
        """Zeros: tracing looks at shapes alone, and zero is a valid index."""
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype), device=device)


@dataclass(frozen=True)
class Signature:
    """The inputs that a graph was captured with.

    Attributes:
        tree: the structure of ``(args, kwargs)`` as torch writes tree specs.
        leaves: one for each placeholder: a ``TensorInput``, or the constant that was baked in.
    """

    tree: str
    leaves: tuple[TensorInput | int | float | str | bool | None, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Signature:
        """Reads the signature off a captured graph's placeholders.

        Raises:
            CaptureError: an input is neither a tensor nor a plain constant, or stands in a container that has no text.
        """
        check = InputCheck.of(gm)
        ranges = {symbol: (low, high) for symbol, low, high in check.ranges} if check is not None else {}
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        spec = gm.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined] # the dialect's code generator
        try:
            tree = pytree.treespec_dumps(spec)
        except (NotImplementedError, TypeError) as error:
            raise CaptureError(f"the inputs stand in a container that has no text form: {error}") from error
        return cls(tree, tuple(_leaf(str(node.target), node.meta.get("val"), ranges) for node in placeholders))

    def example(self, device: torch.device | str = "cpu") -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Example ``(args, kwargs)``; every tensor is zeros and an object of its own.

        Raises:
            CaptureError: the text of the tree names a container that this process does not know.
        """
        values = [leaf.example(device) if isinstance(leaf, TensorInput) else leaf for leaf in self.leaves]
        try:
            args, kwargs = pytree.tree_unflatten(values, pytree.treespec_loads(self.tree))
        except Exception as error:  # torch raises whatever its reader raises
            raise CaptureError(f"the structure of the inputs cannot be read: {error}") from error
        return tuple(args), dict(kwargs)

    def dynamic_shapes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> ShapesCollection:
        """Which sizes of an example's tensors stay symbolic, as ``torch.export.export`` takes it."""
        shapes = ShapesCollection()
        for leaf, value in zip(self.leaves, pytree.tree_leaves((args, dict(kwargs))), strict=True):
            if isinstance(leaf, TensorInput) and leaf.symbolic:
                # Torch finds out itself which sizes are tied to one another; AUTO, not DYNAMIC, lets it.
                shapes[value] = {dim: Dim.AUTO(min=low, max=high) for dim, (low, high) in leaf.symbolic.items()}
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"tree": self.tree, "leaves": [_leaf_to_dict(leaf) for leaf in self.leaves]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """The inverse of ``to_dict``; raises KeyError, TypeError or ValueError where the data is none."""
        return cls(str(data["tree"]), tuple(_leaf_from_dict(leaf) for leaf in data["leaves"]))


def _leaf(name: str, value: object, ranges: Mapping[str, tuple[int, float]]) -> Any:
    if isinstance(value, Tensor):
        sizes: list[Any] = list(value.shape)
        symbolic = {
            dim: _limits(str(size.node.expr), ranges)
            for dim, size in enumerate(sizes)
            if isinstance(size, torch.SymInt)
        }
        return TensorInput(
            tuple(_size_of(name, size) for size in sizes), str(value.dtype).removeprefix("torch."), symbolic
        )
    if isinstance(value, _PLAIN):
        return value
    raise CaptureError(f"input {name!r} is a {type(value).__name__}, neither a tensor nor a plain constant")


def _size_of(name: str, size: int | torch.SymInt) -> int:
    if not isinstance(size, torch.SymInt):
        return size
    if size.node.hint is None:
        raise CaptureError(f"input {name!r} has a size without an example: {size}")
    return int(size.node.hint)


def _limits(expression: str, ranges: Mapping[str, tuple[int, float]]) -> tuple[int | None, int | None]:
    low, high = ranges.get(expression, (0, float("inf")))
    return low or None, None if high == float("inf") else int(high)


def _leaf_to_dict(leaf: Any) -> dict[str, Any]:
    if not isinstance(leaf, TensorInput):
        return {"value": leaf}
    symbolic = [[dim, low, high] for dim, (low, high) in leaf.symbolic.items()]
    return {"shape": list(leaf.shape), "dtype": leaf.dtype, "symbolic": symbolic}


def _leaf_from_dict(data: Mapping[str, Any]) -> Any:
    if "shape" not in data:
        value = data["value"]
        if not isinstance(value, _PLAIN):
            raise TypeError(f"an input is a {type(value).__name__}")
        return value
    dtype = str(data["dtype"])
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}")
    symbolic = {int(dim): (_optional(low), _optional(high)) for dim, low, high in data["symbolic"]}
    return TensorInput(tuple(int(size) for size in data["shape"]), dtype, symbolic)


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
