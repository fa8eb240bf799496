"""The GraphModule that holds a graph in the dialect: its own module tree around shared tensors."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor, fx, nn
from torch.fx.graph import PythonCode, _PyTreeCodeGen
from torch.fx.graph_module import _forward_from_src
from torch.fx.node import Node

from exprune_fx.errors import ExpruneError
from exprune_fx.graph._codegen import READER, DialectCodeGen, attribute_of, with_direct_reads
from exprune_fx.graph._inputs import InputCheck

CONSTANTS_KEY = "exprune_constants"
ALIASES_KEY = "exprune_aliases"


class DialectModule(fx.GraphModule):
    """An `fx.GraphModule` whose deep copy keeps the input check, and does not deep-copy fake values and tree specs.

    What it runs is its ``code``, which reads tensors in a faster way (`with_direct_reads`).
    """

    def recompile(self) -> PythonCode:
        """Makes ``forward`` of the graph anew; the code, as it is to be read."""
        code = super().recompile()
        direct = with_direct_reads(code.src, tensor_names(self))
        # Where the profiler is to find code under its file's name, the code stays as it is.
        if direct != code.src and "_RecordFunctionFast" not in direct:
            type(self).forward = _forward_from_src(direct, {**code.globals, READER: attribute_of})
        if "__call__" in vars(type(self)):  # fx's: it tells of errors in generated code, and costs a call microseconds
            del type(self).__call__
        return code

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> fx.GraphModule:
        memo = {} if memo is None else memo
        result = copy_graph_module(self)
        memo[id(self)] = result
        for module in result.modules():
            module._parameters.update({k: copy.deepcopy(v, memo) for k, v in module._parameters.items()})
            module._buffers.update({k: copy.deepcopy(v, memo) for k, v in module._buffers.items()})
        return result


def tensor_at(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer that `module` holds under a dotted name.

    Raises:
        ExpruneError: there is nothing under that name, or it is not a tensor.
    """
    value: object = module
    for part in name.split("."):
        value = getattr(value, part, None)
    if not isinstance(value, Tensor):
        raise ExpruneError(f"{name!r} holds {type(value).__name__}, not a tensor", hint="name a parameter or buffer")
    return value


def tensor_names(gm: fx.GraphModule) -> tuple[str, ...]:
    """The get_attr targets, in the order of the graph, each once."""
    return tuple(dict.fromkeys(str(n.target) for n in gm.graph.nodes if n.op == "get_attr"))


def assemble(
    graph: fx.Graph, tensors: Mapping[str, Tensor], constants: Collection[str], meta: Mapping[str, Any]
) -> fx.GraphModule:
    """A GraphModule in eval mode that owns a fresh module tree around `graph` and shares the given tensor objects.

    Args:
        graph: the graph, with its pytree code generator.
        tensors: one tensor for every get_attr target.
        constants: the targets that become non-persistent buffers.
        meta: what to put into the module's ``meta``.
    """
    codegen = graph._codegen
    if isinstance(codegen, _PyTreeCodeGen) and not isinstance(codegen, DialectCodeGen):
        graph.set_codegen(DialectCodeGen(codegen.pytree_info))
    root = {str(n.target): tensors[str(n.target)] for n in graph.nodes if n.op == "get_attr"}
    gm = DialectModule(root, graph, "GraphModule")
    for name in constants:
        if name in root:
            prefix, _, field = name.rpartition(".")
            gm.get_submodule(prefix)._non_persistent_buffers_set.add(field)
    gm.meta.update(meta)
    return gm.eval()


def copy_graph_module(gm: fx.GraphModule) -> fx.GraphModule:
    """A copy whose graph and module tree are its own; tensors are shared, all metadata and the input check are kept."""
    graph = fx.Graph()
    nodes: dict[Node, Node] = {}
    for node in gm.graph.nodes:  # Graph.graph_copy would leave out the output node's metadata
        nodes[node] = graph.node_copy(node, nodes.__getitem__)
    # A shallow copy on purpose: the specs are immutable, and deep-copying a LeafSpec warns.
    graph.set_codegen(copy.copy(gm.graph._codegen))
    tensors = {name: tensor_at(gm, name) for name in tensor_names(gm)}
    result = assemble(graph, tensors, gm.meta.get(CONSTANTS_KEY, ()), gm.meta)
    check = InputCheck.of(gm)
    if check is not None:
        check.attach(result)
    return result
