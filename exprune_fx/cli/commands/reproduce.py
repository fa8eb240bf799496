"""``exprune reproduce``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from exprune_fx.cli.names import SUBJECTS
from exprune_fx.cli.shared import (
    JsonOption,
    RequiredDataDirOption,
    SeedOption,
    ThreadsOption,
    UsageError,
    check_writable,
    failures,
    output_console,
    progress,
    set_threads,
    write_json,
    written_by,
)


def reproduce(
    name: Annotated[str, typer.Argument(metavar="SUBJECT", help=f"One of {', '.join(SUBJECTS)}.")],
    data_dir: RequiredDataDirOption,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="FILE", help="Of the model; what is trained here is written there first."),
    ] = None,
    dense_weights: Annotated[
        Path | None, typer.Option("--dense-weights", metavar="FILE", help="VGG11-BN's, for pruned-vgg11 to begin with.")
    ] = None,
    model_dir: Annotated[
        Path | None, typer.Option("--model-dir", metavar="DIR", help="opt: any OPT of transformers, judged by PIQA.")
    ] = None,
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Settings tried of each of the paper's guards; its code tries 2,000.")
    ] = 40,
    calibrated_trials: Annotated[
        int,
        typer.Option("--calibrated-trials", min=0, help="Also search our guard by so many trials, beside optimize."),
    ] = 0,
    calibration: Annotated[int | None, typer.Option("--calibration", min=2, help="Examples to calibrate on.")] = None,
    selection: Annotated[int | None, typer.Option("--selection", min=2, help="Examples to choose by.")] = None,
    test: Annotated[int | None, typer.Option("--test", min=1, help="Examples to judge on.")] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", min=1, help="Of training, where there is any.")] = None,
    train_images: Annotated[
        int | None, typer.Option("--train-images", min=4, help="Of CIFAR-10, in each epoch; by default all 40,000.")
    ] = None,
    seed: SeedOption = 0,
    study: Annotated[
        Path | None,
        typer.Option("--study", metavar="DIR", help="Keeps every evaluation; a second run goes on from it."),
    ] = None,
    judge_front: Annotated[
        bool,
        typer.Option("--judge-front", help="Judge all of the searches' best settings too, as the paper's code does."),
    ] = False,
    json_path: JsonOption = None,
    plot: Annotated[Path | None, typer.Option("--plot", metavar="FILE", help="Also draw a picture.")] = None,
    threads: ThreadsOption = None,
) -> None:
    """Makes the ExPrune paper's experiments again: its guards tuned its way, its count of FLOPs, and ours beside it.

    Minutes to hours on a CPU, by the number of trials and examples. Weights that are not there are trained first.
    """
    with failures():
        if name not in SUBJECTS:
            raise UsageError(f"there is no subject {name!r}: give one of {', '.join(SUBJECTS)}")
        check_writable(weights, json_path, plot)
        set_threads(threads)
        from exprune_fx.cli.reproduce import Wanted, make_subject
        from exprune_fx.studies.paper.plot import plot_reproduction
        from exprune_fx.studies.paper.run import reproduce as run_reproduction
        from exprune_fx.studies.paper.setup import Settings
        from exprune_fx.studies.paper.table import reproduction_table

        wanted = Wanted(
            name,
            data_dir,
            weights=weights,
            dense_weights=dense_weights,
            model_dir=model_dir,
            calibration=calibration,
            selection=selection,
            test=test,
            epochs=epochs,
            train_images=train_images,
            seed=seed,
            cache=study,
        )
        with progress(name) as say:
            subject = make_subject(wanted, say)
            settings = Settings(trials, calibrated_trials, judge_front=judge_front, seed=seed, study=study)
            found = run_reproduction(subject, settings, say)
        output_console().print(reproduction_table(found, subject.sparse))
        write_json(json_path, {**written_by(), **found.to_dict()})
        if plot is not None:
            plot_reproduction(found, subject.sparse, plot)
