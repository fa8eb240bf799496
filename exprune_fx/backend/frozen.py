"""Keeps what derives from parameters from call to call, and notices when it has to be computed again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.backend.program import Program
from exprune_fx.staging.pages import back_by_huge_pages

Compiled = Callable[..., Any]
Stamp = tuple[tuple[int, int], ...]


@dataclass(frozen=True, eq=False)
class _Kept:
    """What was computed from one set of parameters."""

    stamp: Stamp
    tensors: tuple[Tensor, ...]
    parameters: tuple[weakref.ref[Tensor], ...]


@dataclass(frozen=True, eq=False)
class Frozen:
    """A compiled graph that takes Dynamo's inputs and then the tensors that derive from its parameters.

    Dynamo runs one compiled graph for every instance of a class. So what was derived is kept for each set of
    parameters by itself, for as long as they live, and is computed again when one was written to (its version moved)
    or got other memory. A write through ``parameter.data`` leaves no trace.

    Attributes:
        compiled: what the inner backend made.
        derivation: Dynamo's inputs -> the derived tensors.
        watched: which of Dynamo's inputs these read.
        large: which of Dynamo's inputs the fused operators read as they are.
    """

    compiled: Compiled
    derivation: fx.GraphModule
    watched: tuple[int, ...]
    large: tuple[int, ...] = ()
    _kept: dict[tuple[int, ...], _Kept] = field(default_factory=dict, repr=False)

    @staticmethod
    def of(
        program: Program, inputs: Sequence[Any], compile_graph: Callable[[fx.GraphModule, list[Any]], Compiled]
    ) -> Frozen:
        """Derives from the example's parameters, and compiles with the sizes of what came of it.

        The example holds them without values: AOTAutograd would take the sizes of other tensors for symbolic.
        """
        kept: dict[tuple[int, ...], _Kept] = {}
        derivation, watched = program.derivation(), tuple(program.watched())
        derived = Frozen(_no_call, derivation, watched, program.large(), kept).derived(inputs)
        sizes = [program.fake_mode.from_tensor(tensor, static_shapes=True) for tensor in derived]
        compiled = compile_graph(program.frozen(), [*inputs, *sizes])
        return Frozen(compiled, derivation, watched, program.large(), kept)

    def __call__(self, *args: Any) -> Any:
        """Calls the compiled graph."""
        return self.compiled(*args, *self.derived(args))

    def derived(self, args: Sequence[Any]) -> tuple[Tensor, ...]:
        """The derived tensors for these parameters."""
        parameters = [args[place] for place in self.watched]
        key = tuple(map(id, parameters))
        stamp = _stamp(parameters)
        kept = self._kept.get(key)
        if kept is not None and stamp is not None and kept.stamp == stamp:
            return kept.tensors
        with torch.inference_mode(False), torch.no_grad():
            tensors = tuple(self.derivation(*args))
        back_by_huge_pages([*tensors, *(args[place] for place in self.large)])
        if stamp is not None:
            # An id may be given to another tensor once its owner is gone.
            refs = tuple(weakref.ref(parameter, lambda _: self._kept.pop(key, None)) for parameter in parameters)
            self._kept[key] = _Kept(stamp, tensors, refs)
        return tensors


def _stamp(parameters: Sequence[Tensor]) -> Stamp | None:
    """Changes when a parameter is written to or gets other memory; None where that leaves no trace."""
    if any(parameter.is_inference() for parameter in parameters):
        return None  # keeps no version
    return tuple((parameter.data_ptr(), parameter._version) for parameter in parameters)


def _no_call(*_: Any) -> Any:
    raise AssertionError("nothing is compiled yet")
