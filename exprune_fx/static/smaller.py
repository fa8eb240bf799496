"""One removal worked out on the side: the smaller graph, its tensors and how they were cut. Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, fx, nn

from exprune_fx.graph import tensor_at
from exprune_fx.static.cuts import TensorCut, cut_of
from exprune_fx.static.folding import Constants, Folded, fold
from exprune_fx.static.plan import GroupPlan
from exprune_fx.static.rewrite import new_tensors, rewrite
from exprune_fx.static.units import Removal, sizes_of
from exprune_fx.symmetry import SymmetryReport


@dataclass(frozen=True)
class Smaller:
    """A smaller model, beside the old one.

    Attributes:
        graph: the smaller graph.
        cuts: how each tensor was cut, by name.
        tensors: the new tensors by name, those with folded constants too.
        biases: added biases by name.
        groups: what went of each group.
        module_groups: new number of groups of each convolution and group norm, by module path.
    """

    graph: fx.GraphModule
    cuts: Mapping[str, TensorCut]
    tensors: Mapping[str, Tensor]
    biases: Mapping[str, nn.Parameter]
    groups: tuple[GroupPlan, ...]
    module_groups: Mapping[str, int]


def smaller(
    gm: fx.GraphModule,
    report: SymmetryReport,
    removals: Sequence[Removal],
    constants: Constants,
    may_add: Callable[[str], bool],
) -> Smaller:
    """Works a removal out.

    Args:
        gm: the dense graph; it is not changed.
        report: its symmetries.
        removals: what goes.
        constants: what becomes of removed channels' constants.
        may_add: whether a bias of this name may be added.

    Raises:
        ShrinkError: what is left is no box, or a node's sizes cannot be brought along.
    """
    cuts: dict[str, TensorCut] = {}
    for node in gm.graph.nodes:
        if node.op != "get_attr":
            continue
        name = str(node.target)
        shape = tuple(tensor_at(gm, name).shape)
        cut = cut_of(report, name, report.analysis.axes[node.name], shape, removals)
        if cut is not None:
            cuts[name] = cut
    folded = fold(gm, report, removals, constants, may_add)
    biases = _cut_biases(folded, cuts)
    tensors = new_tensors(gm, cuts, folded)
    readers = {name: (folded.biases[name][0], bias) for name, bias in biases.items()}
    graph = rewrite(gm, report, sizes_of(removals), tensors, readers, folded.scaled)
    groups = tuple(
        GroupPlan(r.group.name, r.size, r.removed, tuple(dict.fromkeys(m.target for m in r.group.members)))
        for r in removals
    )
    return Smaller(graph, cuts, tensors, biases, groups, _module_groups(graph))


def _cut_biases(folded: Folded, cuts: Mapping[str, TensorCut]) -> dict[str, nn.Parameter]:
    """Added biases for the outputs that are left."""
    found: dict[str, nn.Parameter] = {}
    for name, (reader, shift) in folded.biases.items():
        weight = reader.args[1]
        assert isinstance(weight, fx.Node)
        cut = cuts.get(str(weight.target))
        value = shift
        for step in cut.steps if cut is not None else ():
            if step.dim == 0:
                assert len(step.shape) == 1
                value = value[list(step.index)]
        found[name] = nn.Parameter(value.clone())
    return found


def _module_groups(graph: fx.GraphModule) -> dict[str, int]:
    found: dict[str, int] = {}
    for node in graph.graph.nodes:
        packet = str(getattr(node.target, "overloadpacket", ""))
        if packet.startswith("aten.conv") and isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr":
            groups = node.args[6] if len(node.args) > 6 else 1  # of transposed ones too
            found[str(node.args[1].target).rpartition(".")[0]] = int(groups)
        elif packet == "aten.group_norm":
            found[node.meta["module_path"]] = int(node.args[1])
    return found
