"""``exprune experiment``."""

from __future__ import annotations

from typing import Annotated, cast

import typer

from exprune_fx.cli.names import CLASSIFIERS, CONSTANTS, EXPERIMENTS, OBJECTIVES, RANKINGS
from exprune_fx.cli.shared import (
    CheckpointsOption,
    DataDirOption,
    JsonOption,
    RankingOption,
    SeedOption,
    ThreadsOption,
    UsageError,
    check_budget,
    check_one_of,
    check_writable,
    failures,
    output_console,
    progress,
    set_threads,
    write_json,
    written_by,
)


def experiment(
    name: Annotated[str, typer.Argument(metavar="NAME", help=f"One of {', '.join(EXPERIMENTS)}.")],
    model: Annotated[
        list[str] | None,
        typer.Option("--model", metavar="NAME", help=f"Only this one, such as {', '.join(CLASSIFIERS)}; may repeat."),
    ] = None,
    data_dir: DataDirOption = None,
    checkpoints: CheckpointsOption = None,
    removed: Annotated[
        list[float] | None,
        typer.Option("--removed", metavar="FRACTION", help="Of the parameters, a point of the curves; may repeat."),
    ] = None,
    criterion: Annotated[
        list[str] | None, typer.Option("--criterion", metavar="NAME", help="Curves of this one only; may repeat.")
    ] = None,
    ranking: RankingOption = "global",
    constants: Annotated[str, typer.Option("--constants", help="exact, mean or drop; see shrink.")] = "exact",
    tune: Annotated[int, typer.Option("--tune", min=0, help="Images to fine-tune on; 0 for none.")] = 3000,
    peak_lr: Annotated[float, typer.Option("--peak-lr", help="Highest learning rate of the fine-tuning.")] = 0.005,
    target_flops: Annotated[
        float, typer.Option("--target-flops", min=0, max=1, help="Fraction that shrinking leaves before staging.")
    ] = 0.85,
    budget: Annotated[
        float, typer.Option("--budget", help="Share of each neuron's energy that staging may lose.")
    ] = 0.01,
    objective: Annotated[str, typer.Option("--objective", help="Of staging: flops or latency.")] = "flops",
    test: Annotated[int, typer.Option("--test", min=1, help="Images to judge on.")] = 10000,
    seed: SeedOption = 0,
    json_path: JsonOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Runs an experiment of static pruning, and prints its tables.

    Minutes to an hour on a CPU. The JSON is brought up to date whenever there is something new.
    """
    with failures():
        check_writable(json_path)
        set_threads(threads)
        if name not in EXPERIMENTS:
            raise UsageError(f"no experiment is called {name!r}: use one of {', '.join(EXPERIMENTS)}")
        check_budget(budget)
        check_one_of("--objective", objective, OBJECTIVES)
        check_one_of("--ranking", ranking, RANKINGS)
        check_one_of("--constants", constants, CONSTANTS)
        points = tuple(removed or (0.3, 0.5, 0.7))
        if not all(0 < fraction < 1 for fraction in points):
            raise UsageError("--removed takes fractions between 0 and 1")
        from exprune_fx.cli.experiment import Wanted, run_experiment
        from exprune_fx.report.terminal import section_renderable
        from exprune_fx.static.folding import Constants
        from exprune_fx.static.select import Ranking

        wanted = Wanted(
            models=tuple(model or ()),
            data_dir=data_dir,
            checkpoints=checkpoints,
            removed=points,
            criteria=tuple(criterion or ()),
            ranking=cast(Ranking, ranking),
            constants=cast(Constants, constants),
            tune=tune,
            peak_lr=peak_lr,
            target_flops=target_flops,
            budget=budget,
            objective=objective,
            test=test,
            seed=seed,
        )
        with progress(name) as say:
            found = run_experiment(name, wanted, say, lambda data: write_json(json_path, {**written_by(), **data}))
        console = output_console()
        for each in found:
            console.print(section_renderable(each))
