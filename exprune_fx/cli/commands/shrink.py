"""``exprune shrink``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, cast

import typer

from exprune_fx.cli.names import CONSTANTS, CRITERIA, RANKINGS
from exprune_fx.cli.shared import (
    JsonOption,
    RankingOption,
    ShapesOption,
    ThreadsOption,
    UsageError,
    check_one_of,
    check_writable,
    failures,
    let_import_from_here,
    parse_shape,
    progress,
    set_threads,
    write_json,
    written_by,
)


def shrink(
    model: Annotated[
        str,
        typer.Argument(metavar="MODEL", help="package.module:callable, as for explain, or a shipped model."),
    ],
    input_shape: ShapesOption = None,
    criterion: Annotated[str, typer.Option("--criterion", help=f"One of {', '.join(CRITERIA)}.")] = CRITERIA[0],
    a: Annotated[float, typer.Option("--a", min=0, max=1, help="Weight of magnitude in hybrid.")] = 0.5,
    target_flops: Annotated[
        float | None, typer.Option("--target-flops", help="Fraction of FLOPs that remains.")
    ] = None,
    target_params: Annotated[
        float | None, typer.Option("--target-params", help="Fraction of parameters to leave.")
    ] = None,
    fraction_removed: Annotated[
        float | None, typer.Option("--fraction-removed", help="Fraction of channels, neurons and heads that go.")
    ] = None,
    ranking: RankingOption = "global",
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore", metavar="NAME", help="Module, parameter or group to leave whole.")
    ] = None,
    constants: Annotated[
        str, typer.Option("--constants", help="exact; mean: keeps more accuracy, adds biases; drop.")
    ] = "exact",
    round_to: Annotated[int, typer.Option("--round-to", min=1, help="Members kept are a multiple of this.")] = 1,
    min_kept: Annotated[int, typer.Option("--min-kept", min=1, help="Members that every group keeps.")] = 1,
    plan: Annotated[Path | None, typer.Option("--plan", metavar="FILE", help="Write the channel plan.")] = None,
    weights: Annotated[Path | None, typer.Option("--weights", metavar="FILE", help="Write the state dict.")] = None,
    json_path: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Removes the channels, neurons and heads that matter least for good, and prints a table of every group.

    Expressiveness and hybrid look at the shipped images, at the args that the callable returns, or at noise. Groups of
    which the model's own code fixes the size are left whole.
    """
    given = [value for value in (target_flops, target_params, fraction_removed) if value is not None]
    with failures():
        check_writable(plan, weights, json_path)
        set_threads(threads)
        shapes = [parse_shape(text) for text in input_shape or []]
        check_one_of("--criterion", criterion, CRITERIA)
        check_one_of("--ranking", ranking, RANKINGS)
        check_one_of("--constants", constants, CONSTANTS)
        if len(given) != 1:
            raise UsageError("give one of --target-flops, --target-params and --fraction-removed")
        from exprune_fx.cli.shrink import Wanted, shrink_named
        from exprune_fx.cli.subject import is_model_name
        from exprune_fx.static.folding import Constants
        from exprune_fx.static.select import Ranking

        if not is_model_name(model) or model.endswith(".pt2"):
            raise UsageError(f"{model!r} names no module: give package.module:callable or a shipped model")
        let_import_from_here()
        wanted = Wanted(
            criterion=criterion,
            a=a,
            target_flops=target_flops,
            target_params=target_params,
            fraction_removed=fraction_removed,
            ranking=cast(Ranking, ranking),
            ignore=tuple(ignore or ()),
            constants=cast(Constants, constants),
            round_to=round_to,
            min_kept=min_kept,
            plan=plan,
            weights=weights,
        )
        with progress(model) as say:
            small, figures = shrink_named(model, shapes, wanted, say)
        typer.echo(str(small.report))
        for name, value in figures.items():
            typer.echo(f"{name.replace('_', ' ')}: {100 * value:.2f} %")
        write_json(json_path, {**written_by(model), **figures, **small.report.to_dict()})
