"""Writes the casts that autocast would make into Dynamo's graph, so that what is made of it runs without autocast."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from exprune_fx.errors import CaptureError

_ENTER, _EXIT = torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast


def autocast_is_on() -> bool:
    """Whether autocast is on around the compiled function."""
    on: bool = torch._C._is_any_autocast_enabled()
    return on


@contextlib.contextmanager
def no_autocast() -> Iterator[None]:
    """Switches autocast off for every device."""
    with torch._C._DisableAutocast():
        yield


def with_explicit_casts(gm: fx.GraphModule) -> fx.GraphModule:
    """The same graph with a `to` wherever autocast casts an argument, and without the nodes that switch autocast.

    Args:
        gm: Dynamo's graph, its values known under the autocast state that was on when it was traced and still is. It
            is left as it is, and given back where autocast is nowhere on.

    Raises:
        CaptureError: an operator casts in its inside.
    """
    switches = [node for node in gm.graph.nodes if node.target in (_ENTER, _EXIT)]
    if not autocast_is_on() and not switches:
        return gm
    graph = fx.Graph()
    values: dict[fx.Node, fx.Node] = {}
    with contextlib.ExitStack() as stack:
        stack.enter_context(_no_cache())
        opened: dict[fx.Node, contextlib.ExitStack] = {}
        for node in gm.graph.nodes:
            if node.target is _ENTER:
                opened[node] = stack.enter_context(contextlib.ExitStack())
                opened[node].enter_context(torch.autocast(*node.args))
            elif node.target is _EXIT:
                opened.pop(node.args[0]).close()
            else:
                values[node] = _copied(node, graph, values)
    return fx.GraphModule(gm, graph)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Without the cache of cast weights: each use shows its cast."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(before)


class _Watch(TorchDispatchMode):
    """Notes which of some tensors are cast, and to what."""

    def __init__(self, tensors: list[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch's
        self.casts: dict[int, torch.dtype] = {}
        self._ids = set(map(id, tensors))

    def __torch_dispatch__(self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and id(args[0]) in self._ids:
            self.casts[id(args[0])] = kwargs["dtype"]
        return func(*args, **kwargs)


def _copied(node: fx.Node, graph: fx.Graph, values: dict[fx.Node, fx.Node]) -> fx.Node:
    """The node in the new graph, its arguments cast as autocast would."""
    read = values
    casts = _casts(node) if autocast_is_on() and node.op in ("call_function", "call_method") else {}
    if casts:
        read = dict(values)
        for source, dtype in casts.items():
            cast = graph.call_method("to", (values[source], dtype))
            cast.meta = {key: node.meta[key] for key in ("nn_module_stack", "stack_trace") if key in node.meta}
            read[source] = cast
        _check(node, casts)
    copy = graph.node_copy(node, read.__getitem__)
    for name in ("_dynamo_source",):  # a plain attribute, which copies do not keep
        if hasattr(node, name):
            setattr(copy, name, getattr(node, name))
    return copy


def _casts(node: fx.Node) -> dict[fx.Node, torch.dtype]:
    """The arguments that autocast casts before it calls the operator itself."""
    sources = [source for source in node.all_input_nodes if isinstance(source.meta.get("example_value"), FakeTensor)]
    if not sources or node.target == "to":
        return {}
    watch = _Watch([source.meta["example_value"] for source in sources])
    _run(node, {}, watch)
    return {
        source: watch.casts[id(value)] for source in sources if id(value := source.meta["example_value"]) in watch.casts
    }


def _check(node: fx.Node, casts: dict[fx.Node, torch.dtype]) -> None:
    """With its arguments cast, the operator must give the same dtypes without autocast."""
    with no_autocast():
        again = _run(node, casts, contextlib.nullcontext())
    dtypes = [
        [leaf.dtype for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
        for value in (again, node.meta.get("example_value"))
    ]
    if dtypes[0] != dtypes[1]:
        raise CaptureError(f"autocast casts inside {node.name} = {node.target}: {dtypes[1]}, without it {dtypes[0]}")


def _run(node: fx.Node, casts: dict[fx.Node, torch.dtype], mode: contextlib.AbstractContextManager[Any]) -> Any:
    """What the node gives on the values without data that Dynamo knows."""

    def value(source: fx.Node) -> Any:
        known: Any = source.meta.get("example_value")
        return known.to(casts[source]) if source in casts else known

    args, kwargs = map_arg((node.args, node.kwargs), value)
    fake = next(leaf.fake_mode for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, FakeTensor))
    with fake, mode, torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        target: Any = node.target
        return target(*args, **kwargs)
