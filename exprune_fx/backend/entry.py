"""The ``torch.compile`` backend itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from exprune_fx.backend import once
from exprune_fx.backend.autocast import autocast_is_on, no_autocast, with_explicit_casts
from exprune_fx.backend.frozen import Frozen
from exprune_fx.backend.inner import compile_inner
from exprune_fx.backend.options import Options, read_options
from exprune_fx.backend.program import Program
from exprune_fx.backend.stage import stage
from exprune_fx.backend.tracing import trace
from exprune_fx.errors import ExpruneError, GuardError, KernelError, PlanError

_aten = torch.ops.aten
Compiled = Callable[..., Any]


def exprune(
    gm: fx.GraphModule,
    example_inputs: Sequence[Any],
    *,
    options: Mapping[str, Any] | None = None,
    mode: str | None = None,
) -> Compiled:
    """Stages the sites of one of Dynamo's graphs and hands it to another backend: ``torch.compile(backend="exprune")``.

    Args:
        gm: Dynamo's graph.
        example_inputs: its inputs, the parameters among them.
        options: see `exprune_fx.backend.options.Options`.
        mode: of the inner backend.

    Returns:
        What computes the graph.

    Raises:
        ExpruneError: an unknown option, or one of another type.
        PlanError: the plan was made for another model.
        KernelError: ``EXPRUNE_KERNELS=native``, and the kernels cannot be had.
    """
    chosen = read_options(options)
    program = _program(gm, example_inputs, chosen)
    if isinstance(program, str):
        once.warn(f"exprune hands a graph to {chosen.inner} as it is: {program}")
        return compile_inner(gm, example_inputs, chosen.inner, mode)
    with no_autocast():
        compiled = _compiled(
            program,
            example_inputs,
            chosen.freeze,
            lambda graph, inputs: compile_inner(graph, inputs, chosen.inner, mode),
        )
    return _without_autocast(compiled) if autocast_is_on() else compiled


def _compiled(
    program: Program, example_inputs: Sequence[Any], freeze: bool, compile_graph: Callable[..., Compiled]
) -> Compiled:
    derived = program.derived()
    if derived and freeze:
        return Frozen.of(program, example_inputs, compile_graph)
    if derived:
        many = "1 tensor is" if len(derived) == 1 else f"{len(derived)} tensors are"
        once.inform(f"{many} computed from the parameters at each call of a graph; option freeze=True keeps them")
    return compile_graph(program.live(), example_inputs)


def _without_autocast(compiled: Compiled) -> Compiled:
    """Its casts are written out: autocast would cast once more, and inside operators that compute in float64."""

    def call(*args: Any) -> Any:
        with no_autocast():
            return compiled(*args)

    return call


def _program(gm: fx.GraphModule, example_inputs: Sequence[Any], options: Options) -> Program | str:
    """The staged program; why there is none, if the graph is to be compiled as it is."""
    if torch.is_grad_enabled() and any(isinstance(v, Tensor) and v.requires_grad for v in example_inputs):
        return "gradients are enabled; call the model under torch.inference_mode() or torch.no_grad()"
    try:
        explicit = with_explicit_casts(gm)
        with no_autocast():
            traced = trace(explicit, example_inputs)
            if _in_training(traced.gm):
                return "it is in training mode; call model.eval()"
            staged = stage(traced, options)
    except (PlanError, GuardError, KernelError):
        raise  # of what the caller asked for
    except ExpruneError as error:
        return f"it cannot be staged: {error}"
    if isinstance(staged, str):
        return staged
    placeholders = [node for node in gm.graph.nodes if node.op == "placeholder"]
    results: Any = gm.graph.output_node().args[0]
    return Program(placeholders, results, traced, *staged)


def _in_training(gm: fx.GraphModule) -> bool:
    places = {_aten.batch_norm.default: 5, _aten.dropout.default: 2}
    return any(node.target in places and node.args[places[node.target]] is not False for node in gm.graph.nodes)
