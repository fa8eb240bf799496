"""`load`: a fresh model gives the structure, the file every value."""

from __future__ import annotations

import copy
import difflib
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from exprune_fx.errors import SaveError
from exprune_fx.graph import capture, tensor_at, tensor_names
from exprune_fx.graph.edits import ALIASES_KEY, CONSTANTS_KEY
from exprune_fx.graph.signature import Signature
from exprune_fx.pipeline import record_of
from exprune_fx.saving.content import Content
from exprune_fx.saving.replay import as_replacement, bound, graph_text, replayed, shortened, shown

_log = logging.getLogger(__name__)


def load(
    model: nn.Module | ExportedProgram,
    path: str | os.PathLike[str],
    args: tuple[Any, ...] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> fx.GraphModule:
    """Makes the staged graph that was saved, on a fresh model.

    The model gives the structure, the file every value: its weights may be anything, and stay as they are. It must be
    of the architecture and dtype that was saved; it may be on another device.

    Args:
        model: an `nn.Module`, which is captured as it was for the plan, from what the file says of its inputs; or a
            graph that ``capture`` made; or an `ExportedProgram`.
        path: a file written by ``save``.
        args: example arguments to capture with, where the file cannot say how the model is called (inputs in
            containers that torch has no text for; ``save`` warns of it). Else to be left out.
        kwargs: with ``args``, as ``capture`` takes it.
        dynamic_shapes: with ``args``, as ``capture`` takes it.

    Returns:
        A staged graph, in the form that was saved, with the outputs of the saved one; in the readable form where the
        native kernels cannot be built.

    Raises:
        SaveError: the file cannot be read, is truncated, of another version or not one of these, or was made of
            another model; the message lists the differences.
        PlanError: the plan in it is corrupt.
        CaptureError: the model cannot be captured.
    """
    content = Content.read(Path(path))
    gm = _captured(model, content, args, kwargs, dynamic_shapes)
    _check_fits(gm, content, Path(path))
    return replayed(bound(gm, content.tensors), content.plan, lowered=content.lowered, fused=content.fused)


def _captured(
    model: nn.Module | ExportedProgram,
    content: Content,
    args: tuple[Any, ...] | None,
    kwargs: Mapping[str, Any] | None,
    dynamic_shapes: Any,
) -> fx.GraphModule:
    if isinstance(model, fx.GraphModule) and CONSTANTS_KEY in model.meta:
        if record_of(model) is not None:
            raise SaveError("the model is a staged graph", hint="give the model, or the graph that capture made of it")
        return model
    if args is not None or kwargs is not None or not isinstance(model, nn.Module):
        return capture(model, args or (), kwargs, dynamic_shapes)
    if content.signature is None:
        raise SaveError(
            f"the file does not say how the model is called: {content.unsigned}",
            hint="give example inputs: load(model, path, args, kwargs, dynamic_shapes), as for capture",
        )
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    signature = Signature.from_dict(content.signature)
    example, named = signature.example(device)
    return capture(_in_layout_of(model, content), example, named, signature.dynamic_shapes(example, named))


def _in_layout_of(model: nn.Module, content: Content) -> nn.Module:
    """The model; a copy around the file's tensors where those lie in memory otherwise, which changes what is captured.

    A flatten behind a channels-last convolution is no view, for one.
    """
    held = (*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False))
    file = content.tensors
    pairs = [(old, file[name]) for name, old in held if name in file and shown(old) == shown(file[name])]
    if all(old.stride() == new.stride() for old, new in pairs):
        return model
    # With the new tensors in its memo, a deep copy copies no weight.
    return copy.deepcopy(model, {id(old): as_replacement(new, old) for old, new in pairs})


def _check_fits(gm: fx.GraphModule, content: Content, path: Path) -> None:
    """Refuses a model that is not the one that was saved."""
    differences = _tensor_differences(gm, content) or _graph_differences(gm, content)
    if differences:
        raise SaveError(
            f"{str(path)!r} was made of another model:\n    {shortened(differences)}",
            hint="build the model as it was built when it was saved, in the same dtype",
        )


def _tensor_differences(gm: fx.GraphModule, content: Content) -> list[str]:
    saved = {name: shown(tensor) for name, tensor in content.tensors.items()}
    found = {name: shown(tensor_at(gm, name)) for name in tensor_names(gm)}
    elsewhere = saved.keys() - found.keys() - gm.meta.get(ALIASES_KEY, {}).keys()
    differences = [f"{name!r} is in the file, not in the model" for name in elsewhere]
    differences += [f"{name!r} is in the model, not in the file" for name in found.keys() - saved.keys()]
    differences += [
        f"{name!r} is {found[name]} in the model, {saved[name]} in the file"
        for name in found.keys() & saved.keys()
        if found[name] != saved[name]
    ]
    return sorted(differences)


def _graph_differences(gm: fx.GraphModule, content: Content) -> list[str]:
    """Lines that only one of the two graphs has: same tensors, but another activation, stride, or constant.

    Two releases of torch may capture one model differently; then the differences are logged, and left to the plan.
    """
    before, now = content.graph.splitlines(), graph_text(gm).splitlines()
    lines = list(difflib.unified_diff(before, now, lineterm="", n=0))[2:]
    sides = {"-": "file:  ", "+": "model: "}
    differing = [sides[line[0]] + line[1:].strip() for line in lines if line[0] in sides]
    if differing and content.torch_version != str(torch.__version__):
        _log.warning(
            "torch %s captures the model differently than torch %s, which wrote the file, did: %s",
            torch.__version__,
            content.torch_version,
            shortened(differing, "; "),
        )
        return []
    return differing
