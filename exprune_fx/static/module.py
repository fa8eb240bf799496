"""The user's own module: new tensors and attributes, bound all at once or not at all."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from exprune_fx.errors import PlanError, ShrinkError

_MISSING = object()


@dataclass(frozen=True)
class AttributeChange:
    """An attribute of a module that follows the new sizes: `out_channels`, `num_heads`.

    Attributes:
        module: dotted name, "" for the root.
        name: of the attribute.
        value: the new one: a number, or several (`normalized_shape`).
    """

    module: str
    name: str
    value: int | tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data."""
        value = list(self.value) if isinstance(self.value, tuple) else self.value
        return {"module": self.module, "name": self.name, "value": value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> AttributeChange:
        """The inverse of ``to_dict``."""
        value = data["value"]
        return cls(
            str(data["module"]), str(data["name"]), tuple(map(int, value)) if isinstance(value, list) else int(value)
        )


class Bindings:
    """Changes to a module, held back until `commit`.

    Args:
        module: the module; nothing is written to it before `commit`.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._tensors: dict[str, Tensor] = {}
        self._added: dict[str, nn.Parameter] = {}
        self._attributes: dict[tuple[str, str], Any] = {}
        self._aliases = aliases(module)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of this name, as it will be.

        Raises:
            PlanError: there is none.
        """
        found = self._added.get(name, self._tensors.get(name))
        return found if found is not None else held_tensor(self._module, name)

    def bind(self, name: str, value: Tensor) -> None:
        """Gives a name a new value, of the kind that it held."""
        old = self.tensor(name)
        if isinstance(old, nn.Parameter) and not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, old.requires_grad)
        if name in self._added:
            self._added[name] = nn.Parameter(value)
            return
        for alias in self._aliases(name):
            self._tensors[alias] = value

    def add(self, name: str, value: Tensor) -> None:
        """Adds a parameter under a name that holds None.

        Raises:
            PlanError: there is no such place.
        """
        if not can_add(self._module, name):
            raise PlanError(f"the model has no place for a parameter {name!r}", hint="give the model that was shrunk")
        like = self.tensor(name.removesuffix("bias") + "weight")
        self._added[name] = nn.Parameter(value, like.requires_grad)

    def set_attribute(self, change: AttributeChange) -> None:
        """Notes a new value for an attribute.

        Raises:
            PlanError: the module has none of this name.
        """
        module = _submodule(self._module, change.module)
        if not hasattr(module, change.name):
            raise PlanError(
                f"module {change.module!r} has no attribute {change.name!r}", hint="give the model that was shrunk"
            )
        self._attributes[change.module, change.name] = change.value

    def commit(self) -> Callable[[], None]:
        """Writes everything, and returns what takes it all back; where anything goes wrong, that is done at once."""
        undo: list[tuple[dict[str, Any], str, Any]] = []

        def take_back() -> None:
            for store, name, value in reversed(undo):
                if value is _MISSING:
                    store.pop(name, None)
                else:
                    store[name] = value

        try:
            for store, name, value in self._writes():
                undo.append((store, name, store.get(name, _MISSING)))
                store[name] = value
        except BaseException:
            take_back()
            raise
        return take_back

    def _writes(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """Every write as a dictionary, a key and a value; all are looked up before the first is made."""
        found: list[tuple[dict[str, Any], str, Any]] = []
        for name, value in {**self._tensors, **self._added}.items():
            path, _, leaf = name.rpartition(".")
            owner = _submodule(self._module, path)
            store: Any = owner._parameters if leaf in owner._parameters else owner._buffers
            found.append((store, leaf, value))
        for (path, name), value in self._attributes.items():
            found.append((_submodule(self._module, path).__dict__, name, value))
        yield from found


def held_tensor(module: nn.Module, name: str) -> Tensor:
    """The parameter or buffer that a module registers under a dotted name.

    Raises:
        PlanError: there is none.
    """
    path, _, leaf = name.rpartition(".")
    owner = _submodule(module, path)
    found: Tensor | None = owner._parameters.get(leaf)
    if found is None:
        found = owner._buffers.get(leaf)
    if found is None:
        raise PlanError(f"the model has no parameter or buffer {name!r}", hint="give the model that was shrunk")
    return found


def _submodule(module: nn.Module, path: str) -> nn.Module:
    try:
        return module.get_submodule(path)
    except AttributeError as error:
        raise PlanError(f"the model has no module {path!r}", hint="give the model that was shrunk") from error


def aliases(module: nn.Module) -> Callable[[str], tuple[str, ...]]:
    """What tells every name under which a module holds the tensor of a name; looked up once, for many names."""
    names: dict[int, list[str]] = {}
    for name, held in (
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ):
        names.setdefault(id(held), []).append(name)
    return lambda name: tuple(names[id(held_tensor(module, name))])


def can_add(module: nn.Module, name: str) -> bool:
    """Whether a layer that was made without bias has a place for one under this name."""
    path, _, leaf = name.rpartition(".")
    try:
        owner = module.get_submodule(path)
    except AttributeError:
        return False
    return leaf in owner._parameters and owner._parameters[leaf] is None and "weight" in owner._parameters


def shared_copy(module: nn.Module) -> nn.Module:
    """A copy of the module tree, in eval mode, that holds the same tensors.

    Raises:
        ShrinkError: the module cannot be copied.
    """
    tensors = (*module.parameters(), *module.buffers())
    try:
        with torch.no_grad():
            result = copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})
    except Exception as error:  # whatever a module's own __deepcopy__ raises
        raise ShrinkError(
            f"{type(module).__name__} cannot be copied, which shrinking needs to try things out: {error}",
            hint="remove hooks and old-style weight norms first (torch.nn.utils.remove_weight_norm)",
        ) from error
    for each in result.modules():
        each.training = False
    return result


