"""Reads a staged site back from its readable nodes: what one fused operator has to be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from exprune_fx.graph.edits import is_call

aten = torch.ops.aten
exprune = torch.ops.exprune

UNKNOWN = "its staged nodes are not the ones that staging writes"


@dataclass(frozen=True, eq=False)
class ReadableSite:
    """One staged site as its nodes say it.

    Attributes:
        finish: the node of the activation.
        x: the node of the input.
        weight: the node of the weight.
        bias: the node of the bias, or None.
        residual: the node of what is added before the activation, or None.
        geometry: stride, padding, dilation and groups; nothing for a linear layer.
        activation: what the pre-activation meets.
        down: the node of a principal head's first factor, or None.
        up: the node of its second factor, or None.
        codes: the node of a coded head's codes, or None.
        scales: the node of their scales, or None.
        stages: terms seen at each test, or the rank, or all terms of a coded head.
        block: input features in one term (1 where the guard does not count terms).
        guard: the stop rule as the fused operators name it.
        number: its threshold or quantile; 0 where it has none.
        limits: per stage, the nodes of its numbers per output.
        window: of the max pool in which neurons are rivals, rows and columns; empty where they are none.
    """

    finish: fx.Node
    x: fx.Node
    weight: fx.Node
    bias: fx.Node | None
    residual: fx.Node | None
    geometry: tuple[Any, ...]
    activation: str
    down: fx.Node | None = None
    up: fx.Node | None = None
    codes: fx.Node | None = None
    scales: fx.Node | None = None
    stages: tuple[int, ...] = ()
    block: int = 1
    guard: str = "none"
    number: float = 0.0
    limits: tuple[tuple[fx.Node, ...], ...] = ()
    window: tuple[int, ...] = ()

    @property
    def is_linear(self) -> bool:
        """A linear layer, not a convolution."""
        return not self.geometry

    @property
    def has_prefix(self) -> bool:
        """Its head sums the first terms."""
        return self.down is None and self.codes is None


def read_site(finish: fx.Node) -> ReadableSite | None:
    """The site that this finish node ends, or None if its nodes are not the ones that staging writes."""
    if is_call(finish, exprune.finish_linear_relu.default):
        x, weight, bias, residual, partial, stopped, start, activation = finish.args
        geometry: tuple[Any, ...] = ()
    elif is_call(finish, exprune.finish_conv_relu.default):
        x, weight, bias, residual, partial, stopped, *walk, start, activation = finish.args
        geometry = tuple(walk)
    else:
        return None
    if not (isinstance(x, fx.Node) and isinstance(weight, fx.Node) and isinstance(stopped, fx.Node)):
        return None
    site = ReadableSite(finish, x, weight, _node_or_none(bias), _node_or_none(residual), geometry, str(activation))
    guards = _guards(stopped)
    head = _prefix(site, guards, partial, start) if partial is not None else _estimate(site, guards)
    return None if head is None else _with_guard(head, guards)


def _node_or_none(value: object) -> fx.Node | None:
    return value if isinstance(value, fx.Node) else None


def _guards(stopped: fx.Node) -> list[fx.Node]:
    """The guards' nodes, the first stage's first."""
    later: list[fx.Node] = []
    while is_call(stopped, aten.logical_or.default):
        earlier, guard = stopped.args
        assert isinstance(earlier, fx.Node)
        assert isinstance(guard, fx.Node)
        later.append(guard)
        stopped = earlier
    return [stopped, *reversed(later)]


# --- heads ------------------------------------------------------------------------------------------------------------


def _prefix(site: ReadableSite, guards: list[fx.Node], last: object, start: object) -> ReadableSite | None:
    """The stages, in features or channels, if each sum goes on where the one before it ends."""
    target = exprune.partial_linear.default if site.is_linear else exprune.partial_conv.default
    sums = [guard.args[0] for guard in guards]
    if sums[-1] is not last:
        return None
    stages: list[int] = []
    before: object = None
    for node in sums:
        if not isinstance(node, fx.Node) or not is_call(node, target):
            return None
        *read, first, stop, partial = node.args
        if read != [site.x, site.weight, *site.geometry] or partial is not before:
            return None
        if first != (stages[-1] if stages else 0) or not isinstance(stop, int):
            return None
        stages.append(stop)
        before = node
    return replace(site, stages=tuple(stages)) if stages[-1] == start else None


def _estimate(site: ReadableSite, guards: list[fx.Node]) -> ReadableSite | None:
    """A head behind which survivors are computed from nothing, if it reads the site's input as the site does."""
    head = guards[0].args[0] if len(guards) == 1 else None
    if not isinstance(head, fx.Node) or not is_call(head, *_ESTIMATES[site.is_linear]):
        return None
    x, first, second, *walk = head.args
    if x is not site.x or tuple(walk) != site.geometry[:3]:
        return None
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)):
        return None
    if not is_call(head, exprune.coded_conv.default):
        return replace(site, down=first, up=second, stages=(int(first.meta["val"].shape[0]),))
    shape = site.weight.meta["val"].shape
    if first.meta["val"].shape != shape or first.op != "get_attr" or second.op != "get_attr":
        return None
    return replace(site, codes=first, scales=second, stages=(int(shape[1]),))


_ESTIMATES = {
    True: (exprune.principal_linear.default,),
    False: (exprune.principal_conv.default, exprune.coded_conv.default),
}  # of a linear layer, of a convolution


# --- guards -----------------------------------------------------------------------------------------------------------


