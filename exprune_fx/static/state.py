"""What is known about a model in one round of shrinking, and what that round did to each of its groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor, fx

from exprune_fx.static.cost import CostModel
from exprune_fx.static.report import GroupReport
from exprune_fx.static.units import Bundle, Removal, outer_size
from exprune_fx.symmetry import SymmetryGroup, SymmetryReport


@dataclass(frozen=True)
class State:
    """One round's graph with all that is known about it.

    Attributes:
        graph: captured at the start of the round.
        report: its symmetries.
        cost: what it costs as members go.
        bundles: all groups; those with a reason are left whole.
        scores: of the criterion, by group name.
    """

    graph: fx.GraphModule
    report: SymmetryReport
    cost: CostModel
    bundles: tuple[Bundle, ...]
    scores: Mapping[str, Tensor]

    @property
    def candidates(self) -> tuple[Bundle, ...]:
        """Bundles that may lose members."""
        return tuple(bundle for bundle in self.bundles if not bundle.reason)

    def with_joint(self, joint: Bundle) -> State:
        """The same with one bundle in the place of those of its groups."""
        names = {group.name for group in joint.groups}
        rest = [bundle for bundle in self.bundles if bundle.groups[0].name not in names]
        # Named by its groups, it is none of the bundles that it is made of.
        return replace(self, bundles=(joint, *rest))

    def without(self, names: Mapping[str, str]) -> State:
        """The same with some bundles left whole, for a reason each."""
        return replace(
            self, bundles=tuple(replace(b, reason=names[b.name]) if b.name in names else b for b in self.bundles)
        )


def group_reports(state: State, removals: Sequence[Removal], before: Sequence[GroupReport]) -> tuple[GroupReport, ...]:
    """What this round did to each group, added to what earlier ones did."""
    gone = {removal.group.name: removal for removal in removals}
    earlier = {each.name: each for each in before}
    found = []
    for bundle in state.bundles:
        for group in bundle.groups:
            size = outer_size(group)
            old = earlier.get(group.name)
            kept, lost = _ranges(state, group, gone.get(group.name))
            count = sum(len(row) for row in gone[group.name].removed) if group.name in gone else 0
            found.append(
                GroupReport(
                    name=group.name,
                    members=old.members if old else group.repeats * size,
                    removed=count + (old.removed if old else 0),
                    layers=tuple(dict.fromkeys(member.target for member in group.members)),
                    score_removed=lost,
                    score_kept=kept,
                    reason=bundle.reason,
                )
            )
    return tuple(found)


def _ranges(
    state: State, group: SymmetryGroup, removal: Removal | None
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Lowest and highest score of what stays, and of what goes."""
    scores = state.scores.get(group.name)
    if scores is None:
        return None, None
    flat = scores.reshape(-1)
    if removal is None:
        return (float(flat.min()), float(flat.max())), None
    mask = removal.mask
    return tuple((float(part.min()), float(part.max())) for part in (flat[~mask], flat[mask]))  # type: ignore[return-value]
