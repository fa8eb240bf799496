"""The smaller graph: tensors cut, sizes in arguments brought along, fake values computed anew and checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Node

from exprune_fx.errors import ShrinkError
from exprune_fx.graph.edits import copy_graph_module, recompile, run_fake, set_args, set_tensor, tensor_at
from exprune_fx.graph.verify import describe_node
from exprune_fx.static.axes import Sizes, kept_positions, kept_size
from exprune_fx.static.cuts import TensorCut
from exprune_fx.static.folding import Folded
from exprune_fx.symmetry import SymmetryReport
from exprune_fx.symmetry.layouts import Axes, as_size, same_size

aten = torch.ops.aten
MADE_BY = "shrink"
_Rule: TypeAlias = "Callable[[_Rewriter, Node, dict[str, Any]], None]"


def new_tensors(gm: fx.GraphModule, cuts: Mapping[str, TensorCut], folded: Folded) -> dict[str, Tensor]:
    """The tensors of the smaller model that differ from the old ones, each of the kind that the old one was."""
    found: dict[str, Tensor] = {}
    with torch.no_grad():
        for name in {**cuts, **folded.tensors}:
            old = tensor_at(gm, name)
            value = folded.tensors.get(name, old.detach())
            value = cuts[name](value) if name in cuts else value
            found[name] = nn.Parameter(value, old.requires_grad) if isinstance(old, nn.Parameter) else value
    return found


def rewrite(
    gm: fx.GraphModule,
    report: SymmetryReport,
    sizes: Sizes,
    tensors: Mapping[str, Tensor],
    biases: Mapping[str, tuple[Node, Tensor]],
    scaled: frozenset[str],
) -> fx.GraphModule:
    """A smaller copy of a graph; the given one is left as it is.

    Args:
        gm: the dense graph.
        report: its symmetries.
        sizes: what each atom keeps.
        tensors: the new tensors, by name.
        biases: new biases, cut, by name, with the node that is to read each.
        scaled: attention nodes that get the old scale as an argument.

    Raises:
        ShrinkError: a node's sizes cannot be brought along; the message names it.
    """
    small = copy_graph_module(gm)
    for name, tensor in tensors.items():
        set_tensor(small, name, tensor)
    nodes = {node.name: node for node in small.graph.nodes}
    for name, (reader, tensor) in biases.items():
        bias = set_tensor(small, name, tensor)
        node = nodes[reader.name]
        node.prepend(bias)
        set_args(node, (*node.args[:2], bias, *node.args[3:]), made_by=MADE_BY)
    rewriter = _Rewriter(report, sizes, scaled)
    for node in list(small.graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default  # which kernels take the new sizes, and their strides, is torch's choice
        if node.op == "call_function":
            rewriter.bring_along(small, node)
    return recompile(small)


class _Rewriter:
    def __init__(self, report: SymmetryReport, sizes: Sizes, scaled: frozenset[str]) -> None:
        self._report, self._sizes, self._scaled = report, sizes, scaled
        self._unifier = report.analysis.unifier
        self._letters = {event.node: event.letters for event in report.analysis.state.events}

    def bring_along(self, gm: fx.GraphModule, node: Node) -> None:
        """Gives a node the sizes that it has now, and the fake value that it then gives."""
        wanted = self._shapes(node)
        if node.target in _RULES and self._touched(node):
            arguments = _arguments(node)
            before = dict(arguments)
            _RULES[node.target](self, node, arguments)
            _set_changed(node, arguments, before)
        if not self._touched(node) and not any(self._touched(each) for each in node.all_input_nodes):
            return
        try:
            value = run_fake(gm, node.target, node.args, node.kwargs)  # type: ignore[arg-type] # callable: checked above
        except Exception as error:  # whatever an operator's fake implementation raises
            raise ShrinkError(
                f"{describe_node(node)} cannot be brought to the smaller sizes: {error}",
                hint="leave the groups that reach it out by ignore=",
            ) from error
        if not _fits(value, wanted):
            raise ShrinkError(
                f"{describe_node(node)} would give another shape than its axes say, {_listed(value)} for {wanted}",
                hint="leave the groups that reach it out by ignore=",
            )
        node.meta["val"] = value

    def _axes(self, node: Node) -> Any:
        return self._report.analysis.axes.get(node.name)

    def _touched(self, node: Node) -> bool:
        axes = self._axes(node)
        layouts = [each for a in axes for each in a] if isinstance(axes, list) else (axes or ())
        if any(self._unifier.leaves(layout) & self._sizes.keys() for layout in layouts):
            return True
        return any(
            isinstance(n, Node) and any(self._unifier.leaves(x) & self._sizes.keys() for x in _flat(self._axes(n)))
            for n in node.all_input_nodes
        )

    def _shapes(self, node: Node) -> Any:
        axes = self._axes(node)
        if axes is None:
            return None
        if isinstance(axes, list):
            return [self.shape(each) for each in axes]
        return self.shape(axes)

    def shape(self, axes: Axes) -> tuple[Any, ...]:
        """The new shape of a value."""
        return tuple(kept_size(self._unifier, layout, self._sizes) for layout in axes)

    def letter(self, node: Node, letter: str) -> int:
        """The new size of what an op's rule calls by a letter."""
        return int(kept_size(self._unifier, self._letters[node.name][letter], self._sizes))

    # --------------------------------------------------------------------------------------------------- rules

    def sizes(self, node: Node, arguments: dict[str, Any]) -> None:
        """A list of sizes: `view`, `expand`, `zeros`."""
        key = "size" if "size" in arguments else "shape"
        new = self.shape(self._axes(node))
        given = arguments[key]
        if len(given) != len(new):
            return
        arguments[key] = [_size(old, size) for old, size in zip(given, new, strict=True)]

    def groups(self, node: Node, arguments: dict[str, Any]) -> None:
        """Groups of a convolution."""
        if arguments["groups"] != 1:
            arguments["groups"] = self.letter(node, "g")

    def norm_groups(self, node: Node, arguments: dict[str, Any]) -> None:
        """Groups of a group norm."""
        if arguments["num_groups"] != 1:
            arguments["num_groups"] = self.letter(node, "g")

    def normalized(self, node: Node, arguments: dict[str, Any]) -> None:
        """The shape that a layer norm is over."""
        count = len(arguments["normalized_shape"])
        arguments["normalized_shape"] = list(self.shape(self._axes(node))[-count:])

    def pieces(self, node: Node, arguments: dict[str, Any]) -> None:
        """Sizes of the pieces that are split off."""
        results = self._axes(node)
        dim = arguments["dim"]
        sizes = [self.shape(axes)[dim] for axes in results]
        if "split_sizes" in arguments:
            arguments["split_sizes"] = sizes
        elif isinstance(arguments["split_size"], int) and isinstance(sizes[0], int):
            arguments["split_size"] = sizes[0]

    def bounds(self, node: Node, arguments: dict[str, Any]) -> None:
        """Start and end of a slice, in kept positions."""
        source, dim = node.args[0], arguments["dim"]
        assert isinstance(source, Node)
        for key in ("start", "end"):
            arguments[key] = self._moved(source, dim, arguments[key])

    def index(self, node: Node, arguments: dict[str, Any]) -> None:
        """The position that is selected."""
        source = node.args[0]
        assert isinstance(source, Node)
        arguments["index"] = self._moved(source, arguments["dim"], arguments["index"])

    def _moved(self, source: Node, dim: int, place: Any) -> Any:
        layout = self._axes(source)[dim]
        positions = kept_positions(self._unifier, layout, self._sizes)
        if positions is None or not isinstance(place, int):
            return place
        length = int(self._unifier.size(layout))
        at = place + length if place < 0 else min(place, length)
        moved = int((positions < at).sum())
        return place if place > length else moved if place >= 0 else moved - len(positions)

    def repeats(self, node: Node, arguments: dict[str, Any]) -> None:
        """How often each dim is repeated."""
        source = node.args[0]
        assert isinstance(source, Node)
        old = [1] * (len(arguments["repeats"]) - len(self._axes(source))) + list(self.shape(self._axes(source)))
        new = self.shape(self._axes(node))
        arguments["repeats"] = [
            n // o if isinstance(n, int) and isinstance(o, int) and isinstance(given, int) else given
            for n, o, given in zip(new, old, arguments["repeats"], strict=True)
        ]

    def shuffle(self, node: Node, arguments: dict[str, Any]) -> None:
        """Groups of a channel shuffle."""
        arguments["groups"] = self.letter(node, "g")

    def scale(self, node: Node, arguments: dict[str, Any]) -> None:
        """The scale of attention, as it was for the whole head dim."""
        if node.name in self._scaled and arguments["scale"] is None:
            query = self._axes(node.args[0])  # type: ignore[arg-type]
            arguments["scale"] = 1 / math.sqrt(int(self._unifier.size(query[-1])))