def _with_guard(site: ReadableSite, guards: list[fx.Node]) -> ReadableSite | None:
    """The site with its stop rule, if every stage has the same one and it looks at this site's own values."""
    read = _READERS.get(guards[0].target)
    if read is None or any(guard.target != guards[0].target for guard in guards):
        return None
    found = [read(site, guard, index) for index, guard in enumerate(guards)]
    first = found[0]
    if first is None or any(each is None for each in found):
        return None
    rows = tuple(each.limits[0] for each in found if each is not None and each.limits)
    if any(each is not None and _numbers(each) != _numbers(first) for each in found):
        return None
    stages = tuple(stage // first.block for stage in site.stages) if site.has_prefix else site.stages
    return replace(first, limits=rows, stages=stages)


def _numbers(site: ReadableSite) -> tuple[object, ...]:
    """What one rule has for all stages."""
    return site.block, site.number, site.window


def _is_constant(site: ReadableSite, node: object) -> bool:
    """Whether this is what is known of the site before any term."""
    if site.bias is None and site.residual is None:
        return node is None
    known = [site.bias, site.residual, 0 if site.is_linear else site.weight.meta["val"].dim() - 2]
    return is_call(node, exprune.constant_term.default) and isinstance(node, fx.Node) and list(node.args) == known


def _counted(site: ReadableSite, guard: fx.Node, index: int, name: str) -> ReadableSite | None:
    """A rule whose last arguments are the constant, the terms seen, all terms, and one number."""
    constant, seen, terms, number = guard.args[-4:]
    if not (isinstance(seen, int) and isinstance(terms, int) and isinstance(number, int | float)):
        return None
    block, rest = divmod(int(site.weight.meta["val"].shape[1]), terms)
    if rest or not site.has_prefix or seen * block != site.stages[index] or not _is_constant(site, constant):
        return None
    if not site.is_linear and block != 1:
        return None
    return replace(site, guard=name, number=float(number), block=block)


def _threshold(site: ReadableSite, guard: fx.Node, index: int) -> ReadableSite | None:
    return _counted(site, guard, index, "threshold")


def _statistical(name: str) -> Callable[[ReadableSite, fx.Node, int], ReadableSite | None]:
    def read(site: ReadableSite, guard: fx.Node, index: int) -> ReadableSite | None:
        found = _counted(site, guard, index, name)
        return found if found is not None and _are_squares(found, guard.args[1], index) else None

    return read


def _are_squares(site: ReadableSite, node: object, index: int) -> bool:
    """Whether this is the running sum of squares up to a stage."""
    target = exprune.squares_linear.default if site.is_linear else exprune.squares_conv.default
    per_term = [site.block] if site.is_linear else []
    for stage in range(index, -1, -1):
        if not isinstance(node, fx.Node) or not is_call(node, target):
            return False
        first = site.stages[stage - 1] if stage else 0
        if list(node.args[:-1]) != [site.x, site.weight, *site.geometry, first, site.stages[stage], *per_term]:
            return False
        node = node.args[-1]
    return node is None


def _calibrated(site: ReadableSite, guard: fx.Node, index: int) -> ReadableSite | None:  # noqa: ARG001 - as the others
    _, constant, thresholds = guard.args
    if not _is_constant(site, constant) or not isinstance(thresholds, fx.Node) or thresholds.op != "get_attr":
        return None
    return replace(site, guard="calibrated", limits=((thresholds,),))


def _pooled(site: ReadableSite, guard: fx.Node, index: int) -> ReadableSite | None:
    _, constant, thresholds, margins, window, earlier = guard.args
    if not (isinstance(thresholds, fx.Node) and isinstance(margins, fx.Node) and isinstance(window, list | tuple)):
        return None
    if not (_is_constant(site, constant) and thresholds.op == margins.op == "get_attr"):
        return None
    if earlier is not _stopped_before(guard, index):
        return None
    sizes = tuple(size for size in window if isinstance(size, int))
    return replace(site, guard="pooled", limits=((thresholds, margins),), window=sizes)


def _stopped_before(guard: fx.Node, index: int) -> object:
    """Who had stopped before this guard's stage: what it is joined with; None at the first stage."""
    joined = [user for user in guard.users if is_call(user, aten.logical_or.default) and user.args[1] is guard]
    return joined[0].args[0] if index and len(joined) == 1 else None


def _bound(site: ReadableSite, guard: fx.Node, index: int) -> ReadableSite | None:
    _, constant, rest, rest_input, whole, whole_input, elements = guard.args
    first = site.stages[index] if site.has_prefix else 0
    weight = site.weight.meta["val"]
    if not (isinstance(rest, fx.Node) and isinstance(whole, fx.Node) and rest.op == whole.op == "get_attr"):
        return None
    if not (_is_constant(site, constant) and elements == weight[0].numel()) or site.codes is not None:
        return None
    if not (_is_input_norm(site, rest_input, first) and _is_input_norm(site, whole_input, 0)):
        return None
    return replace(site, guard="bound", limits=((rest, whole),))


def _is_input_norm(site: ReadableSite, node: object, first: int) -> bool:
    shape = site.weight.meta["val"].shape
    if site.is_linear:
        target = exprune.input_norm_linear.default
        read: list[Any] = [site.x]
    else:
        target = exprune.input_norm_conv.default
        groups = site.geometry[3]
        read = [site.x, list(shape[2:]), *site.geometry, shape[0] // groups]
    return is_call(node, target) and isinstance(node, fx.Node) and list(node.args) == [*read, first, shape[1]]


_READERS: dict[object, Callable[[ReadableSite, fx.Node, int], ReadableSite | None]] = {
    exprune.guard_threshold.default: _threshold,
    exprune.guard_stats_test.default: _statistical("stats_test"),
    exprune.guard_finite_population.default: _statistical("finite_population"),
    exprune.guard_calibrated.default: _calibrated,
    exprune.guard_pooled.default: _pooled,
    exprune.guard_bound.default: _bound,
}
