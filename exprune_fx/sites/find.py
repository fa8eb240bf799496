"""Finds sites: walks back from each activation through affine operations to a reduction with a parameter as weight."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import fx

from exprune_fx.sites.nonnegative import is_nonnegative
from exprune_fx.sites.pooled import pool_window
from exprune_fx.sites.site import Activation, ConvGeometry, GatedProjection, Site, SiteKind
from exprune_fx.symmetry import SymmetryReport, exchangeability, symmetries

aten = torch.ops.aten

_REDUCTIONS: dict[object, SiteKind] = {
    aten.linear.default: "linear",
    aten.conv1d.default: "conv1d",
    aten.conv2d.default: "conv2d",
    aten.conv3d.default: "conv3d",
    aten.conv1d.padding: "conv1d",
    aten.conv2d.padding: "conv2d",
    aten.conv3d.padding: "conv3d",
}


def is_reduction(node: object) -> bool:
    """A linear layer or convolution of the dialect whose weight is a parameter."""
    return (
        isinstance(node, fx.Node)
        and node.target in _REDUCTIONS
        and isinstance(node.args[1], fx.Node)
        and node.args[1].op == "get_attr"
    )


# --- the activation ---------------------------------------------------------------------------------------------------


def _clamp_bounds(node: fx.Node) -> tuple[object, object]:
    low = node.args[1] if len(node.args) > 1 else node.kwargs.get("min", node.kwargs.get("min_val"))
    high = node.args[2] if len(node.args) > 2 else node.kwargs.get("max", node.kwargs.get("max_val"))
    if node.target == aten.hardtanh.default:
        low, high = (-1 if low is None else low), (1 if high is None else high)
    return low, high


def _clamp_kind(node: fx.Node) -> Activation | None:
    low, high = _clamp_bounds(node)
    if low != 0 or isinstance(low, bool):
        return None
    return "relu" if high is None else "relu6" if high == 6 else None


_ACTIVATIONS: dict[object, Callable[[fx.Node], Activation | None]] = {
    aten.relu.default: lambda _: "relu",
    aten.relu6.default: lambda _: "relu6",
    aten.hardtanh.default: _clamp_kind,
    aten.clamp.default: _clamp_kind,
    aten.clamp_min.default: _clamp_kind,
}


def _is_square_of(node: fx.Node, relu: fx.Node) -> bool:
    if node.target == aten.square.default:
        return True
    if node.target == aten.pow.Tensor_Scalar:
        return node.args[1] in (2, 2.0)
    return node.target == aten.mul.Tensor and node.args[0] is relu and node.args[1] is relu


def _activation_of(node: fx.Node) -> tuple[Activation, fx.Node] | None:
    """What activation this node is, and the node whose value a staged form would replace."""
    rule = _ACTIVATIONS.get(node.target)
    kind = rule(node) if rule else None
    if kind is None:
        return None
    users = list(node.users)
    if kind == "relu" and len(users) == 1 and _is_square_of(users[0], node):
        return "relu_squared", users[0]
    return kind, node


# --- the affine chain -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Chain:
    """The way back from an activation to its reduction."""

    reduction: fx.Node
    between: tuple[fx.Node, ...] = ()
    residual: fx.Node | None = None


def _same_shape(a: fx.Node, b: fx.Node) -> bool:
    return bool(a.meta["val"].shape == b.meta["val"].shape and a.meta["val"].dtype == b.meta["val"].dtype)


def _macs_per_output(chain: _Chain) -> int:
    weight = chain.reduction.args[1]
    assert isinstance(weight, fx.Node)
    return math.prod(weight.meta["val"].shape[1:])


def _walk_back(node: object) -> _Chain | None:
    """The reduction that ``node`` is an affine image of; None unless every value on the way has this one use."""
    if not isinstance(node, fx.Node) or len(node.users) != 1:
        return None
    if is_reduction(node):
        return _Chain(node)
    if node.target == aten.batch_norm.default and node.args[5] is False:
        return _extended(_walk_back(node.args[0]), node)
    if node.target == aten.add.Tensor and node.kwargs.get("alpha", 1) == 1:
        return _walk_back_add(node)
    return None


def _extended(chain: _Chain | None, node: fx.Node) -> _Chain | None:
    return None if chain is None else replace(chain, between=(node, *chain.between))


def _walk_back_add(node: fx.Node) -> _Chain | None:
    """Of ``a + b`` one side is the reduction, the other what is known: the reduction with more terms is worth more.

    Neither side is broadcast or promoted: a staged form has the shape and type of its reduction.
    """
    first, second = node.args
    if not (isinstance(first, fx.Node) and isinstance(second, fx.Node)) or first is second:
        return None
    candidates = [
        replace(chain, residual=other)
        for side, other in ((first, second), (second, first))
        if _same_shape(side, node)
        and _same_shape(other, node)
        and (chain := _walk_back(side)) is not None
        and chain.residual is None
    ]
    return _extended(max(candidates, key=_macs_per_output, default=None), node)


# --- the gated branch -------------------------------------------------------------------------------------------------


def _gated_projection(activation: fx.Node) -> GatedProjection | None:
    """``activation * linear(...)``, each with this one use."""
    users = list(activation.users)
    if len(users) != 1 or users[0].target != aten.mul.Tensor:
        return None
    product = users[0]
    other = product.args[1] if product.args[0] is activation else product.args[0]
    if not is_reduction(other) or not isinstance(other, fx.Node) or other.target != aten.linear.default:
        return None
    if len(other.users) != 1 or not _same_shape(other, activation):
        return None
    return GatedProjection(other.name, product.name)


# --- putting it together ----------------------------------------------------------------------------------------------


def _symmetric_padding(padding: object, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[int, ...] | None:
    """Padding in numbers; None if "same" would pad one side more than the other."""
    if padding == "valid":
        return (0,) * len(kernel)
    if padding == "same":
        totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return None if any(total % 2 for total in totals) else tuple(total // 2 for total in totals)
    return _per_dim(padding, len(kernel))


def _per_dim(value: object, dims: int) -> tuple[int, ...]:
    numbers = tuple(value) if isinstance(value, list | tuple) else (value,)
    return tuple(int(n) for n in (numbers * dims if len(numbers) == 1 else numbers))


def conv_geometry(node: fx.Node) -> ConvGeometry | None:
    """How this convolution walks; None if its padding has no symmetric numbers."""
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    kernel = tuple(int(size) for size in weight.meta["val"].shape[2:])
    defaults: tuple[object, ...] = (None, 1, 0, 1, 1)
    given = [*node.args[2:], *defaults[len(node.args) - 2 :]]
    stride, padding, dilation, groups = (
        node.kwargs.get(key, value)
        for key, value in zip(("stride", "padding", "dilation", "groups"), given[1:], strict=True)
    )
    steps = _per_dim(dilation, len(kernel))
    pads = _symmetric_padding(padding, kernel, steps)
    if pads is None:
        return None
    assert isinstance(groups, int)
    return ConvGeometry(_per_dim(stride, len(kernel)), pads, steps, groups)


def _norm_obstacle(chain: _Chain) -> str:
    """Why a batch norm of the chain is still there; "" if there is none."""
    node = chain.reduction
    norms = [step for step in chain.between if step.target == aten.batch_norm.default]
    if not norms:
        return ""
    if norms[-1].args[0] is not node:
        return "a value is added between it and its batch norm, which can then not be folded into its weight"
    if _REDUCTIONS[node.target] == "linear" and node.meta["val"].dim() > 2:
        return "its batch norm is over another axis than its outputs, and can not be folded into its weight"
    return "its batch norm is not folded into it (run the normalise passes first)"


def _obstacle(chain: _Chain, geometry: ConvGeometry | None, terms: int) -> str:
    node = chain.reduction
    kind = _REDUCTIONS[node.target]
    if obstacle := _norm_obstacle(chain):
        return obstacle
    if kind != "linear" and geometry is None:
        return 'its padding "same" pads one side more than the other'
    value, weight = node.args[0], node.args[1]
    assert isinstance(value, fx.Node)
    assert isinstance(weight, fx.Node)
    if kind != "linear" and value.meta["val"].dim() != weight.meta["val"].dim():
        return "its input has no batch dimension"
    if not weight.meta["val"].dtype.is_floating_point:
        return f"its weight is {weight.meta['val'].dtype}"
    return "" if terms > 1 else "it has one term only"


def _only_group(report: SymmetryReport, weight: str) -> str | None:
    """The group of the output axis, if it is one."""
    groups = report.groups_of(weight, 0)
    return groups[0].name if len(groups) == 1 else None


def _make_site(
    gm: fx.GraphModule,
    report: SymmetryReport,
    chain: _Chain,
    found: tuple[Activation, fx.Node],
    name: str,
) -> Site:
    node = chain.reduction
    weight = node.args[1]
    assert isinstance(weight, fx.Node)
    kind = _REDUCTIONS[node.target]
    geometry = None if kind == "linear" else conv_geometry(node)
    verdict = exchangeability(report, gm, node)
    activation, activation_node = found
    return Site(
        name=name,
        node=node.name,
        activation_node=activation_node.name,
        kind=kind,
        activation=activation,
        weight=str(weight.target),
        weight_shape=tuple(int(size) for size in weight.meta["val"].shape),
        terms=verdict.terms,
        block=verdict.block,
        geometry=geometry,
        chain=tuple(step.name for step in reversed(chain.between)),
        residual=chain.residual.name if chain.residual is not None else None,
        input_nonnegative=is_nonnegative(node.args[0]),
        gated=_gated_projection(activation_node),
        exchangeable=verdict.exchangeable,
        reason=verdict.reason,
        input_group=verdict.group,
        output_group=_only_group(report, str(weight.target)),
        obstacle=_obstacle(chain, geometry, verdict.terms),
        pool=pool_window(activation_node) if kind == "conv2d" else None,
    )


def find_sites(gm: fx.GraphModule, groups: SymmetryReport | None = None) -> tuple[Site, ...]:
    """Every Linear/Conv -> [batch norm] -> [+ residual] -> ReLU, ReLU6 or squared ReLU, in graph order.

    A pre-activation that anything else reads is no site: the rest of the graph would miss it. Gated feed-forwards,
    ``relu(a) * b``, are sites whose ``gated`` names the other branch.

    Args:
        gm: a captured graph, normalised or not.
        groups: its symmetries, if they are known already.
    """
    report = symmetries(gm) if groups is None else groups
    sites: list[Site] = []
    taken: dict[str, int] = {}
    for node in gm.graph.nodes:
        found = _activation_of(node)
        chain = _walk_back(node.args[0]) if found else None
        if found is None or chain is None:
            continue
        path = str(chain.reduction.meta.get("module_path") or chain.reduction.name)
        taken[path] = taken.get(path, 0) + 1
        name = path if taken[path] == 1 else f"{path}#{taken[path]}"
        sites.append(_make_site(gm, report, chain, found, name))
    return tuple(sites)
