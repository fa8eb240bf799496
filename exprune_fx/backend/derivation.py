"""Records what passes compute from a model's parameters, so that it can be computed again from other values.

The passes run once, on parameters without values; every operator that they call on one is written down. Nothing of a
pass is written a second time, and nothing that depends on values can slip in: there are none.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten
_PREFIX = "input_"
_SAME_VALUE = (_aten.detach.default, _aten.alias.default)


class Tape(TorchDispatchMode):
    """While it is entered, writes down every operator that is called on a watched tensor or on what came of one.

    Args:
        mode: that of the watched tensors.

    Attributes:
        graph: a placeholder for each tensor that was given to `watch`, and a node for each call; it has no output node.
        constants: the tensors with values that took part, by the names under which the graph reads them.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.graph = fx.Graph()
        self.constants: dict[str, Tensor] = {}
        self._mode = mode
        # Tensors stay alive beside their nodes: their ids must not be given to others.
        self._known: dict[int, tuple[Tensor, fx.Node]] = {}
        self._inputs: dict[int, fx.Node] = {}

    def watch(self, tensor: Tensor, place: int, dtype: torch.dtype | None = None) -> None:
        """Watches a tensor without values.

        Args:
            tensor: the tensor.
            place: which input it comes from; several may come from one.
            dtype: what the input is cast to, if it is not the tensor itself.
        """
        node = self._inputs.get(place)
        if node is None:
            node = self._inputs[place] = self.graph.placeholder(f"{_PREFIX}{place}")
        if dtype is not None:
            node = self.graph.call_function(_aten._to_copy.default, (node,), {"dtype": dtype})
        self._known[id(tensor)] = (tensor, node)

    @staticmethod
    def place_of(node: fx.Node) -> int:
        """Which input a placeholder of the graph is."""
        return int(str(node.target).removeprefix(_PREFIX))

    def node_of(self, tensor: Tensor) -> fx.Node:
        """The node of a watched tensor, or of what came of one; any other tensor is a constant."""
        found = self._known.get(id(tensor))
        if found is None:
            name = f"constant_{len(self.constants)}"
            self.constants[name] = tensor
            found = self._known[id(tensor)] = (tensor, self.graph.get_attr(name))
        return found[1]

    def __torch_dispatch__(
        self,
        func: Any,
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Calls the operator, and writes it down if it reads what is watched."""
        given = (args, dict(kwargs or {}))
        if not any(id(leaf) in self._known and isinstance(leaf, FakeTensor) for leaf in pytree.tree_leaves(given)):
            return func(*given[0], **given[1])
        fake_args, fake_kwargs = pytree.tree_map(self._without_values, given)
        result = func(*fake_args, **fake_kwargs)
        if func in _SAME_VALUE:
            self._known.setdefault(id(result), (result, self.node_of(args[0])))
        else:
            node_args, node_kwargs = pytree.tree_map(self._as_node, given)
            self._learn(result, self.graph.call_function(func, node_args, node_kwargs))
        return result

    def _without_values(self, value: Any) -> Any:
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor):
            return self._mode.from_tensor(value, static_shapes=True)
        return value

    def _as_node(self, value: Any) -> Any:
        return self.node_of(value) if isinstance(value, Tensor) else value

    def _learn(self, result: Any, node: fx.Node) -> None:
        if isinstance(result, Tensor):
            self._known.setdefault(id(result), (result, node))
        elif isinstance(result, tuple | list):
            for index, part in enumerate(result):
                if isinstance(part, Tensor):
                    self._learn(part, self.graph.call_function(operator.getitem, (node, index)))
