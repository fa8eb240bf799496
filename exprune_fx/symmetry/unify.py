"""Unification of layouts: union-find over atoms with substitution by finer layouts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from exprune_fx.symmetry.atoms import Atoms, Entries
from exprune_fx.symmetry.layouts import Layout, Segment, Size, less, quotient, same_size

_MAX_SEGMENTS = 4096
MISALIGNED = "is read with two factorisations that do not align"


class Unifier(Atoms):
    """Atoms, what they stand for, and which of them are pinned.

    Unifying an atom with an atom joins them; an atom with a composite layout refines the atom everywhere; two
    composites are cut and factored until they align. What cannot be aligned is pinned. Nothing is ever undone: every
    step makes the symmetry group smaller or leaves it as it is, so the order of steps does not matter for soundness.
    """

    def unify(self, left: Layout, right: Layout) -> None:
        """Tie two axes: position i of the one is position i of the other."""
        work = [(left, right)]
        while work:
            one, other = work.pop()
            one, other = self.resolve(one), self.resolve(other)
            if one == other or not one or not other or self.size(one) == 1 == self.size(other):
                continue  # one position has nothing to permute, and units tell the pieces of an index apart
            if self._is_leaf(one):
                self._bind(one[0][0], other)
            elif self._is_leaf(other):
                self._bind(other[0][0], one)
            elif self._settle_pinned(one, other):
                continue
            elif self._is_family(one):
                work.extend(self._align_family(one[0][0], other))
            elif self._is_family(other):
                work.extend(self._align_family(other[0][0], one))
            else:
                work.extend(self._align(one, other))

    def _is_leaf(self, layout: Layout) -> bool:
        return len(layout) == 1 and len(layout[0]) == 1 and self.is_leaf(layout[0][0])

    def _is_family(self, layout: Layout) -> bool:
        return len(layout) == 1 and len(layout[0]) == 1 and self.is_family(layout[0][0])

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

    # ------------------------------------------------------------------------------------------------ families

    def _align_family(self, family: int, other: Layout) -> list[tuple[Layout, Layout]]:
        if self._is_family(other):
            pairs = self._matching(self._families[family], self._families[other[0][0]])
            if pairs is not None:
                self._bound[family] = other
                del self._families[family]
                return [(((one,),), ((two,),)) for one, two in pairs]
        elif all(self.is_leaf(f) for s in other for f in s) and not self.leaves(other) & self.index_leaves(family):
            self._expose(family, other)
            return []
        self.collapse(family)
        return [(((family,),), other)]

    def _matching(self, one: Entries, other: Entries) -> list[tuple[int, int]] | None:
        """Members of two families for the same pieces of the same index; None where the pieces differ."""
        named = {self.leaves(((index,),)): member for index, member in other}
        found = [(member, named.get(self.leaves(((index,),)))) for index, member in one]
        if len(one) != len(other) or any(match is None for _, match in found):
            return None
        return [(member, match) for member, match in found if match is not None]

    def _expose(self, family: int, layout: Layout) -> None:
        """Give a family the structure of a layout of leaves: each of these becomes a family."""
        entries = self._families.pop(family)
        self._bound[family] = layout
        atoms = dict.fromkeys(factor for segment in layout for factor in segment)
        clones = {atom: self.vary(atom, [index for index, _ in entries]) for atom in atoms}
        for k, (_, member) in enumerate(entries):
            self.unify(((member,),), tuple(tuple(clones[f][k] for f in segment) for segment in layout))

    def vary(self, atom: int, pieces: Sequence[int]) -> list[int]:
        """Make a leaf atom a family with a new member for each piece of an index; the most general reading of it."""
        members = [self.atom(self._sizes[atom]) for _ in pieces]
        self._families[atom] = tuple(zip(pieces, members, strict=True))
        reason = self._pins.pop(atom, None)
        if reason is not None:
            self.pin(((atom,),), reason)
        return members

    def collapse(self, family: int) -> None:
        """Make all members of a family one: its index does not always go with it."""
        (_, first), *others = self._families.pop(family)
        self._bound[family] = ((first,),)
        for member in (first, *(other for _, other in others)):
            if self.is_family(member):
                self.collapse(member)
        for _, member in others:
            self.unify(((first,),), ((member,),))

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
        pieces = [self.atom(part) for part in parts if part != 0]
        if len(pieces) > 1:
            self._cut_outer(outer, rest, pieces)
        if not remainder:
            return True
        middle = pieces[1 if before else 0] if len(pieces) > 1 else outer
        return self._cut_at(self.resolve(self.specialise((rest,), ((middle,),))), remainder)

    def _cut_outer(self, outer: int, rest: Segment, pieces: list[int]) -> None:
        layout = tuple((piece,) for piece in pieces)
        if self.is_family(outer):
            self._expose(outer, layout)
            return
        self._bind(outer, layout)
        for inner in rest:
            if self.is_leaf(inner) and self._sizes[inner] != 1 and inner not in self._pins and inner != outer:
                self.vary(inner, pieces)

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
