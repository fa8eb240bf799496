"""Passes as values, pipelines as tuples of passes, and a runner that verifies the graph between them."""

from __future__ import annotations

import ast
import dataclasses
import logging
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import fx

from exprune_fx.errors import ExpruneError, PassError
from exprune_fx.graph.edits import tensor_at, tensor_names
from exprune_fx.graph.verify import require_graph, verify

_log = logging.getLogger(__name__)
_PASS_TEXT = re.compile(r"(?P<name>[a-z0-9]+(-[a-z0-9]+)*)(\{(?P<options>.*)\})?", re.DOTALL)
# A quoted string as repr writes it, or one other character.
_TOKEN = re.compile(r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|.", re.DOTALL)


@dataclass(frozen=True)
class PassResult:
    """What a pass gives.

    Attributes:
        graph_module: the result; the pass's input itself only when nothing changed.
        changed: whether anything changed; False on the second run of a pass.
        edits: the number of rewrites made.
    """

    graph_module: fx.GraphModule
    changed: bool
    edits: int


@runtime_checkable
class Pass(Protocol):
    """A graph transform as a value: a frozen dataclass whose fields are its options.

    Its class docstring is its contract: what it requires, what it ensures, and what is not valid after it. It never
    mutates its input; it works on a copy from `copy_graph_module`.
    """

    name: ClassVar[str]

    def __call__(self, gm: fx.GraphModule) -> PassResult:
        """Runs the pass."""
        ...


def run_pipeline(gm: fx.GraphModule, passes: tuple[Pass, ...], *, verify_between: bool = True) -> fx.GraphModule:
    """Runs passes one after another; the given graph module is not changed.

    Args:
        gm: a graph in the dialect.
        passes: the pipeline.
        verify_between: whether to verify before, between and after, and that no pass changed its input.

    Raises:
        CaptureError: it is no graph: the model was not captured.
        VerifyError: the graph breaks an invariant, before the first pass or after the one that is named.
        PassError: a pass failed, or changed its input; the message names it.
        ExpruneError: raised by a pass; a note names it.
    """
    require_graph(gm)
    if verify_between:
        verify(gm, after="")
    for step in passes:
        before = _fingerprint(gm) if verify_between else ()
        result = _run_one(step, gm)
        _log.debug("%s: changed=%s, edits=%d", step.name, result.changed, result.edits)
        if verify_between:
            if _fingerprint(gm) != before:
                raise PassError(f"pass {step.name!r} changed the graph or a tensor that it was given")
            if result.changed:
                verify(result.graph_module, after=step.name)
        gm = result.graph_module
    return gm


def _run_one(step: Pass, gm: fx.GraphModule) -> PassResult:
    try:
        result = step(gm)
    except ExpruneError as error:
        error.add_note(f"raised in pass {step.name!r}")
        raise
    except Exception as error:
        raise PassError(
            f"pass {step.name!r} failed: {type(error).__name__}: {error}",
            hint="this is a defect of the pass; the graph that it was given is unchanged",
        ) from error
    if not isinstance(result, PassResult):
        raise PassError(f"pass {step.name!r} gave {type(result).__name__}, not a PassResult")
    return result


def _fingerprint(gm: fx.GraphModule) -> tuple[object, ...]:
    """Equal before and after unless nodes, arguments, tensor bindings or tensor contents changed."""
    nodes = tuple((n.name, n.op, str(n.target), str(n.args), str(n.kwargs)) for n in gm.graph.nodes)
    tensors = ((name, tensor_at(gm, name)) for name in tensor_names(gm))
    # An inference tensor keeps no version, and cannot be written to outside inference mode.
    return nodes, tuple((name, id(t), 0 if t.is_inference() else t._version) for name, t in tensors)


def describe(passes: tuple[Pass, ...]) -> str:
    """The text form of a pipeline, e.g. ``drop-no-ops,fold-batch-norm{eps-floor=0}``; `parse` reads it back.

    Options that have their default value are left out.

    Raises:
        PassError: an option is not a Python literal, so that it has no text form.
    """
    return ",".join(map(_describe_one, passes))


def _describe_one(step: Pass) -> str:
    options = []
    for field in dataclasses.fields(step):  # type: ignore[arg-type] # a Pass is a dataclass, which no Protocol can say
        value = getattr(step, field.name)
        default = field.default_factory() if callable(field.default_factory) else field.default
        if value == default and type(value) is type(default):
            continue
        options.append(f"{field.name.replace('_', '-')}={value!r}")
        if _literal(repr(value)) != value:
            raise PassError(f"option {field.name}={value!r} of pass {step.name!r} has no text form")
    return f"{step.name}{{{','.join(options)}}}" if options else step.name


def parse(text: str, registry: Mapping[str, type[Pass]]) -> tuple[Pass, ...]:
    """Reads a pipeline's text form.

    Args:
        text: passes separated by commas, each ``name`` or ``name{option=literal,...}``.
        registry: pass classes by name.

    Raises:
        PassError: the text is malformed, or a pass or an option is not known.
    """
    return tuple(_parse_one(part, registry) for part in _split(text)) if text.strip() else ()


def _parse_one(text: str, registry: Mapping[str, type[Pass]]) -> Pass:
    match = _PASS_TEXT.fullmatch(text)
    if match is None:
        raise PassError(f"{text!r} is not a pass", hint="write name or name{option=value}")
    name = match["name"]
    if name not in registry:
        raise PassError(f"there is no pass {name!r}", hint=f"the passes are {', '.join(sorted(registry))}")
    cls = registry[name]
    known = {f.name.replace("_", "-"): f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type] # as above
    options: dict[str, Any] = {}
    for option in _split(match["options"] or ""):
        key, equals, value = option.partition("=")
        if not equals or key.strip() not in known:
            raise PassError(f"{option!r} is not an option of pass {name!r}", hint=f"it has {sorted(known) or 'none'}")
        options[known[key.strip()]] = _literal(value)
    return cls(**options)


def _literal(text: str) -> Any:
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError) as error:
        raise PassError(f"{text!r} is not a Python literal", hint="quote strings") from error


def _split(text: str) -> Iterator[str]:
    """Splits at the commas that are inside no bracket and no quotes."""
    depth, start = 0, 0
    for match in _TOKEN.finditer(text):
        token = match[0]
        if token in "([{":
            depth += 1
        elif token in ")]}":
            depth -= 1
        elif token == "," and depth == 0:
            yield text[start : match.start()].strip()
            start = match.end()
    if text[start:].strip():
        yield text[start:].strip()
