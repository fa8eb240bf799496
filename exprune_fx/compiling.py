"""Compiles a model with torch.compile so that what is timed is one graph, frozen where it says so."""

from __future__ import annotations

import contextlib
import copy
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from exprune_fx.errors import ExpruneError
from exprune_fx.graph.edits import copy_graph_module

INNER: dict[str, dict[str, Any]] = {
    "inductor": {},
    "inductor_freezing": {"freezing": True},
    "inductor_max_autotune": {"freezing": True, "max_autotune": True},
}
UNCOMPILED = "eager"  # called as any module, without torch.compile


@dataclass(eq=False)
class _Backend:
    """Inductor under some options, which counts what it is given.

    Attributes:
        options: patches of Inductor's configuration.
        compiles: how many graphs it compiled.
        tensors: how many tensors the last graph takes as inputs.
    """

    options: dict[str, Any]
    compiles: int = 0
    tensors: int = 0

    def __call__(self, gm: fx.GraphModule, example_inputs: list[Any]) -> Callable[..., Any]:
        """Compiles one graph."""
        from torch._inductor.compile_fx import compile_fx  # noqa: PLC0415 - takes seconds to import

        self.compiles += 1
        self.tensors = sum(isinstance(value, Tensor) for value in example_inputs)
        compiled = compile_fx(gm, example_inputs, config_patches=self.options)
        assert callable(compiled)  # it is something else for ahead-of-time compilation only
        return compiled


@dataclass(frozen=True, eq=False)
class Runnable:
    """A model that is ready to be timed.

    Attributes:
        name: what errors call it.
        call: it is called like the model.
        backend: what compiled it; None if it runs as it is.
    """

    name: str
    call: Callable[..., object]
    backend: _Backend | None = field(default=None, repr=False)

    def check(self) -> None:
        """Makes sure that what was timed is what was compiled.

        Raises:
            ExpruneError: it was compiled again since.
        """
        if self.backend is not None and self.backend.compiles != 1:
            raise ExpruneError(
                f"{self.name} was compiled {self.backend.compiles} times: its times are not those of one graph",
                hint="give inputs of one shape, dtype and memory layout",
            )


def compiled(
    model: nn.Module, name: str, inner: str, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Runnable:
    """A copy of the model under Inductor, compiled by one call; or the model as it is.

    ``options={"freezing": True}`` alone freezes nothing: Dynamo asks Inductor's global configuration whether to keep
    parameters in the graph, and an option is not there yet when it does. So Dynamo is told too, and that no parameter
    came in as an input is checked.

    Args:
        model: in eval mode; it is copied, a graph's weights stay where they are.
        name: what errors call it.
        inner: a key of `INNER`, or `UNCOMPILED`.
        args: positional arguments of the call.
        kwargs: keyword arguments of the call.

    Raises:
        ExpruneError: it cannot be compiled, not as one graph, or not as asked.
    """
    if inner == UNCOMPILED:
        return Runnable(name, model)
    options = INNER[inner]
    backend = _Backend(options)
    # Weights of a transformed graph stay in the memory that was made ready for them.
    own = copy_graph_module(model) if isinstance(model, fx.GraphModule) else copy.deepcopy(model)
    call = torch.compile(own, backend=backend, fullgraph=True)
    freezing = bool(options.get("freezing"))
    with torch.no_grad(), _quiet(), torch._dynamo.config.patch(prepare_freezing=freezing):
        try:
            call(*args, **(kwargs or {}))
        except ExpruneError:
            raise
        except Exception as error:  # whatever Dynamo, Inductor or the C++ compiler raise
            first = str(error).strip().splitlines()[:1]
            raise ExpruneError(
                f"{name} could not be compiled by torch.compile: {type(error).__name__}: {' '.join(first)}",
                hint="torch.compile needs a C++ compiler on CPU; see the cause chained below",
            ) from error
    given = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves((args, kwargs)))
    if freezing and backend.tensors != given:
        raise ExpruneError(
            f"{name} was not frozen: its graph takes {backend.tensors} tensors, the model {given}",
            hint="this torch freezes in another way than exprune_fx knows",
        )
    return Runnable(name, call, backend)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of autotuning on standard error, which torch 2.13 writes to in two ways, one of them without a switch."""
    with warnings.catch_warnings(), contextlib.ExitStack() as stack:
        warnings.filterwarnings("ignore", message="TypedStorage is deprecated", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"`torch\.jit\.script_method`", category=DeprecationWarning)
        from torch._inductor import config, select_algorithm  # noqa: PLC0415 - takes seconds to import

        stack.enter_context(config.patch(autotune_num_choices_displayed=0))
        if hasattr(select_algorithm, "_log_autotune_choices_stats"):
            stack.enter_context(mock.patch.object(select_algorithm, "_log_autotune_choices_stats"))
        yield
