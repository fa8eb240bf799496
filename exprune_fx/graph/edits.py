"""The only place that mutates graphs: small edits that keep metadata, provenance and the user's tensors intact."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.node import Argument, Node, Target, map_arg

from exprune_fx.errors import ExpruneError
from exprune_fx.graph._module import ALIASES_KEY, CONSTANTS_KEY, copy_graph_module, tensor_at, tensor_names
from exprune_fx.ops.shapes import on_fakes

__all__ = [
    "ALIASES_KEY",
    "CONSTANTS_KEY",
    "copy_graph_module",
    "fake_mode_of",
    "fresh_name",
    "insert_call",
    "is_call",
    "recompile",
    "remove_dead",
    "replace_node",
    "run_fake",
    "set_args",
    "set_tensor",
    "tensor_at",
    "tensor_names",
]


def remove_dead(gm: fx.GraphModule) -> int:
    """Removes what no output needs (not placeholders) and tensors that nobody reads; returns how many nodes went."""
    removed = 0
    for node in reversed(list(gm.graph.nodes)):
        if node.op in ("call_function", "get_attr") and not node.users:
            gm.graph.erase_node(node)
            removed += 1
    used = set(tensor_names(gm))
    for name in _held_names(gm):
        if name not in used:
            prefix, _, field = name.rpartition(".")
            delattr(gm.get_submodule(prefix), field)
    gm.delete_all_unused_submodules()
    if CONSTANTS_KEY in gm.meta:
        gm.meta[CONSTANTS_KEY] = frozenset(used & gm.meta[CONSTANTS_KEY])
    return removed


def _held_names(gm: fx.GraphModule) -> Iterator[str]:
    yield from [name for name, _ in gm.named_parameters(remove_duplicate=False)]
    yield from [name for name, _ in gm.named_buffers(remove_duplicate=False)]


def recompile(gm: fx.GraphModule) -> fx.GraphModule:
    """Regenerates the module's code from its graph; to be called once, after the last edit."""
    gm.graph.lint()
    gm.recompile()
    return gm


def replace_node(gm: fx.GraphModule, old: Node, new: Node) -> None:
    """Gives `old`'s users to `new` and erases `old`; `new` remembers in ``made_from`` whom it replaces.

    Users that `new` itself is made from `old` keep reading `old`, which is then left in place.
    """
    old.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new)
    if "made_by" in new.meta:
        new.meta.setdefault("made_from", old.name)
    if not old.users:
        gm.graph.erase_node(old)


def fake_mode_of(gm: fx.GraphModule) -> FakeTensorMode | None:
    """The fake mode of the graph's metadata; None when no node holds a fake tensor."""
    for node in gm.graph.nodes:
        for value in torch.utils._pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, FakeTensor):
                return value.fake_mode
    return None


