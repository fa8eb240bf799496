"""``exprune bench``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exprune_fx.cli.shared import (
    CheckpointsOption,
    DataDirOption,
    JsonOption,
    ModelsOption,
    ThreadsOption,
    check_budget,
    check_one_of,
    check_writable,
    failures,
    output_console,
    progress,
)


def bench(
    model: ModelsOption = None,
    rows: Annotated[
        list[str] | None,
        typer.Option(
            "--rows", metavar="FILTER", help="micro, models, all, or a part of a row's name; may be repeated."
        ),
    ] = None,
    batch: Annotated[int | None, typer.Option("--batch", min=1, help="Examples in one call, for every row.")] = None,
    dtype: Annotated[
        list[str] | None, typer.Option("--dtype", metavar="DTYPE", help="float32, bfloat16 or float16, for every row.")
    ] = None,
    threads: ThreadsOption = None,
    json_path: JsonOption = None,
    checkpoints: CheckpointsOption = None,
    data_dir: DataDirOption = None,
    budget: Annotated[
        float,
        typer.Option("--budget", help="Share of each neuron's energy that stopping may lose, for models with data."),
    ] = 0.01,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Stage the one model that is chosen by this plan instead."),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="A few calls only: checks that everything works, measures nothing.")
    ] = False,
    readable: Annotated[bool, typer.Option("--readable", hidden=True)] = False,
) -> None:
    """Times models as they are, under torch.compile in three settings, and staged, beside each other in one run.

    Compiling takes up to a minute a row and more for a whole model. The JSON is brought up to date after every row. Its
    keys say what each figure is.
    """
    with failures():
        check_budget(budget)
        check_writable(json_path)
        from exprune_fx.bench.selection import DTYPES, select_rows
        from exprune_fx.cli.bench import Settings, run_bench
        from exprune_fx.plan import Plan

        for name in dtype or ():
            check_one_of("--dtype", name, tuple(DTYPES))
        specs = select_rows(
            rows or (),
            model or (),
            batch=batch,
            dtypes=[DTYPES[name] for name in dtype] if dtype else None,
            checkpoints=checkpoints,
            data_dir=data_dir,
            budget=budget,
            plan=None if plan is None else Plan.load(plan),
        )
        settings = Settings(threads, quick, not readable, json_path)
        with progress("machine") as say:
            run_bench(specs, settings, output_console(), say)
