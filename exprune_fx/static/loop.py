"""The rounds of one call of `shrink`: score, choose, try out, bind, train."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import fx, nn

from exprune_fx.errors import ShrinkError
from exprune_fx.static.cost import CostModel, graph_cost
from exprune_fx.static.criteria import Criterion, Scene
from exprune_fx.static.folding import Constants
from exprune_fx.static.plan import ChannelPlan, Round
from exprune_fx.static.report import GroupReport, ShrinkReport
from exprune_fx.static.select import Limits, Ranked, Ranking, by_fraction, choose, ranked
from exprune_fx.static.smaller import Smaller, smaller
from exprune_fx.static.state import State, group_reports
from exprune_fx.static.subject import Subject
from exprune_fx.static.trial import given_sizes, refuse
from exprune_fx.static.units import Bundle, Removal, bundles, outer_size, sizes_of, together
from exprune_fx.symmetry import SymmetryGroup, SymmetryReport, symmetries

Schedule = Callable[[float], float]


@dataclass(frozen=True)
class Shrunk:
    """What `shrink` gives.

    Attributes:
        model: the user's module, smaller; or the new graph, where a graph was given.
        plan: what was removed; it replays on a fresh model.
        report: figures per group and in total; printing it gives a table.
    """

    model: nn.Module
    plan: ChannelPlan
    report: ShrinkReport


@dataclass(frozen=True)
class Request:
    """What is asked for; see `exprune_fx.static.shrink.shrink`.

    Attributes:
        criterion: scores the members.
        metric: what the target is about.
        remaining: the fraction of it that may remain.
        ranking: all members together, or the same fraction of every bundle.
        normalise: scores count as multiples of their group's mean.
        limits: what may not go; its ratios are filled in per bundle.
        ratios: fractions removed, by the start of group names.
        ignore: what is left whole.
        constants: what becomes of removed channels' constants.
        fixed: what to do about groups that the model's own code fixes the size of.
        steps: rounds.
        schedule: from progress of the rounds to the share of the removal.
        finetune: called after every round.
    """

    criterion: Criterion
    metric: Literal["flops", "params", "members"]
    remaining: float
    ranking: Ranking
    normalise: bool
    limits: Limits
    ratios: Mapping[str, float]
    ignore: tuple[str, ...]
    constants: Constants
    fixed: Literal["raise", "keep"]
    steps: int
    schedule: Schedule
    finetune: Callable[[nn.Module, int], object] | None


class Loop:
    """The rounds of one call."""

    def __init__(self, subject: Subject, request: Request) -> None:
        self._subject, self._request = subject, request

    def run(self) -> Shrunk:
        """Runs all rounds."""
        request, subject = self._request, self._subject
        rounds: list[Round] = []
        dense: tuple[int, int] | None = None
        reports: tuple[GroupReport, ...] = ()
        small: Smaller | None = None
        left = 1.0
        for step in range(request.steps):
            state = self._state(subject.graph())
            dense = dense or (state.cost.params({}), state.cost.flops({}))
            goal = 1 - (1 - request.remaining) * request.schedule((step + 1) / request.steps)
            state, removals, small = self._round(state, dense, goal, left)
            left = goal
            rounds.append(subject.commit(state.graph, small))
            reports = group_reports(state, removals, reports)
            if request.finetune is not None:
                request.finetune(subject.model, step)
        assert dense is not None
        assert small is not None
        params, flops = graph_cost(small.graph)
        report = ShrinkReport(
            criterion=type(request.criterion).__name__,
            params_before=dense[0],
            params_after=params,
            flops_before=dense[1] / subject.examples,
            flops_after=flops / subject.examples,
            groups=reports,
            rounds=request.steps,
        )
        return Shrunk(subject.model, ChannelPlan(tuple(rounds), subject.kind), report)

    def _state(self, gm: fx.GraphModule) -> State:
        report = symmetries(gm)
        found = [self._ignored(bundle) for bundle in bundles(gm, report)]
        for pattern in self._request.ignore:
            if not any(_under(name, pattern) for group in report for name in _names(group)):
                raise ShrinkError(
                    f"ignore names {pattern!r}, which is in no group",
                    hint="give module paths, or names of tensors or groups",
                )
        if not any(not bundle.reason for bundle in found):
            raise ShrinkError(
                f"the model has no group that can be removed: {_why(report, found)}",
                hint="ex.symmetries(gm) lists every group and what pins it",
            )
        groups = tuple(group for bundle in found if not bundle.reason for group in bundle.groups)
        scores = self._request.criterion.scores(Scene(gm, report, groups))
        return State(gm, report, CostModel(gm, report), tuple(found), scores)

    def _ignored(self, bundle: Bundle) -> Bundle:
        for pattern in self._request.ignore:
            if any(_under(name, pattern) for group in bundle.groups for name in _names(group)):
                return replace(bundle, reason=f"ignored: {pattern}")
        return bundle

    def _round(
        self, state: State, dense: tuple[int, int], goal: float, left: float
    ) -> tuple[State, tuple[Removal, ...], Smaller]:
        """Chooses and tries out until the model's own code agrees."""
        removals = self._choose(state, dense, goal, left)
        small = self._smaller(state, removals)
        trial = self._subject.trial(state.graph, small)
        if not trial.problem:
            return state, removals, small
        blamed = self._blamed(state, removals)
        if self._request.fixed == "raise" or not blamed:
            names = [bundle.groups[0].name for bundle in state.bundles if bundle.name in blamed]
            raise refuse(trial, names, given_sizes(state.graph, small.graph))
        return self._round(self._joined(state, blamed), dense, goal, left)

    def _joined(self, state: State, blamed: Mapping[str, str]) -> State:
        """Leaves the blamed bundles whole, but for those that the code lets lose the same fraction together.

        `reshape(batch, tokens, dim)` behind attention ties heads times head dim to the residual stream: with as many
        heads, both may shrink by the same fraction.
        """
        bundles = [bundle for bundle in state.bundles if bundle.name in blamed]
        outer = {atom for bundle in bundles for group in bundle.groups for atom in group.indices}
        inner = [bundle for bundle in bundles if not outer & {atom for g in bundle.groups for atom in g.atoms}]
        joint = together(inner)
        if len(inner) > 1 and joint.size > 1:
            removals = ranked(joint, state.scores, self._request.normalise).removals(1)
            if not self._subject.trial(state.graph, self._smaller(state, removals)).problem:
                return state.with_joint(joint).without(blamed)
        return state.without(blamed)

    def _blamed(self, state: State, removals: Sequence[Removal]) -> dict[str, str]:
        """Bundles that the model's own code cannot lose members of even alone, and why.

        Where they are to be kept whole, those of which nothing goes yet are tried too: they may be next.
        """
        found: dict[str, str] = {}
        for bundle in state.candidates:
            names = {group.name for group in bundle.groups}
            alone = tuple(removal for removal in removals if removal.group.name in names)
            if not alone and self._request.fixed == "keep":
                alone = ranked(bundle, state.scores, self._request.normalise).removals(1)
            if alone:
                trial = self._subject.trial(state.graph, self._smaller(state, alone))
                if trial.problem:
                    found[bundle.name] = f"the model's code fixes its size ({trial.where or trial.problem})"
        return found

    def _smaller(self, state: State, removals: Sequence[Removal]) -> Smaller:
        return smaller(state.graph, state.report, removals, self._request.constants, self._subject.may_add)

    def _choose(self, state: State, dense: tuple[int, int], goal: float, left: float) -> tuple[Removal, ...]:
        request = self._request
        candidates = [ranked(bundle, state.scores, request.normalise) for bundle in state.candidates]
        limits = replace(request.limits, ratios=self._ratios(state, candidates))
        if request.metric == "members" and request.ranking == "layer":
            return by_fraction(candidates, 1 - goal / left, limits)
        total = sum(_members(c.bundle) for c in candidates) or 1

        def remaining(removals: Sequence[Removal]) -> float:
            if request.metric == "members":
                gone = sum(len(row) for removal in removals for row in removal.removed)
                return left * (1 - gone / total)
            sizes = sizes_of(removals)
            if request.metric == "params":
                return state.cost.params(sizes) / dense[0]
            return state.cost.flops(sizes) / dense[1]

        return choose(candidates, remaining, goal, request.ranking, limits)

    def _ratios(self, state: State, candidates: Sequence[Ranked]) -> dict[str, float]:
        """The requested ratios by bundle."""
        found: dict[str, float] = {}
        for pattern, fraction in self._request.ratios.items():
            matching = [c.bundle.name for c in candidates if any(_under(g.name, pattern) for g in c.bundle.groups)]
            if not matching:
                whole = [b.reason for b in state.bundles if any(_under(g.name, pattern) for g in b.groups)]
                pinned = [f"it {g.reason}" for g in state.report if not g.free and _under(g.name, pattern)]
                reason = next(iter(whole + pinned), "no group has this name")
                raise ShrinkError(
                    f"ratios name {pattern!r}, of which nothing can be removed: {reason}",
                    hint="ex.symmetries(gm) lists every group and what pins it",
                )
            found.update(dict.fromkeys(matching, fraction))
        return found


def _names(group: SymmetryGroup) -> list[str]:
    return [group.name, *(member.target for member in group.members)]


def _under(name: str, pattern: str) -> bool:
    """Whether a tensor or group is the named one, or lies in the named module."""
    return name == pattern or name.startswith((f"{pattern}.", f"{pattern}["))


def _why(report: SymmetryReport, found: Sequence[Bundle]) -> str:
    reasons = [f"{bundle.name}: {bundle.reason}" for bundle in found]
    reasons += [f"{group.name} {group.reason}" for group in report if not group.free]
    return "; ".join(reasons[:3]) + (f"; and {len(reasons) - 3} more" if len(reasons) > 3 else "")


def _members(bundle: Bundle) -> int:
    return sum(group.repeats * outer_size(group) for group in bundle.groups)
