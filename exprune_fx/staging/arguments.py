"""The arguments of fused operators by the names that their schemas give them: a dozen of them in four orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


def arguments_of(call: fx.Node) -> dict[str, Any]:
    """What a fused operator's node is given, by name, in the schema's order."""
    assert isinstance(call.target, torch._ops.OpOverload)
    return dict(zip(names_of(call.target), call.args, strict=True))


def in_order(target: torch._ops.OpOverload, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an operator takes of what is given; every argument must be there."""
    return tuple(given[name] for name in names_of(target))


def names_of(target: torch._ops.OpOverload) -> list[str]:
    """Of an operator's arguments, in the order in which it takes them."""
    return [argument.name for argument in target._schema.arguments]
