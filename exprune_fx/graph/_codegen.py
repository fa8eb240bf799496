"""The Python that a dialect graph is run as: without pytrees where its inputs and outputs are plain."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from torch import nn
from torch.fx.graph import _format_target, _PyTreeCodeGen, _PyTreeInfo
from torch.utils import _pytree as pytree

_CHECK = 'if not torch.compiler.is_compiling() and hasattr(self, "input_check")'
_UNCOMPILED = "_uncompiled_"
_CHECK_AND_NOTE = _CHECK.replace("not torch", f"({_UNCOMPILED} := not torch").replace("()", "())", 1)
_ASSIGNMENT = re.compile(r"^(    \w+ = )(.+)$", re.MULTILINE)
READER = "_attribute_of_"  # unlike any argument's name


class DialectCodeGen(_PyTreeCodeGen):
    """`fx`'s code for pytree signatures, but plain Python where the arguments and the results are plain.

    Where every argument is a leaf, and the result is one, or a tuple, list or dict of them, nothing has to be flattened
    at run time; under torch.compile what flattens costs guards at every call: some tens of microseconds.

    Attributes:
        checked: whether the code calls the module's ``input_check``, where the module has one: it has not if it was
            made of this graph by hand. A compiler leaves the call out while it traces: its own guards say for which
            inputs its code is valid.
    """

    def __init__(self, pytree_info: _PyTreeInfo, checked: bool = False) -> None:
        super().__init__(pytree_info)
        self.checked = checked

    def gen_var_bindings(self, fn_args: list[str], free_vars: list[str], expanded_def: bool) -> str:
        """What stands between the signature and the first node."""
        given = [name for name in self.pytree_info.orig_args if name != "self"]
        check = f"\n    {_CHECK}: self.input_check(self, {_tuple(given)})" if self.checked else ""
        bare = [name.split(":")[0].split("#")[0].strip() for name in free_vars if name != "self"]
        if not _plain_inputs(self.pytree_info.in_spec) or len(bare) != len(given):
            return check + str(super().gen_var_bindings(fn_args, free_vars, expanded_def))
        renamed = [f"\n    {name} = {argument}" for name, argument in zip(bare, given, strict=True) if name != argument]
        return check + "".join(renamed)

    def generate_output(self, output_args: Any, *, descs: Any = None, **kwargs: Any) -> str:
        """The return statement."""
        spec = self.pytree_info.out_spec
        shown = kwargs.get("repr_fn") or repr
        if descs is None and spec is not None and isinstance(output_args, tuple | list):
            leaves = [shown(leaf) for leaf in output_args]
            if spec.is_leaf() and len(leaves) == 1:
                return f"return {leaves[0]}"
            if spec.type in (tuple, list, dict) and _all_leaves(spec):
                return f"return {_container(spec, leaves)}"
        return str(super().generate_output(output_args, descs=descs, **kwargs))


def with_direct_reads(src: str, targets: Iterable[str]) -> str:
    """The same code, line by line, but outside of a compiler it reads tensors by `attribute_of`, named `READER` there.

    To `nn.Module` an attribute is missing before its ``__getattr__`` finds it, at every dot: with caches that large
    weights have just emptied, that takes some microseconds for each tensor. A compiler reads attributes as they are
    written: what it knows of parameters hangs on that.

    Args:
        src: code of `DialectCodeGen`; it is left alone if it does not begin with the check.
        targets: of the graph's get_attr nodes.
    """
    if _CHECK not in src:
        return src
    reads = {_format_target("self", target): target for target in targets}

    def direct(line: re.Match[str]) -> str:
        start, read = line.groups()
        return f"{start}{_direct(reads[read])} if {_UNCOMPILED} else {read}" if read in reads else line[0]

    return _ASSIGNMENT.sub(direct, src.replace(_CHECK, _CHECK_AND_NOTE, 1))


def attribute_of(module: nn.Module, name: str) -> object:
    """What `module` holds under a name at this moment: ``getattr``, but faster for parameters and buffers."""
    parameter = module._parameters.get(name)
    if parameter is not None:
        return parameter
    buffer = module._buffers.get(name)
    return getattr(module, name) if buffer is None else buffer


def _direct(target: str) -> str:
    *path, name = target.split(".")
    return f"{READER}(self{''.join(f'._modules[{part!r}]' for part in path)}, {name!r})"


def _tuple(names: list[str]) -> str:
    return f"({', '.join(names)}{',' if len(names) == 1 else ''})"


def _container(spec: pytree.TreeSpec, leaves: list[str]) -> str:
    if spec.type is dict:
        return "{" + ", ".join(f"{key!r}: {leaf}" for key, leaf in zip(spec.context, leaves, strict=True)) + "}"
    return _tuple(leaves) if spec.type is tuple else f"[{', '.join(leaves)}]"


def _plain_inputs(spec: pytree.TreeSpec) -> bool:
    """Whether this is ``(args, kwargs)`` of leaves alone."""
    if spec.is_leaf() or spec.type is not tuple or spec.num_children != 2:
        return False
    args, kwargs = spec.child(0), spec.child(1)
    return bool(args.type is tuple and kwargs.type is dict and _all_leaves(args) and _all_leaves(kwargs))


def _all_leaves(spec: pytree.TreeSpec) -> bool:
    """Whether its children are leaves, and the keys of a dict such that their representation is their code."""
    keys = spec.context if spec.type is dict else ()
    return all(spec.child(i).is_leaf() for i in range(spec.num_children)) and all(type(k) in (str, int) for k in keys)
