"""Are the summands of a reduction exchangeable? Yes or no, with the reason."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import fx

from exprune_fx.errors import SymmetryError
from exprune_fx.symmetry.layouts import Layout, Segment, product
from exprune_fx.symmetry.report import SymmetryReport

aten = torch.ops.aten
_REDUCTIONS = {
    aten.linear.default, aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding,
    aten.conv3d.default, aten.conv3d.padding,
}  # fmt: skip


@dataclass(frozen=True)
class Exchangeability:
    """The verdict on one reduction.

    Attributes:
        exchangeable: the terms are one orbit of free groups, so that training treats them alike.
        reason: why, or why not, in words.
        terms: number of summands of one pre-activation (per convolution group).
        block: consecutive input features in one term (H * W after a flatten of channels, else 1).
        group: name of the group that permutes the terms, None where there is none or it takes several.
        groups: all free groups that move terms.
        orbits: sizes of the orbits of the terms, in order of position; empty where none moves.
    """

    exchangeable: bool
    reason: str
    terms: int
    block: int
    group: str | None
    groups: tuple[str, ...] = ()
    orbits: tuple[int, ...] = ()


def exchangeability(report: SymmetryReport, gm: fx.GraphModule, node: fx.Node | str) -> Exchangeability:
    """Whether the summands of a linear or convolution are exchangeable.

    They are where the axis that is summed over is one orbit of free groups: a free axis as a whole, a product of free
    factors (heads, head dims), or the channels of a flattened feature map, whose terms are then blocks of H * W inputs.

    Args:
        report: `symmetries(gm)`.
        gm: the analysed graph.
        node: a linear, conv1d, conv2d or conv3d of that graph, or its name.

    Raises:
        SymmetryError: the node is none of these, or is not in the analysed graph.
    """
    found = next((n for n in gm.graph.nodes if n is node or n.name == node), None)
    if found is None or found.target not in _REDUCTIONS or found.name not in report.analysis.axes:
        raise SymmetryError(
            f"node {node} is no linear or convolution of the analysed graph", hint="give a reduction of this graph"
        )
    weight = found.args[1]
    assert isinstance(weight, fx.Node)
    layout = report.analysis.unifier.resolve(report.analysis.axes[weight.name][1])
    total = int(weight.meta["val"].shape[1])
    if total == 1:
        return Exchangeability(False, "no: there is one term only", 1, 1, None)
    if len(layout) > 1:
        return _several_segments(report, layout, total)
    return _one_product(report, layout[0], total)


def _free_prefix(report: SymmetryReport, segment: Segment) -> list[int]:
    """Outer factors that are free, up to the first that is not."""
    unifier = report.analysis.unifier
    prefix: list[int] = []
    for atom in segment:
        if not unifier.is_leaf(atom) or unifier.pin_reason(atom) is not None:
            break
        prefix.append(atom)
    return prefix


def _one_product(report: SymmetryReport, segment: Segment, total: int) -> Exchangeability:
    unifier = report.analysis.unifier
    prefix = _free_prefix(report, segment)
    names = tuple(dict.fromkeys(_name(report, atom) for atom in prefix))
    if not prefix:
        return Exchangeability(False, _why_not(report, segment), total, 1, None)
    terms = int(product(unifier.size_of(atom) for atom in prefix))
    block = total // terms
    text = f"yes: the {terms} terms"
    text += f" (blocks of {block} positions)" if block > 1 else ""
    text += f" are members of {_listed(names)}, drawn alike at initialisation and trained alike"
    return Exchangeability(True, text, terms, block, names[0] if len(names) == 1 else None, names, (terms,))


def _why_not(report: SymmetryReport, segment: Segment) -> str:
    unifier = report.analysis.unifier
    leaves = [atom for product_ in unifier.products((segment,)) for atom in product_]
    free = dict.fromkeys(_name(report, atom) for atom in leaves if unifier.pin_reason(atom) is None)
    pinned = next(atom for atom in leaves if unifier.pin_reason(atom) is not None)
    reason = f"no: what the terms run over {unifier.pin_reason(pinned)}"
    return reason + (f"; exchangeable only within each of its positions, by {_listed(tuple(free))}" if free else "")


def _several_segments(report: SymmetryReport, layout: Layout, total: int) -> Exchangeability:
    unifier = report.analysis.unifier
    orbits: list[int] = []
    names: dict[str, None] = {}
    reasons: dict[str, None] = {}
    for segment in layout:
        prefix = _free_prefix(report, segment)
        whole = len(prefix) == len(segment)
        names.update(dict.fromkeys(_name(report, atom) for atom in prefix))
        reasons.update(
            (reason, None)
            for run in unifier.products((segment,))
            for atom in run
            if (reason := unifier.pin_reason(atom)) is not None
        )
        size = int(unifier.segment_size(segment))
        orbits.extend([size] if whole else [1] * size)
    if not names:
        return Exchangeability(False, f"no: what the terms run over {next(iter(reasons))}", total, 1, None)
    sizes = ", ".join(map(str, orbits[:8])) + (", ..." if len(orbits) > 8 else "")
    text = f"no: the terms come from {len(orbits)} orbits of sizes {sizes}; exchangeable only within each"
    text += f" (a part {next(iter(reasons))})" if reasons else ""
    return Exchangeability(False, text, total, 1, None, tuple(names), tuple(orbits))


def _name(report: SymmetryReport, atom: int) -> str:
    return next((group.name for group in report if atom in group.atoms), "a group of no parameter")


def _listed(names: tuple[str, ...]) -> str:
    return ("group " if len(names) == 1 else "groups ") + " and ".join(names)
