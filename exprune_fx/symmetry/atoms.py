"""Atoms and what they stand for: themselves, a finer layout, or a family, one member for each piece of another axis."""

from __future__ import annotations

from exprune_fx.symmetry.layouts import Layout, Run, Segment, Size, product

Entries = tuple[tuple[int, int], ...]
"""`(index, member)` pairs: where the coordinate along another factor lies in `index`, the family is `member`."""


class Atoms:
    """All atoms of one graph.

    An atom is a leaf (it stands for itself), bound (it stands for a layout), or a *family*: an inner factor that is
    another atom for each piece of an outer one. A fused projection viewed as (3, heads, head_dim) and unbound along the
    3 has one atom of heads for each of q, k and v: heads is a family over the 3.
    """

    def __init__(self) -> None:
        self._sizes: list[Size] = []
        self._bound: dict[int, Layout] = {}
        self._families: dict[int, Entries] = {}
        self._special: dict[tuple[int, frozenset[int]], int] = {}
        self._pins: dict[int, str] = {}

    def atom(self, size: Size) -> int:
        """A new atom with `size` members."""
        self._sizes.append(size)
        return len(self._sizes) - 1

    def fresh(self, size: Size) -> Layout:
        """The layout of one new atom."""
        return ((self.atom(size),),)

    def family(self, entries: Entries) -> int:
        """A new atom that is another one for each piece of an index."""
        atom = self.atom(self._sizes[entries[0][1]])
        self._families[atom] = entries
        return atom

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
        return atom not in self._bound and atom not in self._families

    def is_family(self, atom: int) -> bool:
        """Whether the atom is a family."""
        return atom in self._families

    def has_families(self) -> bool:
        """Whether any atom is a family."""
        return bool(self._families)

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
        if not kept:
            return outer
        return tuple(done for head in outer for done in self._distribute(head, tuple(kept)))

    def _distribute(self, head: Segment, inner: Segment) -> Layout:
        """One piece of an outer concatenation, times the inner factors (each as it is for that piece)."""
        chosen = self.leaves((head,))
        rest = tuple(self._specialised(factor, chosen) for factor in inner)
        kept = tuple(factor for factor in head if self._sizes[factor] != 1)
        return self._resolve_segment(kept + rest)

    def _factor(self, atom: int) -> Layout:
        entries = self._families.get(atom)
        if entries is not None:
            members = {self.resolve(((member,),)) for _, member in entries}
            return members.pop() if len(members) == 1 else ((atom,),)
        if atom not in self._bound:
            return ((atom,),)
        resolved = self.resolve(self._bound[atom])
        self._bound[atom] = resolved
        return resolved

    def specialise(self, layout: Layout, kept: Layout) -> Layout:
        """A layout as it is where another axis has been narrowed to `kept`: families lose the other members."""
        chosen = self.leaves(kept)
        return tuple(tuple(self._specialised(factor, chosen) for factor in segment) for segment in self.resolve(layout))

    def _specialised(self, factor: int, chosen: frozenset[int]) -> int:
        """The factor for an index within `chosen`: the one member of a family, or a family of fewer members."""
        if self.is_leaf(factor):
            return factor
        key = (factor, chosen)
        if key in self._special:
            return self._special[key]
        special = self._specialise_atom(factor, chosen)
        if special != factor:  # what is the same for now may yet be refined
            self._special[key] = special
        return special

    def _specialise_atom(self, factor: int, chosen: frozenset[int]) -> int:
        entries = self._families.get(factor)
        if entries is None:
            layout = self._factor(factor)
            special = tuple(tuple(self._specialised(f, chosen) for f in segment) for segment in layout)
            if special == layout:
                return factor
            whole = self.atom(self._sizes[factor])
            self._bound[whole] = special
            return whole
        met = tuple((i, m) for i, m in entries if self.leaves(((i,),)) & chosen)
        if not met:
            deeper = tuple((i, self._specialised(m, chosen)) for i, m in entries)
            return factor if deeper == entries else self.family(deeper)
        if len(met) == 1:
            return self._specialised(met[0][1], chosen)
        return factor if met == entries else self.family(met)

    # ------------------------------------------------------------------------------------------------ expansion

    def leaves(self, layout: Layout) -> frozenset[int]:
        """All leaf atoms of a layout (of all members of its families)."""
        found: set[int] = set()
        work = [factor for segment in layout for factor in segment]
        while work:
            factor = work.pop()
            if factor in self._families:
                work.extend(member for _, member in self._families[factor])
            elif factor in self._bound:
                work.extend(inner for segment in self._factor(factor) for inner in segment)
            else:
                found.add(factor)
        return frozenset(found)

    def index_leaves(self, family: int) -> frozenset[int]:
        """Leaf atoms of what a family depends on."""
        return self.leaves(tuple((index,) for index, _ in self._families[family]))

    def loose_families(self, layout: Layout) -> frozenset[int]:
        """Families whose index is not a factor beside them, so that it has to be another axis."""
        found: set[int] = set()
        for segment in self.resolve(layout):
            for factor in segment:
                if factor in self._families:
                    beside = self.leaves((tuple(other for other in segment if other != factor),))
                    if not self.index_leaves(factor) <= beside:
                        found.add(factor)
                    for index, member in self._families[factor]:  # an index within the outer one's goes with it
                        found |= self._deeper(member, beside | self.leaves(((index,),)))
                elif factor in self._bound:
                    found |= self.loose_families(((factor,),))
        return frozenset(found)

    def _deeper(self, member: int, known: frozenset[int]) -> set[int]:
        return {inner for inner in self.loose_families(((member,),)) if not self.index_leaves(inner) <= known}

    def products(self, layout: Layout) -> tuple[tuple[int, ...], ...]:
        """The layout as a set of products of leaf atoms (outer first), one for every run of positions."""
        return tuple(
            tuple(atom for atom, size, _ in run.factors if size != 1) or tuple(atom for atom, *_ in run.factors[:1])
            for run in self.runs(layout)
        )

    def runs(self, layout: Layout) -> tuple[Run, ...]:
        """The layout as strided runs of positions; of a family whose index is another axis, the runs of all members."""
        found: list[Run] = []
        start = 0
        for segment in self.resolve(layout):
            found.extend(Run(run.offset + start, run.factors) for run in self._segment_runs(segment))
            start = start + self.segment_size(segment)
        return tuple(found)

    def _segment_runs(self, segment: Segment) -> list[Run]:
        strides: list[Size] = [1]
        for factor in reversed(segment):
            strides.insert(0, strides[0] * self._sizes[factor])
        choices: list[dict[int, Run]] = [{}]
        for late in (False, True):  # families last: which member it is depends on the runs of the others
            for k, factor in enumerate(segment):
                if self.is_family(factor) is late:
                    choices = [{**choice, k: run} for choice in choices for run in self._options(factor, choice)]
        return [_joined([choice[k] for k in range(len(segment))], strides[1:]) for choice in choices]

    def _options(self, factor: int, choice: dict[int, Run]) -> tuple[Run, ...]:
        if self.is_leaf(factor):
            return (Run(0, ((factor, self._sizes[factor], 1),)),)
        if not self.is_family(factor):
            return self.runs(self._factor(factor))
        chosen = frozenset(atom for run in choice.values() for atom, *_ in run.factors)
        special = self._specialised(factor, chosen)
        if special != factor and not self.is_family(special):
            return self.runs(((special,),))
        return tuple(dict.fromkeys(run for _, member in self._families[special] for run in self.runs(((member,),))))

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


def _joined(runs: list[Run], strides: list[Size]) -> Run:
    """The run that steps through all of these at once, outer first, each in units of its stride."""
    offset = sum((run.offset * stride for run, stride in zip(runs, strides, strict=True)), start=0)
    factors = tuple(
        (atom, size, step * stride)
        for run, stride in zip(runs, strides, strict=True)
        for atom, size, step in run.factors
    )
    return Run(offset, factors)
