"""The graph that is compiled: Dynamo's inputs, the tensors that derive from its parameters, and the staged graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from exprune_fx.backend.derivation import Tape
from exprune_fx.backend.tracing import Traced
from exprune_fx.graph.edits import fake_mode_of, tensor_at, tensor_names
from exprune_fx.graph.verify import same_size
from exprune_fx.staging.pages import weights_of_fused

_aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Program:
    """A staged graph, and how its tensors come of Dynamo's inputs.

    Attributes:
        placeholders: Dynamo's, in order.
        outputs: Dynamo's results, as its graph has them.
        traced: Dynamo's graph in the dialect.
        staged: what the passes made of it.
        tape: what they computed from its parameters.
    """

    placeholders: Sequence[fx.Node]
    outputs: Sequence[Any]
    traced: Traced
    staged: fx.GraphModule
    tape: Tape

    @property
    def fake_mode(self) -> FakeTensorMode:
        """That of Dynamo's values."""
        mode = fake_mode_of(self.traced.gm)
        assert mode is not None
        return mode

    def derived(self) -> list[str]:
        """Targets of the staged graph that are no input of Dynamo's as it is, nor a constant."""
        return [name for name in tensor_names(self.staged) if self._node(name).op == "call_function"]

    def watched(self) -> list[int]:
        """Which of Dynamo's inputs these are computed from."""
        needed = _ancestors([self._node(name) for name in self.derived()])
        return sorted(Tape.place_of(node) for node in needed if node.op == "placeholder")

    def large(self) -> tuple[int, ...]:
        """Which of Dynamo's inputs are weights of fused operators as they are."""
        nodes = [self.tape.node_of(weight) for weight in weights_of_fused(self.staged)]
        return tuple(Tape.place_of(node) for node in nodes if node.op == "placeholder")

    def live(self) -> fx.GraphModule:
        """Takes Dynamo's inputs, and computes everything from them at each call."""
        build = _Builder(self)
        build.derivation(self.derived())
        build.body()
        return build.module()

    def frozen(self) -> fx.GraphModule:
        """Takes Dynamo's inputs and then the derived tensors."""
        build = _Builder(self)
        for name in self.derived():
            build.values[self._node(name)] = build.graph.placeholder(f"derived_{name.replace('.', '_')}")
        build.body()
        return build.module()

    def derivation(self) -> fx.GraphModule:
        """Takes Dynamo's inputs, and gives the derived tensors."""
        build = _Builder(self)
        build.derivation(self.derived())
        build.graph.output(tuple(build.values[self._node(name)] for name in self.derived()))
        return build.module()

    def _node(self, name: str) -> fx.Node:
        return self.tape.node_of(tensor_at(self.staged, name))


def _ancestors(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    due = list(nodes)
    while due:
        node = due.pop()
        if node not in found:
            found.add(node)
            due.extend(node.all_input_nodes)
    return found


class _Builder:
    """Writes one graph; `values` maps nodes of the tape and of the staged graph to nodes of it."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.graph = fx.Graph()
        self.values: dict[fx.Node, fx.Node] = {}
        self.inputs = []
        for node in program.placeholders:
            made = self.graph.placeholder(str(node.target))
            made.meta = dict(node.meta)
            self.inputs.append(made)
        for node in program.tape.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.inputs[Tape.place_of(node)]

    def derivation(self, names: Sequence[str]) -> None:
        """The calls of the tape that these tensors need."""
        needed = _ancestors([self.program._node(name) for name in names])
        for node in self.program.tape.graph.nodes:
            if node in needed and node.op != "placeholder":
                self.values[node] = self.graph.node_copy(node, self.values.__getitem__)

    def body(self) -> None:
        """The staged graph, and what the model writes to its inputs."""
        program = self.program
        inputs = iter(program.traced.inputs)
        for node in program.staged.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = self.inputs[next(inputs)]
            elif node.op == "get_attr":
                self.values[node] = self._tensor(program._node(str(node.target)))
            elif node.op == "call_function":
                self.values[node] = self.graph.node_copy(node, self.values.__getitem__)
        values: Any = program.staged.graph.output_node().args[0]
        results: Any = fx.node.map_arg(values, self.values.__getitem__)
        count = program.traced.outputs
        own = {
            value: self.graph.call_function(_aten.copy_.default, (self.inputs[place], value))
            for place, value in zip(program.traced.written, results[count:], strict=True)
        }
        kept = [
            own[result] if result in own else self._like(result, value, was)  # an input that is returned is that input
            for result, value, was in zip(results[:count], values[:count], program.outputs, strict=True)
        ]
        self.graph.output(tuple(kept))

    def _tensor(self, node: fx.Node) -> fx.Node:
        if node not in self.values:  # a constant
            self.values[node] = self.graph.node_copy(node, self.values.__getitem__)
        return self.values[node]

    def _like(self, result: Any, value: Any, was: Any) -> Any:
        """A result in the memory layout that the code behind it has seen when it was traced."""
        if not isinstance(result, fx.Node) or not isinstance(value, fx.Node) or not isinstance(was, fx.Node):
            return result
        now, then = value.meta.get("val"), was.meta.get("example_value")
        if not isinstance(now, Tensor) or not isinstance(then, Tensor):
            return result
        if all(map(same_size, now.stride(), then.stride())) or not then.is_contiguous():
            return result
        return self.graph.call_function(_aten.contiguous.default, (result,))

    def module(self) -> fx.GraphModule:
        """The graph with the constants that it reads."""
        root = nn.Module()
        for node in self.graph.nodes:
            if node.op == "get_attr":
                root.register_buffer(str(node.target), self.program.tape.constants[str(node.target)])
        return fx.GraphModule(root, self.graph)
