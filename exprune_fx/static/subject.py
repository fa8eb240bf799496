"""What is shrunk: a user's module in place, or a captured graph, of which a new one is made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exprune_fx.errors import ShrinkError
from exprune_fx.graph import capture
from exprune_fx.graph.running import examples_in
from exprune_fx.static.module import AttributeChange, Bindings, aliases, attribute_changes, can_add, refuse_unusual
from exprune_fx.static.plan import Round
from exprune_fx.static.smaller import Smaller
from exprune_fx.static.trial import Trial, try_out, view_attributes

Call = tuple[tuple[Any, ...], Mapping[str, Any]]


class Subject(Protocol):
    """What can be shrunk."""

    @property
    def kind(self) -> Literal["module", "graph"]:
        """Which of the two it is."""
        ...

    @property
    def model(self) -> nn.Module:
        """As it is now."""
        ...

    @property
    def examples(self) -> int:
        """Examples in the captured inputs."""
        ...

    def graph(self) -> fx.GraphModule:
        """Its graph as it is now."""
        ...

    def may_add(self, name: str) -> bool:
        """Whether a bias of this name may be added."""
        ...

    def trial(self, dense: fx.GraphModule, small: Smaller) -> Trial:
        """Whether its own code runs with the smaller sizes."""
        ...

    def commit(self, dense: fx.GraphModule, small: Smaller) -> Round:
        """Makes it the smaller one."""
        ...

    def restored_on_error(self, *, trained: bool) -> contextlib.AbstractContextManager[None]:
        """Within this, any error leaves it as it was; `trained`: values may be written to, too."""
        ...


def round_of(small: Smaller, attributes: tuple[AttributeChange, ...] = ()) -> Round:
    """One round of the plan."""
    biases = tuple((name, bias.shape[0]) for name, bias in small.biases.items())
    return Round(small.groups, tuple(small.cuts.values()), biases, attributes)


class GraphSubject:
    """A captured graph; it is left as it is."""

    kind: Literal["module", "graph"] = "graph"

    def __init__(self, gm: fx.GraphModule) -> None:
        self._graph = gm
        shapes = [n.meta["val"].shape for n in gm.graph.nodes if n.op == "placeholder" and _is_tensor(n)]
        size = shapes[0][0] if shapes and len(shapes[0]) else 1
        self.examples = size if isinstance(size, int) else int(size.node.hint)

    @property
    def model(self) -> nn.Module:
        """The graph as it is now."""
        return self._graph

    def graph(self) -> fx.GraphModule:
        """The graph as it is now."""
        return self._graph

    def may_add(self, name: str) -> bool:
        """Anywhere where there is nothing yet."""
        value: Any = self._graph
        for part in name.split("."):
            value = getattr(value, part, None)
        return value is None

    def trial(self, dense: fx.GraphModule, small: Smaller) -> Trial:  # noqa: ARG002 (the protocol's)
        """Sizes were checked while the graph was made."""
        return Trial()

    def commit(self, dense: fx.GraphModule, small: Smaller) -> Round:  # noqa: ARG002 (the protocol's)
        """Takes the smaller graph."""
        self._graph = small.graph
        return round_of(small)

    @contextlib.contextmanager
    def restored_on_error(self, *, trained: bool) -> Iterator[None]:
        """The given graph is never written to, but fine-tuning could write to tensors that were not cut."""
        with _values_restored(self._graph if trained else nn.Module()):
            yield


class ModuleSubject:
    """A user's module, shrunk in place."""

    kind: Literal["module", "graph"] = "module"

    def __init__(self, module: nn.Module, call: Call, dynamic_shapes: Any) -> None:
        self._module, self._call = module, call
        self._example, self._dynamic = (call, dynamic_shapes) if dynamic_shapes is not None else any_batch(call)
        self._undo: list[Callable[[], None]] = []
        self.examples = examples_in(self._example[0] if call[0] else tuple(call[1].values()))

    @property
    def model(self) -> nn.Module:
        """The module."""
        return self._module

    def graph(self) -> fx.GraphModule:
        """Captured anew."""
        return capture(self._module, self._example[0], self._example[1], self._dynamic)

    def may_add(self, name: str) -> bool:
        """In linear layers and convolutions without bias."""
        return can_add(self._module, name)

    def trial(self, dense: fx.GraphModule, small: Smaller) -> Trial:
        """Runs a copy with the new tensors and attributes."""
        self._check(small)
        try:
            with torch.no_grad():
                wanted = pytree.tree_leaves(small.graph(*self._call[0], **self._call[1]))
        except Exception as error:  # whatever an operator raises
            raise ShrinkError(
                f"the smaller graph does not run: {type(error).__name__}: {error}",
                hint="leave the groups that reach this operator out by ignore=, and report this as a bug",
            ) from error
        return try_out(
            self._module,
            small.tensors,
            small.biases,
            self._attributes(dense, small),
            self._call,
            [leaf for leaf in wanted if isinstance(leaf, Tensor)],
        )

    def _check(self, small: Smaller) -> None:
        held = {*dict(self._module.named_parameters(remove_duplicate=False))}
        held |= {*dict(self._module.named_buffers(remove_duplicate=False))}
        for name in small.tensors:
            if name not in held:
                raise ShrinkError(
                    f"{name} would be cut, a constant that the model's code makes itself",
                    hint="make it a buffer, or leave the groups that reach it out by ignore=",
                )
        refuse_unusual(self._module, small.tensors)

    def _attributes(self, dense: fx.GraphModule, small: Smaller) -> tuple[AttributeChange, ...]:
        names = aliases(self._module)
        shapes = {alias: cut.after for name, cut in small.cuts.items() for alias in names(name)}
        layers = attribute_changes(self._module, shapes, small.module_groups)
        known = {(change.module, change.name) for change in layers}
        own = view_attributes(dense, small.graph, self._module)
        return (*layers, *(change for change in own if (change.module, change.name) not in known))

    def commit(self, dense: fx.GraphModule, small: Smaller) -> Round:
        """Binds everything new at once."""
        attributes = self._attributes(dense, small)
        bindings = Bindings(self._module)
        for name, tensor in small.tensors.items():
            bindings.bind(name, tensor)
        for name, bias in small.biases.items():
            bindings.add(name, bias)
        for change in attributes:
            bindings.set_attribute(change)
        self._undo.append(bindings.commit())
        return round_of(small, attributes)

    @contextlib.contextmanager
    def restored_on_error(self, *, trained: bool) -> Iterator[None]:
        """Takes all rounds back on any error, and what fine-tuning wrote."""
        with _values_restored(self._module if trained else nn.Module()):
            try:
                yield
            except BaseException:
                for take_back in reversed(self._undo):
                    take_back()
                raise


def any_batch(call: Call) -> tuple[Call, Any]:
    """Example inputs and dynamic shapes with which a capture takes any number of examples, where the model does.

    The first dim of the first tensor counts the examples, and so does that of every other one of the same size. A batch
    of one is doubled, for torch.export takes ones for constants. With keyword inputs, everything stays as it is.
    """
    args, kwargs = call
    sizes = [leaf.shape[0] for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor) and leaf.dim() > 0]
    if kwargs or not sizes:
        return call, None

    def counts(leaf: object) -> bool:
        return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == sizes[0]

    def doubled(leaf: Any) -> Any:
        return torch.cat([leaf, leaf]) if sizes[0] == 1 and counts(leaf) else leaf

    shapes = pytree.tree_map(lambda leaf: {0: torch.export.Dim.AUTO} if counts(leaf) else None, args)
    return (pytree.tree_map(doubled, args), kwargs), shapes


@contextlib.contextmanager
def _values_restored(module: nn.Module) -> Iterator[None]:
    """On any error, writes back the values that a module's tensors had, and the modes of its submodules."""
    tensors = [(tensor, tensor.detach().clone()) for tensor in (*module.parameters(), *module.buffers())]
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    except BaseException:
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        for each, training in modes:
            each.training = training
        raise


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
