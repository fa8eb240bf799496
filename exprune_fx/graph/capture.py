"""Capture: a model becomes one FX graph in the dialect (functional pre-dispatch ATen, eval mode, symbolic sizes)."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind

from exprune_fx.errors import CaptureError, ExpruneError
from exprune_fx.graph._dialect import to_dialect
from exprune_fx.graph._inputs import InputCheck, check_example, dense_layouts, describe_inputs

_aten = torch.ops.aten
_DROPOUTS = {
    _aten.dropout.default,
    _aten.dropout_.default,
    _aten.feature_dropout.default,
    _aten.alpha_dropout.default,
    _aten.feature_alpha_dropout.default,
    _aten.native_dropout.default,
}
_PRODUCTS = {
    _aten.linear.default,
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.mm.default,
    _aten.bmm.default,
    _aten.addmm.default,
    _aten.matmul.default,
}


def capture(
    model: nn.Module | ExportedProgram,
    args: tuple[Any, ...] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> fx.GraphModule:
    """Captures a model as an FX graph in this library's dialect.

    The graph is that of eval mode whatever mode the model is in; the model itself comes back untouched. The result is
    called like the model, holds the model's own tensors (shared, never copied), and refuses inputs for which the graph
    is not valid. ``gm.meta["exprune_constants"]`` names the get_attr targets that are lifted constants or
    non-persistent buffers; ``gm.meta["exprune_aliases"]`` maps a dropped name of a shared tensor to the kept one.

    Args:
        model: an `nn.Module` (an `fx.GraphModule` too), or an `ExportedProgram`, for which `args` may be left out.
        args: the example's positional arguments, a tuple.
        kwargs: the example's keyword arguments.
        dynamic_shapes: which sizes stay symbolic, as `torch.export.export` takes it.

    Returns:
        A GraphModule of placeholder, get_attr, call_function and output nodes, each with ``meta["val"]`` and
        ``meta["module_path"]``.

    Raises:
        CaptureError: not a module, unusable example inputs, a forward that fails or cannot be exported, or a model
            that changes its buffers or inputs.
    """
    kwargs = dict(kwargs or {})
    if isinstance(model, ExportedProgram):
        program = _check_program(model, args, kwargs, dynamic_shapes)
    elif isinstance(model, nn.Module):
        check_example(model, args, kwargs)
        args, kwargs = dense_layouts(args, kwargs)
        with _eval_mode(model), _attributes_kept(model):
            program = _export(model, args, kwargs, dynamic_shapes)
    else:
        raise CaptureError(
            f"cannot capture {_type_name(model)}",
            hint="pass an nn.Module, an fx.GraphModule or a torch.export.ExportedProgram",
        )
    return _from_program(
        program, given_inputs=isinstance(model, ExportedProgram) and bool(args or kwargs), inputs=(args, kwargs)
    )


def _type_name(value: object) -> str:
    return (
        f"the class {value.__name__}, not an instance of it" if isinstance(value, type) else f"a {type(value).__name__}"
    )


@contextlib.contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for every submodule, without calling train() or eval(), which a model may have overridden."""
    flags = [(module, module.training) for module in model.modules()]
    try:
        for module, _ in flags:
            module.training = False
        yield
    finally:
        for module, training in flags:
            module.training = training


@contextlib.contextmanager
def _attributes_kept(module: nn.Module) -> Iterator[None]:
    """Afterwards, all submodules have the attributes that they had: a forward that keeps tensors kept fake ones."""
    before = [(each, dict(vars(each))) for each in module.modules()]
    try:
        yield
    finally:
        for each, held in before:
            now = vars(each)
            for name in now.keys() - held.keys():
                del now[name]
            now.update(held)


