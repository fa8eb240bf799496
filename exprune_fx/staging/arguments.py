"""The arguments of fused operators by the names that their schemas give them: a dozen of them in four orders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx


def arguments_of(call: fx.Node) -> dict[str, Any]:
    """What a fused operator's node is given, by name, in the schema's order; defaults for what it is not given."""
    assert isinstance(call.target, torch._ops.OpOverload)
    arguments = call.target._schema.arguments
    given = [*call.args, *(argument.default_value for argument in arguments[len(call.args) :])]
    return dict(zip(names_of(call.target), given, strict=True))


def in_order(target: torch._ops.OpOverload, given: Mapping[str, Any]) -> tuple[Any, ...]:
    """What an operator takes of what is given, but for last arguments that are what they would be by default."""
    arguments = list(target._schema.arguments)
    while arguments and _may_be_left_out(arguments[-1], given):
        arguments.pop()
    return tuple(given[argument.name] for argument in arguments)


def _may_be_left_out(argument: torch._C.Argument, given: Mapping[str, Any]) -> bool:
    value, default = given.get(argument.name), argument.default_value
    return argument.has_default_value() and (value is default or (isinstance(default, list) and value == default))


def names_of(target: torch._ops.OpOverload) -> list[str]:
    """Of an operator's arguments, in the order in which it takes them."""
    return [argument.name for argument in target._schema.arguments]