def _size(old: Any, new: Any) -> Any:
    """A size that is given: a number as a number; a formula that is another one now is left to be inferred."""
    if isinstance(old, int):
        return new if old != -1 and isinstance(new, int) else old
    return old if same_size(as_size(old.meta["val"]), new) else -1


def _flat(axes: Any) -> Sequence[Any]:
    return [each for a in axes for each in a] if isinstance(axes, list) else (axes or ())


def _arguments(node: Node) -> dict[str, Any]:
    assert isinstance(node.target, torch._ops.OpOverload)
    schema = node.target._schema.arguments
    found = {a.name: a.default_value for a in schema}
    found.update(zip((a.name for a in schema), node.args, strict=False))
    found.update(node.kwargs)
    return found


def _set_changed(node: Node, arguments: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    changed = [name for name in arguments if arguments[name] != before[name]]
    if not changed:
        return
    assert isinstance(node.target, torch._ops.OpOverload)
    plain = [a.name for a in node.target._schema.arguments if not a.kwarg_only]
    count = max([len(node.args), *(plain.index(name) + 1 for name in changed if name in plain)])
    args = tuple(arguments[name] for name in plain[:count])
    kwargs = {name: value for name, value in node.kwargs.items() if name not in plain[:count]}
    kwargs |= {name: arguments[name] for name in changed if name not in plain[:count]}
    set_args(node, args, kwargs, made_by=MADE_BY)


def _fits(value: Any, wanted: Any) -> bool:
    if wanted is None or value is None:
        return True
    if isinstance(wanted, list):
        return all(_fits(v, w) for v, w in zip(value, wanted, strict=True) if isinstance(v, Tensor) and v.numel() != 0)
    return len(value.shape) == len(wanted) and all(
        same_size(as_size(a), b) for a, b in zip(value.shape, wanted, strict=True)
    )


def _listed(value: Any) -> Any:
    return [tuple(v.shape) for v in value] if isinstance(value, (list, tuple)) else tuple(value.shape)


def _packets(names: str, rule: _Rule) -> dict[Any, _Rule]:
    found: dict[Any, _Rule] = {}
    for name in names.split():
        packet = getattr(aten, name, None)
        for overload in packet.overloads() if packet is not None else ():
            found[getattr(packet, overload)] = rule
    return found


_RULES: dict[Any, _Rule] = {
    **_packets("view reshape _unsafe_view expand broadcast_to", _Rewriter.sizes),
    **_packets("zeros ones full empty new_zeros new_ones new_full new_empty", _Rewriter.sizes),
    **_packets("conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d", _Rewriter.groups),
    **_packets("group_norm", _Rewriter.norm_groups),
    **_packets("layer_norm rms_norm", _Rewriter.normalized),
    **_packets("split split_with_sizes", _Rewriter.pieces),
    **_packets("slice", _Rewriter.bounds),
    **_packets("select", _Rewriter.index),
    **_packets("repeat", _Rewriter.repeats),
    **_packets("channel_shuffle", _Rewriter.shuffle),
    **_packets("scaled_dot_product_attention", _Rewriter.scale),
}
