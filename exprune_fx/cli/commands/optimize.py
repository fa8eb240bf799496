"""``exprune optimize``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from exprune_fx.cli.shared import (
    JsonOption,
    ThreadsOption,
    UsageError,
    check_writable,
    failures,
    let_import_from_here,
    set_threads,
    write_json,
    written_by,
)


def optimize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="package.module:callable that returns a dict of model, args, batches, evaluate (and test, kwargs, "
            "dynamic_shapes, latency_batch), or a shipped model.",
        ),
    ],
    max_drop: Annotated[float, typer.Option("--max-drop", help="Largest drop of the metric, in its own unit.")],
    confidence: Annotated[
        float, typer.Option("--confidence", help="How sure to be that new examples lose no more: 0.5 expects it.")
    ] = 0.5,
    objective: Annotated[str, typer.Option("--objective", help="flops or latency.")] = "flops",
    head: Annotated[str, typer.Option("--head", help="auto, prefix, principal or coded.")] = "auto",
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Make thresholds again on staged inputs; slow.")
    ] = False,
    study: Annotated[
        Path | None, typer.Option("--study", metavar="FILE", help="Keeps every evaluation; goes on from what is there.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Write the plan.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Draw the trials (.png, .svg).")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the confidence intervals.")] = 0,
    json_path: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Finds the cheapest plan whose metric is at most --max-drop below the dense model's.

    Progress, with the front so far, is drawn on standard error. A search that was killed goes on where it was if it is
    called again with the same --study.
    """
    with failures():
        check_writable(study, plan, plot, json_path)
        set_threads(threads)
        from exprune_fx.cli.optimize import Wanted, optimize_named
        from exprune_fx.cli.subject import is_model_name

        if not is_model_name(model) or model.endswith(".pt2"):
            raise UsageError(f"{model!r} names no model: give package.module:callable, or a shipped model")
        let_import_from_here()
        wanted = Wanted(max_drop, confidence, objective, head, sequential, study, seed, plan, plot)
        best = optimize_named(model, wanted, sys.stderr.isatty())
        typer.echo(str(best.report))
        write_json(json_path, {**written_by(model), **best.report.to_dict()})
