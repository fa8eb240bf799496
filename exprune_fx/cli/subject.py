"""What ``exprune explain`` is asked about: a model named on the command line, with example inputs."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram

from exprune_fx import zoo
from exprune_fx.calibration import calibrate
from exprune_fx.errors import CaptureError, ExpruneError
from exprune_fx.graph import capture
from exprune_fx.guards import Calibrated
from exprune_fx.pipeline import transform
from exprune_fx.report import Explanation, explain

Batches = list[tuple[Any, ...]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A captured model, and real examples of its inputs if there are any."""

    graph: fx.GraphModule
    batches: Batches


def is_model_name(name: str) -> bool:
    """Whether this could name a model at all."""
    module_name, _, attribute = name.partition(":")
    return name.endswith(".pt2") or name in zoo.names() or bool(module_name and attribute)


def find_subject(name: str, shapes: Sequence[tuple[int, ...]] = ()) -> Subject:
    """The model of this name, captured.

    Args:
        name: ``package.module:callable``, a .pt2 file, or a shipped model.
        shapes: of float32 noise to capture with, one for each input; a callable may return args instead, and a shipped
            model has its images.

    Raises:
        ExpruneError: there is no such model, it or it cannot be made or captured.
    """
    inputs = tuple(torch.randn(shape) for shape in shapes)
    if name.endswith(".pt2"):
        program, args = _read_program(name), inputs
        example = program.example_inputs[0] if program.example_inputs else ()
        return Subject(capture(program, args), [tuple(example)] if example else [])
    if name in zoo.names():
        batches = zoo.calibration_batches(250)
        example = (batches[0][0][:2],)
        return Subject(capture(zoo.load(name), example, dynamic_shapes=({0: Dim.AUTO},)), list(batches))
    return _from_callable(name, inputs)


def _read_program(path: str) -> ExportedProgram:
    if not Path(path).is_file():
        raise ExpruneError(f"there is no file {path!r}", hint="give a file written by torch.export.save")
    try:
        return torch.export.load(path)
    except Exception as error:  # torch raises whatever the archive's reader raises
        raise ExpruneError(
            f"{path!r} is no exported program: {type(error).__name__}: {error}",
            hint="give a file written by torch.export.save",
        ) from error


def _from_callable(name: str, inputs: tuple[torch.Tensor, ...]) -> Subject:
    model, args, examples = made_by(name, inputs)
    return Subject(capture(model, args), [examples] if examples and not inputs else [])


def made_by(
    name: str, inputs: tuple[torch.Tensor, ...]
) -> tuple[nn.Module | ExportedProgram, tuple[Any, ...], tuple[Any, ...]]:
    """What ``package.module:callable`` returns: a model, the inputs to capture it with, and its own examples.

    Raises:
        ExpruneError: it cannot be called, returns no model, or a module without inputs.
    """
    made = make(name)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[1], tuple):
        model, examples = made
    else:
        model, examples = made, ()
    if not isinstance(model, nn.Module | ExportedProgram):
        raise CaptureError(f"{name} returned a {type(model).__name__}", hint="return an nn.Module, or (module, args)")
    args = inputs or examples
    if not args and isinstance(model, nn.Module):
        raise CaptureError(
            f"{name} returned a {type(model).__name__} without example inputs",
            hint="give --input-shape, or return (module, args)",
        )
    return model, args, examples


def make(name: str) -> Any:
    """What ``package.module:callable`` returns.

    Raises:
        ExpruneError: it cannot be called.
    """
    module_name, _, attribute = name.partition(":")
    try:
        maker = importlib.import_module(module_name)
        for part in attribute.split("."):
            maker = getattr(maker, part)
        return maker()  # type: ignore[operator] # what is not callable raises, and is reported below
    except Exception as error:  # foreign code may raise anything; it is named in one line
        raise ExpruneError(
            f"{name} could not be made: {type(error).__name__}: {error}",
            hint=f"try: python -c 'import {module_name}; {module_name}.{attribute}()'",
        ) from error


def explain_subject(subject: Subject, budget: float | None) -> Explanation:
    """Explains the captured model; with a budget, calibrates and stages it first.

    The figures are then those that calibration expects: there are no other examples to measure on.

    Raises:
        ExpruneError: a budget without real examples.
    """
    if budget is None:
        return explain(subject.graph)
    if not subject.batches:
        raise ExpruneError(
            "--budget calibrates, and there are no real examples to calibrate on",
            hint="let the callable return (module, args), without --input-shape",
        )
    plan = calibrate(subject.graph, subject.batches, Calibrated(budget))
    return explain(transform(subject.graph, plan, lower=False))