def run_fake(gm: fx.GraphModule, target: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """What `target` gives on the fake values of its node arguments: shapes and dtypes, no data."""
    values = map_arg((args, kwargs), lambda n: n.meta["val"])
    mode = fake_mode_of(gm) or FakeTensorMode(allow_non_fake_inputs=False)
    with contextlib.ExitStack() as stack:
        if mode.shape_env is not None:  # which all copies of a capture share: a guard of one would bind them all
            stack.enter_context(mode.shape_env.suppress_guards())
        # As torch.export does: without it, torch before 2.13 takes a symbolic batch for the example's in some products.
        stack.enter_context(enable_python_dispatcher())
        stack.enter_context(mode)
        stack.enter_context(torch.no_grad())
        return on_fakes(target)(*values[0], **values[1])


def insert_call(
    gm: fx.GraphModule,
    target: Callable[..., Any],
    args: tuple[Argument, ...],
    kwargs: dict[str, Argument] | None = None,
    *,
    like: Node,
    made_by: str,
    before: Node | None = None,
    after: Node | None = None,
) -> Node:
    """Inserts ``target(*args, **kwargs)`` with its fake value, module path and provenance.

    Args:
        gm: the graph module to edit.
        target: an operator overload, or ``operator.getitem``.
        args: the arguments, nodes among them.
        kwargs: the keyword arguments.
        like: the node whose module path and module stack the new node takes, and which ``made_from`` names.
        made_by: the name of the pass.
        before: insert before this node; exactly one of `before` and `after` is given.
        after: insert after this node.

    Raises:
        ExpruneError: not exactly one place is given, or the operator refuses the fake values.
    """
    kwargs = kwargs or {}
    if (before is None) == (after is None):
        raise ExpruneError("insert_call needs exactly one of before= and after=", hint="name one place")
    try:
        value = run_fake(gm, target, args, kwargs)
    except Exception as error:  # whatever an operator's fake implementation raises
        raise ExpruneError(f"pass {made_by}: {target} does not accept {args} {kwargs}: {error}") from error
    place = gm.graph.inserting_before(before) if before is not None else gm.graph.inserting_after(after)
    with place:
        node = gm.graph.call_function(target, args, kwargs)
    for key in ("module_path", "nn_module_stack", "stack_trace"):
        if key in like.meta:
            node.meta[key] = like.meta[key]
    node.meta.update(val=value, made_by=made_by, made_from=like.name)
    return node


def set_args(
    node: Node, args: tuple[Argument, ...], kwargs: dict[str, Argument] | None = None, *, made_by: str
) -> None:
    """Gives a node other arguments (same result shape), and notes which pass did so."""
    node.args = args
    node.kwargs = node.kwargs if kwargs is None else kwargs
    node.meta["made_by"] = made_by


def set_tensor(gm: fx.GraphModule, name: str, tensor: Tensor) -> Node:
    """Binds a new tensor under a dotted name and returns its get_attr node; the tensor bound before is not written to.

    An `nn.Parameter` becomes a parameter, another tensor a persistent buffer, except under a name that held a constant.

    Raises:
        ExpruneError: the name is taken by a module.
    """
    *prefix, field = name.split(".")
    owner: nn.Module = gm
    for part in prefix:
        if part not in owner._modules:
            owner.add_module(part, nn.Module())
        owner = owner.get_submodule(part)
    if field in owner._modules:
        raise ExpruneError(f"{name!r} is a module, not a tensor", hint="choose another name (see fresh_name)")
    persistent = name not in gm.meta.get(CONSTANTS_KEY, ())
    owner._parameters.pop(field, None)
    owner._buffers.pop(field, None)
    if isinstance(tensor, nn.Parameter):
        owner.register_parameter(field, tensor)
    else:
        owner.register_buffer(field, tensor, persistent=persistent)
    node = next((n for n in gm.graph.nodes if n.op == "get_attr" and n.target == name), None)
    if node is None:
        with gm.graph.inserting_before(next(n for n in gm.graph.nodes if n.op not in ("placeholder", "get_attr"))):
            node = gm.graph.get_attr(name)
    mode = fake_mode_of(gm) or FakeTensorMode()
    node.meta["val"] = mode.from_tensor(tensor, static_shapes=True)
    node.meta["module_path"] = name.rpartition(".")[0]
    return node


def fresh_name(gm: fx.GraphModule, base: str) -> str:
    """`base`, or `base_1`, `base_2`, ... : the first dotted name under which `gm` holds nothing."""
    candidate, count = base, 0
    while _is_taken(gm, candidate):
        count += 1
        candidate = f"{base}_{count}"
    return candidate


def _is_taken(gm: fx.GraphModule, name: str) -> bool:
    value: object = gm
    for part in name.split("."):
        if not hasattr(value, part):
            return False
        value = getattr(value, part)
    return True


def is_call(node: object, *targets: Target) -> bool:
    """Whether `node` is a call of one of `targets`."""
    return isinstance(node, Node) and node.op == "call_function" and node.target in targets
