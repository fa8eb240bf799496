"""From Dynamo's graph to the dialect: pre-dispatch ATen without mutation, parameters as get_attr under their paths."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx.traceback as fx_traceback
from torch import Tensor, fx, nn
from torch._functorch._aot_autograd.functional_utils import from_fun, has_data_mutation, to_fun
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

from exprune_fx.errors import CaptureError
from exprune_fx.graph._dialect import to_dialect

_aten = torch.ops.aten
_STEP = re.compile(r"\._(?:modules|parameters|buffers)\[['\"]([^'\"]+)['\"]\]")


@dataclass(frozen=True)
class State:
    """A parameter or buffer of the traced model.

    Attributes:
        place: which of Dynamo's placeholders it is.
        dtype: what it is cast to before anything reads it; None where it is read as it is.
    """

    place: int
    dtype: torch.dtype | None = None


@dataclass(frozen=True, eq=False)
class Traced:
    """One graph of Dynamo's in the dialect.

    Attributes:
        gm: the graph. Its parameters and buffers have no values; its placeholders are the model's inputs.
        states: for each get_attr target, which of Dynamo's placeholders it is; constants are not among them.
        inputs: for each placeholder, which of Dynamo's it is.
        outputs: how many results are Dynamo's; the others are new values for the inputs that the model writes to.
        written: which of Dynamo's placeholders these are.
    """

    gm: fx.GraphModule
    states: Mapping[str, State]
    inputs: tuple[int, ...]
    outputs: int
    written: tuple[int, ...]


def trace(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Traced:
    """Brings one of Dynamo's graphs to the dialect.

    Args:
        gm: the graph; it is left as it is.
        example_inputs: what Dynamo gave beside it.

    Raises:
        CaptureError: it has no form in the dialect; the message says why.
    """
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    if not placeholders:
        raise CaptureError("it has no inputs")
    if any(node.op == "get_attr" and isinstance(_held(gm, node), nn.Parameter) for node in gm.graph.nodes):
        raise CaptureError("Dynamo froze its parameters into it (prepare_freezing)", hint="use option freeze=True")
    values = [node.meta.get("example_value") for node in placeholders]
    written: list[int] = []
    try:
        with fx_traceback.preserve_node_meta():
            traced = make_fx(lambda *args: _functional(gm, args, written), pre_dispatch=True, tracing_mode="fake")(
                *values
            )
    except Exception as error:  # whatever an operator raises when it is traced
        raise CaptureError(f"torch could not trace it: {type(error).__name__}: {str(error).splitlines()[0]}") from error
    _refuse_shared_memory(written, example_inputs)
    sources = [_source(node) for node in placeholders]
    names = _state_names(sources, example_inputs, set(written))
    learned = {name for place, name in names.items() if isinstance(example_inputs[place], nn.Parameter)}
    return _in_dialect(traced, names, learned, {source.root for source in sources if source.root}, written)


def _held(gm: fx.GraphModule, node: fx.Node) -> object:
    """What a get_attr node of Dynamo's graph reads."""
    value: object = gm
    for part in str(node.target).split("."):
        value = getattr(value, part, None)
    return value


# --- tracing ----------------------------------------------------------------------------------------------------------


class _Interpreter(fx.Interpreter):
    """Runs Dynamo's graph without what only switches modes: gradients are off, and casts are written out."""

    _SWITCHES = (
        torch._C._set_grad_enabled,
        torch.amp.autocast_mode._enter_autocast,
        torch.amp.autocast_mode._exit_autocast,
    )

    def run_node(self, n: fx.Node) -> Any:
        """Runs one node."""
        if n.op == "call_function" and n.target in self._SWITCHES:
            return None
        number = n.meta.get("example_value")
        if n.op == "call_method" and n.target == "item" and isinstance(number, torch.SymFloat):
            return float(number)  # a module's float, such as an eps, which Dynamo then guards
        return super().run_node(n)


def _functional(gm: fx.GraphModule, args: Sequence[Any], written: list[int]) -> list[Any]:
    """The graph's results, then the new values of the inputs that it writes to, whose places go into `written`."""
    mode = FunctionalTensorMode(pre_dispatch=True, export=True)
    with mode, torch.no_grad():
        inputs = [to_fun(arg) for arg in args]
        results = _Interpreter(gm).run(*inputs)
    results = list(results) if isinstance(results, tuple | list) else [results]
    for place, value in enumerate(inputs):
        if isinstance(value, FunctionalTensor):
            torch._sync(value)  # type: ignore[attr-defined, no-untyped-call] # not in torch's stubs
            if has_data_mutation(value):
                written.append(place)
    _refuse_views([inputs[place] for place in written], results)
    new_values = [inputs[place] for place in written]
    return [pytree.tree_map(from_fun, value) for value in (*results, *new_values)]


def _refuse_views(written: Sequence[Tensor], results: Sequence[Any]) -> None:
    memory = {_storage(value) for value in written}
    for result in results:
        if _storage(result) in memory - {None} and not any(result is value for value in written):
            raise CaptureError("it returns a view of an input that it writes to")


def _refuse_shared_memory(written: Sequence[int], example_inputs: Sequence[Any]) -> None:
    memory = [_storage(value) for value in example_inputs]
    for place in written:
        if memory[place] is not None and memory.count(memory[place]) > 1:
            raise CaptureError("it writes to an input that shares its memory with another one")


def _storage(value: object) -> int | None:
    if not isinstance(value, Tensor) or value.numel() == 0:
        return None
    memory: int = value.untyped_storage()._cdata
    return memory


