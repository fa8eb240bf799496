"""What the kept part has to take over from the removed one: constants into biases, and the scale of attention."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, fx

from exprune_fx.graph.edits import is_call, tensor_at
from exprune_fx.static.axes import kept_size, labels
from exprune_fx.static.constants import Propagation
from exprune_fx.static.units import Removal, sizes_of
from exprune_fx.symmetry import SymmetryReport

logger = logging.getLogger(__name__)
aten = torch.ops.aten

Constants: TypeAlias = Literal["exact", "mean", "drop"]
"""What becomes of a removed channel's constant. exact: it goes into the bias of what reads it where that is exact, and
counts as zero elsewhere (before a zero-padded convolution, a normalisation over channels). mean: before a zero-padded
convolution, too, as its mean over the output's positions. drop: it counts as zero everywhere."""

_CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
_PADDED = {aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding}
_READERS = {aten.linear.default} | _CONVOLUTIONS | _PADDED
_THROUGH_NAMES = """
view reshape _unsafe_view transpose permute unbind split select slice clone unsqueeze squeeze contiguous
"""
_THROUGH = {getattr(aten, name) for name in _THROUGH_NAMES.split()}


@dataclass(frozen=True)
class Folded:
    """Changes to the dense tensors, to be made before they are cut.

    Attributes:
        tensors: new values, by name.
        biases: new biases, by the name that they get: the layer's node, and the values for all its outputs.
        scaled: attention nodes the scale of which could not be folded: it has to be given.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    biases: Mapping[str, tuple[fx.Node, Tensor]] = field(default_factory=dict)
    scaled: frozenset[str] = frozenset()


def fold(
    gm: fx.GraphModule,
    report: SymmetryReport,
    removals: Sequence[Removal],
    constants: Constants,
    may_add: Callable[[str], bool],
) -> Folded:
    """Works out what the kept part takes over.

    Args:
        gm: the dense graph; it is not changed.
        report: its symmetries.
        removals: what goes.
        constants: see `Constants`.
        may_add: whether a bias of this name may be added to the model.
    """
    folder = _Folder(gm, report, removals, constants, may_add)
    if constants != "drop":
        folder.fold_constants()
    folder.keep_scales()
    return Folded(folder.tensors, folder.biases, frozenset(folder.scaled))


class _Folder:
    def __init__(
        self,
        gm: fx.GraphModule,
        report: SymmetryReport,
        removals: Sequence[Removal],
        constants: Constants,
        may_add: Callable[[str], bool],
    ) -> None:
        self._gm, self._report, self._removals = gm, report, removals
        self._constants, self._may_add = constants, may_add
        self.tensors: dict[str, Tensor] = {}
        self.biases: dict[str, tuple[fx.Node, Tensor]] = {}
        self.scaled: set[str] = set()

    # ------------------------------------------------------------------------------------------------ constants

    def fold_constants(self) -> None:
        """Adds what removed inputs give to the outputs of every linear layer and convolution."""
        state = Propagation(self._gm, self._report, self._removals)
        calls: dict[str, list[fx.Node]] = defaultdict(list)
        for node in self._gm.graph.nodes:
            if node.target in _READERS and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
                calls[str(node.args[1].target)].append(node)
        for weight, nodes in calls.items():
            with torch.no_grad():
                shifts = [self._shift(state, node) for node in nodes]
            known = [shift for shift in shifts if shift is not None]
            if not known or not any(shift.any() for shift in known):
                continue
            if len(known) < len(shifts) or any(not torch.allclose(shift, known[0]) for shift in known):
                logger.info("%s is read in several places with different constants, which are left out", weight)
                continue
            self._add(nodes, weight, known[0])

    def _shift(self, state: Propagation, node: fx.Node) -> Tensor | None:
        """What the removed inputs add to each output; None where that is not one number for each."""
        linear = node.target is aten.linear.default
        (source, kernel), value = node.args[:2], state.given(node.args[0])
        assert isinstance(source, fx.Node)
        assert isinstance(kernel, fx.Node)
        dim = -1 if linear else source.meta["val"].dim() - kernel.meta["val"].dim() + 1
        gone = state.removed(source, dim)
        if gone is None or not gone.any() or value is None:
            return None
        weight = state.parameter(kernel)
        assert weight is not None
        dim %= gone.dim()
        if any(size != 1 for i, size in enumerate(gone.shape) if i != dim):
            return None
        read = torch.where(gone, value, 0.0).nan_to_num(0.0)
        if any(size != 1 for i, size in enumerate(read.shape) if i != dim):
            return None
        if linear:
            return weight @ read.reshape(-1)
        taps = self._taps(node, weight)
        if taps is None:
            return None
        summed = (weight * taps).flatten(2).sum(2)
        groups = node.args[6] if len(node.args) > 6 else 1
        assert isinstance(groups, int)
        return torch.einsum("goc,gc->go", summed.unflatten(0, (groups, -1)), read.reshape(groups, -1)).reshape(-1)

    def _taps(self, node: fx.Node, weight: Tensor) -> Tensor | None:
        """For each tap of a kernel, at which share of the output's positions it sees the map; None: leave it out."""
        spatial = weight.dim() - 2
        stride, padding, dilation = (_each(node, i, default, spatial) for i, default in ((3, 1), (4, 0), (5, 1)))
        if padding is None and set(weight.shape[2:]) == {1}:
            padding = [0] * spatial
        if padding is not None and not any(padding):
            return torch.ones(weight.shape[2:], dtype=weight.dtype)
        if self._constants != "mean" or padding is None or stride is None or dilation is None:
            return None
        source = node.args[0]
        assert isinstance(source, fx.Node)
        share = torch.ones([1] * spatial, dtype=weight.dtype)
        for i in range(spatial):
            size, out = source.meta["val"].shape[i - spatial], node.meta["val"].shape[i - spatial]
            if not isinstance(size, int) or not isinstance(out, int):
                return None
            seen = torch.arange(out)[:, None] * stride[i] - padding[i]
            seen = seen + torch.arange(weight.shape[2 + i]) * dilation[i]
            along = ((seen >= 0) & (seen < size)).to(weight.dtype).mean(0)
            share = share * along.reshape([-1 if k == i else 1 for k in range(spatial)])
        return share

    def _add(self, nodes: list[fx.Node], weight: str, shift: Tensor) -> None:
        bias = nodes[0].args[2] if len(nodes[0].args) > 2 else None
        if isinstance(bias, fx.Node):
            if bias.op == "get_attr" and set(bias.users) == set(nodes):
                self._change(str(bias.target), shift)
            return
        norm = next(iter(nodes[0].users))
        alone = len(nodes) == len(nodes[0].users) == 1
        if alone and is_call(norm, aten.batch_norm.default) and norm.args[0] is nodes[0]:
            mean = norm.args[3]
            if isinstance(mean, fx.Node) and mean.op == "get_attr" and len(mean.users) == 1:
                self._change(str(mean.target), -shift)
                return
        groups = nodes[0].args[6] if len(nodes[0].args) > 6 else 1
        if groups != 1:  # rows of a grouped one may be chosen group by group
            members = [m for r in self._removals for m in r.group.members if m.target == weight and m.dim == 0]
            if any(member.index_runs for member in members):
                return
        name = weight.removesuffix("weight") + "bias"
        if weight.endswith("weight") and len(nodes) == 1 and self._may_add(name):
            held = tensor_at(self._gm, weight)
            self.biases[name] = (nodes[0], shift.to(held.device, held.dtype))

    def _change(self, name: str, shift: Tensor) -> None:
        old = self.tensors.get(name, tensor_at(self._gm, name).detach())
        self.tensors[name] = (old.to(torch.float64) + shift.to(old.device)).to(old.dtype)

    # -------------------------------------------------------------------------------------------------- scales

    def keep_scales(self) -> None:
        """Attention without a given scale divides by the root of its head dim: queries and keys make up for it."""
        sizes = sizes_of(self._removals)
        unifier = self._report.analysis.unifier
        done: set[str] = set()
        for node in self._gm.graph.nodes:
            if not is_call(node, aten.scaled_dot_product_attention.default) or _scale(node) is not None:
                continue
            axes = self._report.analysis.axes[node.args[0].name]
            before, after = unifier.size(axes[-1]), kept_size(unifier, axes[-1], sizes)
            if before == after:
                continue
            group = next((r.group for r in self._removals if set(r.group.atoms) & unifier.leaves(axes[-1])), None)
            if group is None or group.name in done or not self._fold_scale(node, group.name, after / before):
                self.scaled.add(node.name)
            if group is not None:
                done.add(group.name)

    def _fold_scale(self, node: fx.Node, name: str, ratio: float) -> bool:
        group = self._report.named(name)
        sources = [_source(argument) for argument in node.args[:2]]
        tensors = {
            str(argument.target)
            for source in sources
            if source is not None
            for argument in source.args[1:]
            if isinstance(argument, fx.Node) and argument.op == "get_attr" and len(argument.users) == 1
        }
        if None in sources or {member.target for member in group.members} - tensors:
            return False
        for member in group.members:
            old = self.tensors.get(member.target, tensor_at(self._gm, member.target).detach())
            axes = self._report.analysis.parameters[member.target]
            points = labels(self._report, axes, group, member.dim)
            if member.dim != 0 or len(points) != 1:
                return False
            power = (points[0] >= 0).to(old.device, torch.float64) / 4  # of the ratio: half of a root on either side
            self.tensors[member.target] = (old.to(torch.float64) * ratio**power).to(old.dtype)
        return True


def _scale(node: fx.Node) -> Any:
    return node.kwargs.get("scale", node.args[6] if len(node.args) > 6 else None)


def _source(argument: Any) -> fx.Node | None:
    """The linear layer that a value comes from through views alone."""
    while isinstance(argument, fx.Node) and argument.op == "call_function":
        if argument.target is aten.linear.default:
            return argument
        packet = getattr(argument.target, "overloadpacket", None)
        if packet not in _THROUGH and "getitem" not in str(argument.target):
            return None
        argument = argument.args[0]
    return None


def _each(node: fx.Node, position: int, default: int, count: int) -> list[int] | None:
    value: Any = node.args[position] if len(node.args) > position else default
    if isinstance(value, str):
        return [0] * count if value == "valid" else None
    if isinstance(value, Iterable):
        entries = list(value)
        return entries * count if len(entries) == 1 else entries
    return [value] * count
