"""What a captured graph is called with: enough to make example inputs, and to capture or export again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram, ShapesCollection
from torch.utils import _pytree as pytree

from exprune_fx.errors import CaptureError
from exprune_fx.graph._inputs import InputCheck
from exprune_fx.graph.capture import known_warnings

_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class TensorInput:
    """One tensor of a call.

    Attributes:
        shape: of the example; the size that it had where a size is symbolic.
        dtype: by name, without "torch.".
        device: by name.
        symbolic: dimension -> (lowest, highest) size, None where there is no limit.
    """

    shape: tuple[int, ...]
    dtype: str
    device: str = "cpu"
    symbolic: dict[int, tuple[int | None, int | None]] = field(default_factory=dict)

    def example(self, device: torch.device | str | None = None) -> Tensor:
        """Zeros: tracing looks at shapes alone, and zero is a valid index."""
        return torch.zeros(self.shape, dtype=getattr(torch, self.dtype), device=device or self.device)


@dataclass(frozen=True)
class Signature:
    """The inputs that a graph was captured with.

    Attributes:
        tree: the structure of ``(args, kwargs)``.
        leaves: one for each placeholder: a ``TensorInput``, or the constant that was baked in.
    """

    tree: pytree.TreeSpec
    leaves: tuple[Any, ...]

    @classmethod
    def of(cls, gm: fx.GraphModule) -> Signature:
        """Reads the signature off a captured graph's placeholders.

        Raises:
            CaptureError: an input is a symbolic number, or a size has no example.
        """
        check = InputCheck.of(gm)
        ranges = {symbol: (low, high) for symbol, low, high in check.ranges} if check is not None else {}
        placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
        tree: pytree.TreeSpec = gm.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined] # the dialect's
        return cls(tree, tuple(_leaf(str(node.target), node.meta.get("val"), ranges) for node in placeholders))

    def example(self, device: torch.device | str | None = None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Example ``(args, kwargs)``: zeros, each an object of its own, on the example's device or on another."""
        values = [leaf.example(device) if isinstance(leaf, TensorInput) else leaf for leaf in self.leaves]
        args, kwargs = pytree.tree_unflatten(values, self.tree)
        return tuple(args), dict(kwargs)

    def dynamic_shapes(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """Which sizes of an example's tensors stay symbolic, as ``torch.export.export`` takes it."""
        shapes = ShapesCollection()
        for leaf, value in zip(self.leaves, pytree.tree_leaves((args, dict(kwargs))), strict=True):
            if isinstance(leaf, TensorInput) and leaf.symbolic:
                # Torch finds out itself which sizes are tied to one another; AUTO, not DYNAMIC, lets it.
                shapes[value] = {dim: Dim.AUTO(min=low, max=high) for dim, (low, high) in leaf.symbolic.items()}
        return shapes

    def to_dict(self) -> dict[str, Any]:
        """Plain data.

        Raises:
            CaptureError: an input is no tensor and no plain constant, or stands in a container that has no text form.
        """
        try:
            tree = pytree.treespec_dumps(self.tree)
        except (NotImplementedError, TypeError) as error:
            raise CaptureError(f"the inputs stand in a container that has no text form: {error}") from error
        return {"tree": tree, "leaves": [_leaf_to_dict(leaf) for leaf in self.leaves]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Signature:
        """The inverse of ``to_dict``.

        Raises:
            CaptureError: the data are none, or name a container that this process does not know.
        """
        try:
            tree = pytree.treespec_loads(str(data["tree"]))
            return cls(tree, tuple(_leaf_from_dict(leaf) for leaf in data["leaves"]))
        except Exception as error:  # torch's reader raises anything
            raise CaptureError(f"how the graph is called cannot be read: {type(error).__name__}: {error}") from error


def exported(gm: fx.GraphModule) -> ExportedProgram:
    """The graph as an exported program with the same symbolic sizes, no gradients; operators stay as they are.

    Raises:
        CaptureError: see ``Signature.of``.
    """
    signature = Signature.of(gm)
    args, kwargs = signature.example()
    with torch.no_grad(), known_warnings():
        return torch.export.export(gm, args, kwargs, dynamic_shapes=signature.dynamic_shapes(args, kwargs))


def _leaf(name: str, value: object, ranges: Mapping[str, tuple[int, float]]) -> Any:
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        raise CaptureError(f"input {name!r} is a symbolic number", hint="give it as a constant when capturing")
    if not isinstance(value, Tensor):
        return value
    sizes: list[Any] = list(value.shape)
    symbolic = {
        dim: _limits(str(size.node.expr), ranges) for dim, size in enumerate(sizes) if isinstance(size, torch.SymInt)
    }
    shape = tuple(_size_of(name, size) for size in sizes)
    return TensorInput(shape, str(value.dtype).removeprefix("torch."), str(value.device), symbolic)


def _size_of(name: str, size: Any) -> int:
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is None:
        raise CaptureError(f"input {name!r} has a size without an example: {size}")
    return int(size.node.hint)


def _limits(expression: str, ranges: Mapping[str, tuple[int, float]]) -> tuple[int | None, int | None]:
    low, high = ranges.get(expression, (0, float("inf")))
    return low or None, None if high == float("inf") else int(high)


def _leaf_to_dict(leaf: Any) -> dict[str, Any]:
    if isinstance(leaf, TensorInput):
        symbolic = [[dim, low, high] for dim, (low, high) in leaf.symbolic.items()]
        return {"shape": list(leaf.shape), "dtype": leaf.dtype, "device": leaf.device, "symbolic": symbolic}
    if isinstance(leaf, _PLAIN):
        return {"value": leaf}
    raise CaptureError(f"an input is a {type(leaf).__name__}, neither a tensor nor a plain constant")


def _leaf_from_dict(data: Mapping[str, Any]) -> Any:
    if "value" in data:
        return data["value"]
    dtype = str(data["dtype"])
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"unknown dtype {dtype!r}")
    symbolic = {int(dim): (_optional(low), _optional(high)) for dim, low, high in data["symbolic"]}
    return TensorInput(tuple(int(size) for size in data["shape"]), dtype, str(data["device"]), symbolic)


def _optional(value: Any) -> int | None:
    return None if value is None else int(value)
