"""``exprune explain``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exprune_fx.cli.shared import (
    JsonOption,
    ShapesOption,
    ThreadsOption,
    UsageError,
    check_budget,
    check_writable,
    failures,
    let_import_from_here,
    output_console,
    parse_shape,
    set_threads,
    write_json,
    written_by,
)


def explain(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:callable that returns a module or (module, args), a .pt2 file, or a shipped model.",
        ),
    ],
    input_shape: ShapesOption = None,
    budget: Annotated[
        float | None,
        typer.Option("--budget", help="Also calibrate and stage, losing at most this share of energy."),
    ] = None,
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="Also write a page.")] = None,
    json_path: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Says which symmetry groups and sites a model has, what can be staged, and what cannot and why.

    With --budget it also calibrates and stages the model; that needs real examples: a shipped model's, those of a .pt2
    file, or the args that the callable returns.
    """
    with failures():
        check_budget(budget)
        check_writable(html, json_path)
        set_threads(threads)
        from exprune_fx.cli.subject import explain_subject, find_subject, is_model_name

        shapes = [parse_shape(text) for text in input_shape or []]
        if not is_model_name(model):
            raise UsageError(f"{model!r} names no model: give package.module:callable, a .pt2 file, or a shipped model")
        let_import_from_here()
        found = explain_subject(find_subject(model, shapes), budget)
        output_console().print(found)
        if html is not None:
            found.html(html)
        write_json(json_path, {**written_by(model), **found.to_dict()})
