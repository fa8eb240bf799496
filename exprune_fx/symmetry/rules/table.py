"""The table of axis rules, and what a rule may do: tie axes, pin them, and say what the op mixes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import torch
from torch import fx

from exprune_fx.errors import SymmetryError
from exprune_fx.symmetry.layouts import Axes, Layout, Size, as_size, same_size
from exprune_fx.symmetry.unify import Unifier

Letter: TypeAlias = str
DimSpec: TypeAlias = "Letter | tuple[Letter, ...] | None"  # one letter, a product (outer first), or left to the rule
Operand: TypeAlias = tuple[Any, Sequence[DimSpec]]
Result: TypeAlias = "Axes | list[Axes] | None"
KERNEL_POSITION = "is a position inside a convolution kernel"


@dataclass(frozen=True)
class Event:
    """What one op does with its axes, in letters (as in einsum); it decides what may be permuted per index of what.

    Attributes:
        node: name of the node.
        letters: layout of every letter.
        values: for every operand and result, the letters of its dims.
        mixed: sets of letters that the op reduces over, or normalises over, jointly.
    """

    node: str
    letters: Mapping[Letter, Layout]
    values: tuple[tuple[Letter, ...], ...]
    mixed: tuple[frozenset[Letter], ...] = ()


@dataclass
class State:
    """What is known while the rules run over one graph."""

    unifier: Unifier = field(default_factory=Unifier)
    axes: dict[str, Any] = field(default_factory=dict)  # node name -> Axes | list[Axes]
    parameters: dict[str, Axes] = field(default_factory=dict)  # get_attr target -> Axes
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)


Rule: TypeAlias = "Callable[[Context], Result]"
R = TypeVar("R", bound="Callable[[Context], Result]")
RULES: dict[Any, Rule] = {}


def rule(*operators: Any) -> Callable[[R], R]:
    """Register the one rule of each operator (an `OpOverload`, or a packet for all its functional overloads)."""

    def register(function: R) -> R:
        for operator in operators:
            for overload in _overloads(operator):
                if overload in RULES:
                    raise SymmetryError(f"{overload} has two symmetry rules", hint="keep one rule per operator")
                RULES[overload] = function
        return function

    return register


def _overloads(operator: Any) -> Iterable[Any]:
    if not isinstance(operator, torch._ops.OpOverloadPacket):
        return [operator]
    found = [getattr(operator, name) for name in operator.overloads()]
    return [overload for overload in found if not any(a.is_out for a in overload._schema.arguments)]


def packets(names: str) -> list[Any]:
    """The aten packets of these names, leaving out what this version of torch does not have."""
    return [getattr(torch.ops.aten, name) for name in names.split() if hasattr(torch.ops.aten, name)]


@dataclass
class Context:
    """One node as its rule sees it."""

    state: State
    node: fx.Node
    arguments: Mapping[str, Any]

    @property
    def unifier(self) -> Unifier:
        """The atoms of the graph."""
        return self.state.unifier

    def __getitem__(self, name: str) -> Any:
        """An argument by its schema name (defaults filled in, None where the operator has no such argument)."""
        return self.arguments.get(name)

    def where(self) -> str:
        """The op and its module, for reasons."""
        path = self.node.meta.get("module_path") or ""
        name = str(self.node.target).removesuffix(".default")
        return f"{name} (node {self.node.name}" + (f" in {path})" if path else ")")

    def axes(self, value: Any) -> Axes:
        """Layouts of the dims of an operand (empty for scalars and numbers)."""
        return tuple(self.state.axes.get(value.name, ())) if isinstance(value, fx.Node) else ()

    def value(self, value: Any) -> torch.Tensor:
        """The fake tensor of an operand."""
        fake = value.meta["val"]
        assert isinstance(fake, torch.Tensor)
        return fake

    def shape(self, value: Any = None) -> tuple[Size, ...]:
        """Sizes of an operand, or of the (single) result."""
        return tuple(as_size(size) for size in self.value(self.node if value is None else value).shape)

    def rank(self, value: Any) -> int:
        """Number of dims of an operand."""
        return self.value(value).dim()

    def dim(self, value: Any, dim: int) -> int:
        """A dim counted from the front."""
        return dim % max(self.rank(value), 1)

    def pin(self, layout: Layout, verb: str) -> None:
        """Pin an axis; the reason reads `<verb> <op> (node, module)`."""
        self.unifier.pin(layout, f"{verb} {self.where()}")

    def fresh(self, size: Size) -> Layout:
        """A new free axis."""
        return self.unifier.fresh(size)

    def fresh_pinned(self, size: Size, verb: str) -> Layout:
        """A new axis whose positions the op tells apart."""
        layout = self.fresh(size)
        self.pin(layout, verb)
        return layout

    def tensors(self) -> list[fx.Node]:
        """All tensor operands, those in lists too."""
        return [n for n in self.node.all_input_nodes if isinstance(n.meta.get("val"), torch.Tensor)]

    def relate(
        self,
        operands: Sequence[Operand],
        out: Sequence[DimSpec],
        *,
        mixed: Iterable[Iterable[Letter]] = (),
        sizes: Mapping[Letter, Size] | None = None,
    ) -> Axes:
        """Tie equal letters of all operands, record the event, and give the result's axes.

        Dims of size 1 against a letter of another size are broadcast: no tie. A dim with the spec None is left to the
        rule (in `out` it becomes a new axis, which the rule usually pins).
        """
        sizes = dict(sizes or {})
        letters: dict[Letter, Layout] = {}
        present: list[tuple[Letter, ...]] = []
        for operand, spec in operands:
            if not isinstance(operand, fx.Node):
                continue
            seen: list[Letter] = []
            for layout, size, dim in zip(self.axes(operand), self.shape(operand), spec, strict=True):
                seen.extend(self._tie(letters, sizes, layout, size, dim))
            present.append(tuple(seen))
        shape = self.shape() if isinstance(self.node.meta["val"], torch.Tensor) else (None,) * len(out)
        result = tuple(self._compose(letters, sizes, size, dim) for size, dim in zip(shape, out, strict=True))
        present.append(tuple(letter for dim in out for letter in _flat(dim) if letter in letters))
        mixed_sets = tuple(frozenset(group) & letters.keys() for group in mixed)
        self.state.events.append(Event(self.node.name, letters, tuple(present), mixed_sets))
        return result

    def _tie(
        self, letters: dict[Letter, Layout], sizes: dict[Letter, Size], layout: Layout, size: Size, dim: DimSpec
    ) -> list[Letter]:
        if dim is None or size == 1:
            return []
        for letter in _flat(dim):
            if letter not in letters and isinstance(dim, tuple):
                letters[letter] = self.fresh(sizes[letter])
        if isinstance(dim, str):
            if dim not in letters:
                letters[dim] = layout
                return [dim]
            if not same_size(self.unifier.size(letters[dim]), size):
                self.pin(layout + letters[dim], "has sizes that cannot be compared in")
            else:
                self.unifier.unify(letters[dim], layout)
            return [dim]
        self.unifier.unify(layout, self._product(letters, dim))
        return list(dim)

    def _product(self, letters: Mapping[Letter, Layout], dim: tuple[Letter, ...]) -> Layout:
        return merged(self.unifier, [letters[letter] for letter in dim])

    def _compose(
        self, letters: dict[Letter, Layout], sizes: Mapping[Letter, Size], size: Size | None, dim: DimSpec
    ) -> Layout:
        if dim is None or (size == 1 and dim not in letters):
            return self.fresh(1 if size is None else size)
        for letter in _flat(dim):
            if letter not in letters:
                letters[letter] = self.fresh(sizes.get(letter, 1 if size is None else size))
        return letters[dim] if isinstance(dim, str) else self._product(letters, dim)


def _flat(dim: DimSpec) -> tuple[Letter, ...]:
    if dim is None:
        return ()
    return (dim,) if isinstance(dim, str) else dim


def merged(unifier: Unifier, layouts: Sequence[Layout]) -> Layout:
    """The layout of the axis that one gets by flattening several dims (outer first) into one."""
    factors: list[int] = []
    for layout in layouts:
        resolved = unifier.resolve(layout)
        if len(resolved) == 1:
            factors.extend(resolved[0])
        else:
            whole = unifier.atom(unifier.size(resolved))
            unifier.unify(((whole,),), resolved)
            factors.append(whole)
    return (tuple(factors),)


def letters(count: int, prefix: str = "b") -> list[DimSpec]:
    """`count` distinct letters."""
    return [f"{prefix}{i}" for i in range(count)]


def aligned(rank: int, out_rank: int, prefix: str = "b") -> list[DimSpec]:
    """Letters of an operand of `rank` dims that broadcasts against `out_rank` dims."""
    return letters(out_rank, prefix)[out_rank - rank :]