# --- names ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a placeholder comes from.

    Attributes:
        root: the text of the object that the path starts at.
        path: dotted, "" where it is no parameter or buffer of a module.
        fallback: a name for want of a path.
    """

    root: str
    path: str
    fallback: str


def _source(node: fx.Node) -> _Source:
    source = getattr(node, "_dynamo_source", None)
    name = getattr(source, "name", "")
    text = str(name() if callable(name) else name)
    steps = list(_STEP.finditer(text))
    straight = bool(steps) and steps[-1].end() == len(text) and _STEP.sub("", text[steps[0].start() :]) == ""
    if not straight:
        return _Source("", "", str(node.target).strip("_"))
    return _Source(text[: steps[0].start()], ".".join(step[1] for step in steps), str(node.target).strip("_"))


def _state_names(sources: Sequence[_Source], example_inputs: Sequence[Any], written: set[int]) -> dict[int, str]:
    """A name for every parameter and buffer; what the model writes to stays an input."""
    names: dict[int, str] = {}
    for place, (source, value) in enumerate(zip(sources, example_inputs, strict=True)):
        if place in written or not (source.path or isinstance(value, nn.Parameter)):
            continue
        base = source.path or f"{_UNNAMED}.{source.fallback}"
        name, count = base, 1
        while name in names.values():  # of another module that the traced function holds
            count += 1
            name = f"{base}_{count}"
        names[place] = name
    return names


_UNNAMED = "exprune_unnamed"


# --- the dialect ------------------------------------------------------------------------------------------------------


def _in_dialect(
    traced: fx.GraphModule, names: Mapping[int, str], learned: set[str], roots: set[str], written: Sequence[int]
) -> Traced:
    graph = traced.graph
    tensors = {
        str(node.target): value
        for node in graph.nodes
        if node.op == "get_attr" and isinstance(value := getattr(traced, str(node.target), None), Tensor)
    }
    constants = set(tensors)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    body = placeholders[-1].next
    states: dict[str, State] = {}
    for place, name in names.items():
        node = placeholders[place]
        # An object of its own: what is computed from the node's value, such as its users' shapes, derives from nothing.
        states[name], tensors[name] = State(place), node.meta["val"].detach()
        if name not in learned and not _is_statistic(node):
            constants.add(name)  # nobody says that its elements are alike
        with graph.inserting_before(body):
            read = graph.create_node("get_attr", name)
        read.meta = dict(node.meta)
        node.replace_all_uses_with(read)
        graph.erase_node(node)
        _take_casts(read, states, tensors, constants)
    _rename_roots(graph, roots)
    inputs = tuple(place for place in range(len(placeholders)) if place not in names)
    given: Any = graph.output_node().args[0]
    results = len(given)
    _sign(graph, len(inputs), results)
    gm = to_dialect(graph, tensors, constants)
    return Traced(gm, states, inputs, results - len(written), tuple(written))


def _take_casts(read: fx.Node, states: dict[str, State], tensors: dict[str, Tensor], constants: set[str]) -> None:
    """What autocast reads of a parameter is one too: in another dtype, under its name if nothing else reads it."""
    name, graph = str(read.target), read.graph
    by_dtype: dict[torch.dtype, list[fx.Node]] = {}
    for user in read.users:
        if user.target is _aten._to_copy.default and set(user.kwargs) == {"dtype"}:
            by_dtype.setdefault(user.meta["val"].dtype, []).append(user)
    for dtype, casts in by_dtype.items():
        if len(casts) == len(read.users):
            cast, target = read, name
        else:
            path, _, field = name.rpartition(".")
            target = f"{path}.{str(dtype).removeprefix('torch.')}_{field}".lstrip(".")
            with graph.inserting_before(read.next):
                cast = graph.create_node("get_attr", target)
            cast.meta = dict(read.meta)
            if name in constants:
                constants.add(target)
        states[target] = State(states[name].place, dtype)
        cast.meta["val"] = casts[0].meta["val"]
        tensors[target] = cast.meta["val"].detach()
        for node in casts:
            node.replace_all_uses_with(cast)
            graph.erase_node(node)


def _is_statistic(node: fx.Node) -> bool:
    """Whether only batch norms read it, as mean or variance."""
    norms = (_aten.batch_norm.default, _aten._native_batch_norm_legit_no_training.default)
    return bool(node.users) and all(user.target in norms and node in user.args[3:5] for user in node.users)


def _rename_roots(graph: fx.Graph, roots: set[str]) -> None:
    """Module paths start at the object that holds the modules, whatever the traced function calls it."""
    for node in graph.nodes:
        stack = node.meta.get("nn_module_stack")
        if stack:
            node.meta["nn_module_stack"] = {
                key: (_renamed(str(path), roots), kind) for key, (path, kind) in stack.items()
            }


def _renamed(path: str, roots: set[str]) -> str:
    for root in sorted(roots, key=len, reverse=True):
        if path == root or path.startswith(f"{root}."):
            return f"L['self']{path[len(root) :]}"
    return path


def _sign(graph: fx.Graph, inputs: int, results: int) -> None:
    """The signature that the dialect wants: positional inputs, a tuple of results."""
    in_spec = pytree.tree_flatten(((0,) * inputs, {}))[1]
    out_spec = pytree.tree_flatten((0,) * results)[1]
    names = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    graph.set_codegen(_PyTreeCodeGen(_PyTreeInfo(names, in_spec, out_spec)))