@contextlib.contextmanager
def known_warnings() -> Iterator[None]:
    """Silences what torch says about its own internals: tree specs that it copies, and recurrent modules."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*LeafSpec", category=FutureWarning)
        # nn.LSTM and its kin keep a list of their parameters, which torch.export replaces and puts back.
        warnings.filterwarnings(
            "ignore", message=r"The tensor attributes self\.[\w.]*_flat_weights\[", category=UserWarning
        )
        yield


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic_shapes: Any) -> ExportedProgram:
    try:
        with known_warnings():
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except ExpruneError:
        raise
    except Exception as error:  # whatever the forward or torch.export raises is chained
        name = type(error).__name__
        raise CaptureError(
            f"{type(model).__name__} could not be exported with {describe_inputs(args, kwargs)}: "
            f"{name}: {_first_lines(error)}",
            hint=_hint(name, str(error)),
        ) from error


def _first_lines(error: BaseException, limit: int = 400) -> str:
    text = " ".join(line.strip() for line in str(error).strip().splitlines()[:4])
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _hint(name: str, text: str) -> str:
    if "DataDependent" in name or "data-dependent" in text.lower():
        return "the model takes a size or a branch from the values of a tensor; compute it outside the model"
    if ("onstraint" in text and "violated" in text) or "dynamic_shapes" in text or "dynamic shape" in text:
        return "make dynamic_shapes agree with what the model needs (Dim.AUTO lets torch.export decide)"
    unregistered = "register a pytree" in text or "register_dataclass" in text
    if unregistered or (name == "TypeError" and "unhashable type" in text):  # as torch before 2.12 says it
        return "register the output class: torch.export.register_dataclass(cls), or return a tuple or dict"
    return "check that model(*args, **kwargs) works in eval mode; the cause is chained below"


def _check_program(
    program: ExportedProgram, args: object, kwargs: Mapping[str, Any], dynamic_shapes: Any
) -> ExportedProgram:
    if dynamic_shapes is not None:
        raise CaptureError("an ExportedProgram has its dynamic shapes already", hint="pass dynamic_shapes to export")
    if not isinstance(args, tuple):
        raise CaptureError(f"args must be a tuple, not {type(args).__name__}", hint="write (x,) for one input x")
    if (args or kwargs) and program.call_spec.in_spec is None:
        raise CaptureError("the ExportedProgram does not say what its inputs are", hint="leave args out")
    for node in program.graph.nodes:
        if node.op == "call_function" and node.target in _DROPOUTS and node.args[2] is True:
            raise CaptureError(
                f"the ExportedProgram was exported in train mode: {node.name} drops at random",
                hint="export model.eval()",
            )
    return program


def _from_program(program: ExportedProgram, *, given_inputs: bool, inputs: tuple[Any, Any]) -> fx.GraphModule:
    try:
        with known_warnings():
            program = program.run_decompositions({})
    except Exception as error:  # torch gives no narrower type
        raise CaptureError(f"torch.export could not functionalise the graph: {_first_lines(error)}") from error
    _refuse_mutation(program)
    with known_warnings():
        lifted = program.module(check_guards=False)
    gm = to_dialect(lifted.graph, _tensors(program), _constants(program))
    _refuse_mixed_dtypes(gm)
    check = InputCheck.from_graph(gm.graph, program.range_constraints, getattr(program, "_guards_code", ()))
    check.attach(gm)
    if given_inputs:
        check(gm, inputs[0], inputs[1])
    return gm


def _refuse_mixed_dtypes(gm: fx.GraphModule) -> None:
    """Fake tensors let a product of two dtypes pass; the real operators refuse it at every call."""
    for node in gm.graph.nodes:
        if node.target not in _PRODUCTS:
            continue
        operands = [value for n in node.args if isinstance(n, fx.Node) and isinstance(value := n.meta["val"], Tensor)]
        if len({value.dtype for value in operands}) > 1:
            shown = ", ".join(f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}" for value in operands)
            path = node.meta["module_path"]
            raise CaptureError(
                f"{node.name}{f' in module {path!r}' if path else ''} multiplies tensors of different dtypes: {shown}",
                hint="give example inputs of the dtype that the model's forward takes",
            )


def _refuse_mutation(program: ExportedProgram) -> None:
    mutations = (
        OutputKind.BUFFER_MUTATION,
        OutputKind.USER_INPUT_MUTATION,
        getattr(OutputKind, "PARAMETER_MUTATION", None),
    )
    for spec in program.graph_signature.output_specs:
        if spec.kind in mutations:
            raise CaptureError(
                f"the model writes to {spec.target!r} ({spec.kind.name.lower().replace('_', ' ')})",
                hint="return the new value instead; a batch norm must be in eval mode",
            )
    for given in program.graph_signature.input_specs:
        if given.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN) and not isinstance(given.arg, ConstantArgument):
            raise CaptureError(f"the model holds {given.target!r}, which is not a tensor", hint="keep it outside")


def _tensors(program: ExportedProgram) -> dict[str, Tensor]:
    """Every tensor by name, parameters first: the first name of a shared tensor is the one that is kept."""
    signature = program.graph_signature
    named = {name: program.state_dict[name] for name in signature.parameters if name in program.state_dict}
    order = [name for name in program.state_dict if name in named]
    tensors = {name: named[name] for name in order}
    tensors |= {name: value for name, value in program.state_dict.items() if name not in tensors}
    return tensors | {name: value for name, value in program.constants.items() if isinstance(value, Tensor)}


def _constants(program: ExportedProgram) -> frozenset[str]:
    return frozenset(name for name, value in program.constants.items() if isinstance(value, Tensor))