def refuse_unusual(module: nn.Module, names: Mapping[str, Any]) -> None:
    """Refuses to cut tensors that something else makes or reads behind the module's back.

    Raises:
        ShrinkError: a tensor is parametrized, or a pre-hook computes it.
    """
    for name in names:
        path = name.rpartition(".")[0]
        if ".parametrizations." in f".{path}.":
            raise ShrinkError(
                f"{name} belongs to a parametrization, which cannot be cut",
                hint="torch.nn.utils.parametrize.remove_parametrizations first, or leave the layer out by ignore=",
            )
        owner = module.get_submodule(path)
        hooks = [
            hook
            for hook in owner._forward_pre_hooks.values()
            if hasattr(hook, "compute_weight") or hasattr(hook, "_tensor_name")
        ]
        if hooks:
            raise ShrinkError(
                f"{name} goes through {type(hooks[0]).__name__}, a hook that makes the weight anew at every call",
                hint="make the weight permanent first (remove_weight_norm, prune.remove), or leave it out by ignore=",
            )


def attribute_changes(
    module: nn.Module, shapes: Mapping[str, tuple[int, ...]], groups: Mapping[str, int]
) -> list[AttributeChange]:
    """Attributes of the layers of torch.nn, and of what is written like them, that follow their tensors' new shapes.

    Args:
        module: the module as it is.
        shapes: new shape of every tensor that is cut.
        groups: new number of groups of each convolution and group norm, by module.
    """
    owners: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        path, _, leaf = name.rpartition(".")
        owners.setdefault(path, {})[leaf] = shape
    found: list[AttributeChange] = []
    for path in {**owners, **groups}:
        owner = module.get_submodule(path)
        wanted = _wanted(owner, owners.get(path, {}), groups.get(path))
        for name, value in wanted.items():
            old = inspect.getattr_static(owner, name, None)
            if isinstance(old, (int, tuple)) and not isinstance(old, bool) and old != value:
                found.append(AttributeChange(path, name, value))
    return found


def _wanted(owner: nn.Module, cut: Mapping[str, tuple[int, ...]], groups: int | None) -> dict[str, Any]:
    """Attribute -> value for one layer, whether or not it has the attribute."""
    weight = cut.get("weight", cut.get("running_mean"))
    if weight is None:
        return {}
    if isinstance(owner, nn.LayerNorm | nn.RMSNorm):
        return {"normalized_shape": weight}
    if isinstance(owner, nn.Embedding):
        return {"num_embeddings": weight[0], "embedding_dim": weight[1]}
    if len(weight) == 1:
        sizes = dict.fromkeys(("num_features", "num_channels", "num_parameters"), weight[0])
        return sizes if groups is None else {**sizes, "num_groups": groups}
    count = groups if groups is not None else getattr(owner, "groups", 1)
    ends = (weight[0], weight[1] * count) if getattr(owner, "transposed", False) else (weight[1] * count, weight[0])
    channels = {"in_channels": ends[0], "out_channels": ends[1]}
    if len(weight) > 2:
        return {**channels, "groups": count}
    return {"in_features": weight[1], "out_features": weight[0], **channels}
