"""Unification of layouts: union-find over atoms with substitution by finer layouts."""

from __future__ import annotations

from collections.abc import Iterable

from exprune_fx.symmetry.layouts import Layout, Run, Segment, Size, less, product, quotient, same_size

_MAX_SEGMENTS = 4096
MISALIGNED = "is read with two factorisations that do not align"


class Unifier:
    """Atoms, what they stand for, and which of them are pinned.

    Unifying an atom with an atom joins them; an atom with a composite layout refines the atom everywhere; two
    composites are cut and factored until they align. What cannot be aligned is pinned. Nothing is ever undone: every
    step makes the symmetry group smaller or leaves it as it is, so the order of steps does not matter for soundness.
    """

    def __init__(self) -> None:
        self._sizes: list[Size] = []
        self._bound: dict[int, Layout] = {}
        self._pins: dict[int, str] = {}

    def atom(self, size: Size) -> int:
        """A new atom with `size` members."""
        self._sizes.append(size)
        return len(self._sizes) - 1

    def fresh(self, size: Size) -> Layout:
        """The layout of one new atom."""
        return ((self.atom(size),),)

    def size_of(self, atom: int) -> Size:
        """Number of members of an atom."""
        return self._sizes[atom]

    def segment_size(self, segment: Segment) -> Size:
        """Number of positions in a segment."""
        return product(self._sizes[factor] for factor in segment)

    def size(self, layout: Layout) -> Size:
        """Number of positions of a layout."""
        return sum((self.segment_size(segment) for segment in layout), start=0)

    def is_leaf(self, atom: int) -> bool:
        """Whether the atom stands for itself."""
        return atom not in self._bound

    # ---------------------------------------------------------------------------------------------- normal form

    def resolve(self, layout: Layout) -> Layout:
        """Substitute bound atoms; outer concatenations distribute over inner factors, factors of size 1 go.

        Inner factors may still be atoms that stand for a concatenation: (h, a + b) is no concatenation of products.
        """
        return tuple(done for segment in layout for done in self._resolve_segment(segment))

    def _resolve_segment(self, segment: Segment) -> Layout:
        kept: list[int] = []
        outer: Layout = ()
        for factor in segment:
            if self._sizes[factor] == 1:
                continue
            inner = self._factor(factor)
            if len(inner) == 1:
                kept.extend(inner[0])
            elif kept or outer:
                kept.append(factor)
            else:
                outer = inner
        if not outer:
            return (tuple(kept) or self._factor(segment[0])[0],)
        return tuple((tuple(atom for atom in head if self._sizes[atom] != 1) + tuple(kept)) or head for head in outer)

    def _factor(self, atom: int) -> Layout:
        if atom not in self._bound:
            return ((atom,),)
        resolved = self.resolve(self._bound[atom])
        self._bound[atom] = resolved
        return resolved

    def leaves(self, layout: Layout) -> frozenset[int]:
        """All leaf atoms of a layout."""
        return frozenset(atom for run in self.products(layout) for atom in run)

    def products(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """The layout as a set of products of leaf atoms (outer first), one for every run of positions."""
        found: list[tuple[int, ...]] = []
        for segment in self.resolve(layout):
            partial: list[tuple[int, ...]] = [()]
            for factor in segment:
                inner = ((factor,),) if self.is_leaf(factor) else self.products(((factor,),))
                partial = [(*left, *right) for left in partial for right in inner]
            found.extend(partial)
        return tuple(found)

    def runs(self, layout: Layout) -> tuple[Run, ...]:
        """The layout of a static axis as strided runs of positions."""
        found: list[Run] = []
        start = 0
        for segment in self.resolve(layout):
            partial = [Run(0, ())]
            stride = 1
            for factor in reversed(segment):
                size = self._sizes[factor]
                inner = (Run(0, ((factor, size, 1),)),) if self.is_leaf(factor) else self.runs(((factor,),))
                partial = [_nest(new, old, stride) for old in partial for new in inner]
                stride *= size
            found.extend(Run(run.offset + start, run.factors) for run in partial)
            start += stride
        return tuple(found)

    # ------------------------------------------------------------------------------------------------- pinning

    def pin(self, layout: Layout, reason: str) -> None:
        """Tell the positions of a layout apart, for a reason in words; the first reason is kept."""
        for atom in self.leaves(layout):
            self._pins.setdefault(atom, reason)

    def pin_reason(self, atom: int) -> str | None:
        """Why a leaf atom is pinned, None where it is free."""
        return self._pins.get(atom)

    def pinned(self, layout: Layout) -> bool:
        """Whether every leaf atom of the layout is pinned."""
        return all(atom in self._pins for atom in self.leaves(layout))

    # ------------------------------------------------------------------------------------------- tying together

    def unify(self, left: Layout, right: Layout) -> None:
        """Tie two axes: position i of the one is position i of the other."""
        work = [(left, right)]
        while work:
            one, other = work.pop()
            one, other = self.resolve(one), self.resolve(other)
            if one == other or not one or not other:
                continue
            if self._is_leaf(one):
                self._bind(one[0][0], other)
            elif self._is_leaf(other):
                self._bind(other[0][0], one)
            elif not self._settle_pinned(one, other):
                work.extend(self._align(one, other))

    def _is_leaf(self, layout: Layout) -> bool:
        return len(layout) == 1 and len(layout[0]) == 1 and self.is_leaf(layout[0][0])

    def _settle_pinned(self, one: Layout, other: Layout) -> bool:
        """Where one side is told apart entirely, so is the other: no structure is left to align."""
        for source, target in ((one, other), (other, one)):
            if self.pinned(source):
                self.pin(target, self._reason(source))
                return True
        return False

    def _reason(self, layout: Layout) -> str:
        return next(self._pins[atom] for atom in sorted(self.leaves(layout)) if atom in self._pins)

    def _bind(self, atom: int, layout: Layout) -> None:
        if atom in self.leaves(layout) or not same_size(self._sizes[atom], self.size(layout)):
            self.pin((*layout, (atom,)), MISALIGNED)
            return
        reason = self._pins.pop(atom, None)
        if reason is not None:
            self.pin(layout, reason)
        self._bound[atom] = layout

    def _align(self, one: Layout, other: Layout) -> list[tuple[Layout, Layout]]:
        """One step towards aligned composites: what is still to be tied."""
        if len(one) == 1 and len(other) == 1:
            return self._align_factors(one[0], other[0])
        head, head_other = self.segment_size(one[0]), self.segment_size(other[0])
        if same_size(head, head_other):
            return [(one[1:], other[1:]), (one[:1], other[:1])]
        shorter = less(head, head_other)
        done = max(len(one), len(other)) <= _MAX_SEGMENTS and shorter is not None
        if done:
            done = self.cut(other[0], head) if shorter else self.cut(one[0], head_other)
        if not done:
            self.pin(one + other, MISALIGNED)
            return []
        return [(one, other)]

    def _align_factors(self, one: Segment, other: Segment) -> list[tuple[Layout, Layout]]:
        left, right = list(one), list(other)
        pairs: list[tuple[Layout, Layout]] = []
        while left and right:
            outer, inner = left[-1], right[-1]
            if same_size(self._sizes[outer], self._sizes[inner]):
                pairs.append((((left.pop(),),), ((right.pop(),),)))
                continue
            if (ratio := quotient(self._sizes[outer], self._sizes[inner])) is not None:
                pairs.append(self._split_last(left, ratio, self._sizes[inner]))
            elif (ratio := quotient(self._sizes[inner], self._sizes[outer])) is not None:
                pairs.append(self._split_last(right, ratio, self._sizes[outer]))
            else:
                self.pin((one, other), MISALIGNED)
                return []
        return pairs

    def _split_last(self, factors: list[int], ratio: Size, inner: Size) -> tuple[Layout, Layout]:
        whole = factors.pop()
        parts = (self.atom(ratio), self.atom(inner))
        factors.extend(parts)
        return ((whole,),), (parts,)

    # ------------------------------------------------------------------------------------------------- cutting

    def cut(self, segment: Segment, position: Size) -> bool:
        """Cut a resolved segment into `position` positions and the rest; False where that cannot be expressed."""
        outer, rest = segment[0], segment[1:]
        inner = self.segment_size(rest)
        whole = self._sizes[outer]
        if (before := quotient(position, inner)) is not None:
            parts = [before, whole - before]
            remainder = 0
        elif isinstance(position, int) and isinstance(inner, int):
            before, remainder = divmod(position, inner)
            parts = [before, 1, whole - before - 1]
        else:
            return False
        pieces = tuple((self.atom(part),) for part in parts if part != 0)
        if len(pieces) > 1:
            self._bind(outer, pieces)
        if not remainder:
            return True
        return self._cut_at(self.resolve((rest,)), remainder)

    def _cut_at(self, layout: Layout, position: Size) -> bool:
        return self.split(layout, (position, self.size(layout) - position)) is not None

    def split(self, layout: Layout, sizes: Iterable[Size]) -> list[Layout] | None:
        """Split a layout into consecutive pieces of the given sizes; None where a cut cannot be expressed."""
        pieces: list[Layout] = []
        rest = self.resolve(layout)
        for size in sizes:
            taken: list[Segment] = []
            missing = size
            while not same_size(missing, 0):
                if not rest:
                    return None
                head = self.segment_size(rest[0])
                if same_size(head, missing) or less(head, missing):
                    taken.append(rest[0])
                    missing, rest = missing - head, rest[1:]
                elif less(missing, head) and self.cut(rest[0], missing):
                    rest = self.resolve(rest)
                else:
                    return None
            pieces.append(tuple(taken))
        return pieces


def _nest(outer: Run, inner: Run, stride: int) -> Run:
    """The run that steps through `outer` in units of `stride`, each step covering `inner`."""
    factors = tuple((atom, size, step * stride) for atom, size, step in outer.factors)
    return Run(outer.offset * stride + inner.offset, factors + inner.factors)
